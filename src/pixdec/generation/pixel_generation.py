"""Prompts × seeds → images by a pixel generator (`pixdec.l2p`): planned, resumed and recorded as other generation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pixdec.generation.decoding import check_output
from pixdec.generation.items import Item, Plan, Result, Todo, Want, plan_items
from pixdec.generation.pipeline import pipeline_errors, short_of_memory
from pixdec.generation.prompts import Prompt
from pixdec.generation.records import fingerprint, record_of
from pixdec.generation.settings import PixelGenerationSettings
from pixdec.io.images import read_image
from pixdec.io.quiet import quiet
from pixdec.io.writing import save_image
from pixdec.l2p.weight_files import open_weights

if TYPE_CHECKING:
    from pixdec.l2p.pixel_pipeline import PixelPipeline

VERB = "l2p generate"


class PixelGeneration:
    """A run: planned when it is constructed, made while it is iterated over.

    Attributes:
        items: every image of the run.
        todo: what an earlier run has not made.
    """

    def __init__(
        self,
        prompts: str | Path | Sequence[str | Prompt],
        output: str | Path,
        settings: PixelGenerationSettings,
    ) -> None:
        """Raises ValueError and OSError for what cannot be."""
        settings.check()
        self.settings, self.want = settings, Want(images=True, latents=False)
        self.items = plan_items(prompts, str(output), settings)
        self.weights = open_weights(settings.model)
        self._begun = None if settings.image is None else read_image(settings.image).convert("RGB")
        for item in self.items:
            try:
                size = self._size(item)
                self.weights.settings.check_size(*size)
            except ValueError as error:
                raise ValueError(f"{item.prompt.where}: {error}") from error
            check_output(item.image, *size)
        plan = Plan(self.items, self.want, self._asked, self._asked, VERB)
        self.todo = plan.unfinished(again=settings.again)

    def __iter__(self) -> Iterator[Result]:
        """The failure of one is its result, and the others are still made. ValueError, OSError: nothing can be."""
        if not self.todo:
            return
        with quiet("diffusers", "transformers"):
            pipe = self._load()
            for todo in self.todo:
                yield self._attempt(pipe, todo)

    def _load(self) -> PixelPipeline:
        from pixdec.l2p.pixel_pipeline import PixelPipeline

        settings = self.settings
        with short_of_memory(settings.device or "the device"):
            pipe = PixelPipeline.from_pretrained(
                settings.model,
                text_encoder=settings.text_encoder,
                device="cpu" if settings.offload else settings.device,
                torch_dtype=None if settings.dtype is None else getattr(torch, settings.dtype),
                quantize=settings.quantize,
            )
        if settings.offload:
            pipe.enable_model_cpu_offload(settings.device)
        return pipe

    def _attempt(self, pipe: PixelPipeline, todo: Todo) -> Result:
        item, settings, started = todo.item, self.settings, time.perf_counter()
        height, width = self._size(item)
        try:
            with pipeline_errors(settings.device or "the device"):
                image = pipe(
                    item.prompt.text,
                    negative_prompt=self._negative(item),
                    num_inference_steps=settings.steps,
                    guidance_scale=settings.guidance,
                    height=height,
                    width=width,
                    generator=torch.Generator().manual_seed(item.seed),  # of the CPU: the same on every device
                    image=self._begun,
                    strength=settings.strength,
                    shift=settings.shift,
                    stop_after=settings.stop_after,
                ).images[0]
            record = record_of(VERB, self._asked(item), {"dtype": str(pipe.model.dtype).removeprefix("torch.")})
            save_image(image, item.image, settings=record)
        except Exception as error:
            return Result(item.name, item.prompt.text, item.seed, error=error.with_traceback(None))
        seconds = round(time.perf_counter() - started, 3)
        return Result(
            item.name, item.prompt.text, item.seed, item.image, size=(height, width), settings=record, seconds=seconds
        )

    def _size(self, item: Item) -> tuple[int, int]:
        side = self.weights.settings.side
        height, width = item.prompt.height or self.settings.height, item.prompt.width or self.settings.width
        return height or side, width or side

    def _negative(self, item: Item) -> str:
        return (self.settings.negative if item.prompt.negative is None else item.prompt.negative) or ""

    def _asked(self, item: Item) -> dict[str, object]:
        """The settings that an image depends on."""
        settings, (height, width) = self.settings, self._size(item)
        return {
            "model": self.weights.name,
            "weights": fingerprint(self.weights.path),
            "text_encoder": settings.text_encoder,
            "prompt": item.prompt.text,
            "negative": self._negative(item),
            "seed": item.seed,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "shift": self.weights.settings.kind.shift if settings.shift is None else settings.shift,
            "height": height,
            "width": width,
            "image": None if settings.image is None else fingerprint(settings.image),
            "strength": settings.strength,
            "stop_after": settings.stop_after,
            "quantize": settings.quantize,
            "dtype": settings.dtype,
        }
