"""A source as what makes the images that its pixel model learns from: prompts × seeds → images, and prompts embedded as
training reads them."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from pixdec.devices import best_device, computes_in_bfloat16, device_named
from pixdec.io.hub import loading_reason
from pixdec.l2p.sources import Source, diffusers_class, get_source


class ImageSource(Protocol):
    """What synthesis needs of a generator; `name` goes into the record of every image."""

    name: str

    def image(self, prompt: str, seed: int) -> Image.Image:
        """The same for the same prompt and seed, whatever else is made."""
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
    def from_pretrained(
        cls, source: str, repository: str | None = None, device: str | None = None, **settings: Any
    ) -> "PipelineImages":
        """By the family's name, of its released model or of another by folder or hub id. ValueError if it cannot be
        loaded."""
        kind = get_source(source)
        name, place = repository or kind.repository, best_device() if device is None else device_named(device)
        dtype = torch.bfloat16 if computes_in_bfloat16(place) else torch.float32
        try:
            pipe = diffusers_class(kind.pipeline).from_pretrained(name, torch_dtype=dtype).to(place)
        except Exception as error:
            raise ValueError(f"{name}: cannot be loaded ({loading_reason(error, name)})") from error
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe, kind, name, settings)

    def image(self, prompt: str, seed: int) -> Image.Image:
        """One image; its noise comes from the CPU, and is the same on every device."""
        return self.pipe(prompt, generator=torch.Generator().manual_seed(seed), **self.settings).images[0]

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings on the CPU."""
        return [each.cpu() for each in self.source.embed(self.pipe, prompts, self.pipe.device)]
