"""A source as what makes the images that its pixel model learns from: prompts × seeds → images, and prompts embedded as
training reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from pixdec.devices import best_device, computes_in_bfloat16, device_named
from pixdec.io.hub import HUB_ID, loading_reason
from pixdec.l2p.pixel_pipeline import PixelPipeline
from pixdec.l2p.sources import SOURCES, Source, diffusers_class, get_source, source_of


class ImageSource(Protocol):
    """What synthesis needs of a generator; `name` goes into the record of every image."""

    name: str

    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One for each; the noise of an image follows from its seed alone."""
        ...

    def embed(self, prompts: Sequence[str]) -> list[Tensor]:
        """(T,E) for each prompt, as the pixel model reads them."""
        ...


class PipelineImages:
    """An `ImageSource` that is a diffusers pipeline of one of the known families."""

    def __init__(self, pipe: Any, source: Source, name: str, settings: dict[str, Any] | None = None):
        """`settings`: of every call: num_inference_steps, guidance_scale, height, width."""
        self.pipe, self.source, self.name, self.settings = pipe, source, name, settings or {}

    @classmethod
    def from_pretrained(cls, source: str, device: str | None = None, **settings: Any) -> "PipelineImages":
        """By the family's name, of its released model, or by folder or hub id of a pipeline. ValueError if it cannot be
        loaded, or is of no known family."""
        name = get_source(source).repository if source in SOURCES else source
        if not HUB_ID.fullmatch(name) and not Path(name).is_dir():
            raise ValueError(f"{name}: no such folder, and not the id of a pipeline on the hub")
        place = best_device() if device is None else device_named(device)
        dtype = torch.bfloat16 if computes_in_bfloat16(place) else torch.float32
        try:
            pipe = diffusers_class("DiffusionPipeline").from_pretrained(name, torch_dtype=dtype).to(place)
        except Exception as error:
            raise ValueError(f"{name}: cannot be loaded ({loading_reason(error, name)})") from error
        pipe.set_progress_bar_config(disable=True)
        try:
            family = source_of(type(getattr(pipe, "transformer", None)).__name__)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return cls(pipe, get_source(family), name, settings)

    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """The noise comes from the CPU, and is the same on every device."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.pipe(list(prompts), generator=generators, **self.settings).images

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> list[Tensor]:
        """On the CPU."""
        return [each.cpu() for each in self.source.embed(self.pipe, prompts, self.pipe.device)]


class PixelImages:
    """An `ImageSource` that is a pixel model."""

    def __init__(self, pipe: PixelPipeline, name: str = "pixels", settings: dict[str, Any] | None = None):
        """`settings`: of every call, as `PixelPipeline` takes them."""
        self.pipe, self.name, self.settings = pipe, name, settings or {}

    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """The noise comes from the CPU."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.pipe(list(prompts), generator=generators, **self.settings).images

    def embed(self, prompts: Sequence[str]) -> list[Tensor]:
        """On the CPU."""
        return [each.cpu() for each in self.pipe.embed(prompts, self.pipe.model.device)]
