"""Prompts × seeds → images: a diffusers pipeline, stopped early, and a decoder.

Everything that can be refused is refused before anything is loaded. Each image stands for itself: it is the same
whatever else is made, so a run can be ended at any time and goes on when it is started again.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pixdec.decoder import TEACHER_STEPS, PixelDecoder
from pixdec.devices import best_device, release_memory
from pixdec.generation.decoding import check_output, embed_prompts, open_decoder
from pixdec.generation.enlarge import MAX_STRENGTH
from pixdec.generation.items import VERB, Item, Plan, Result, Todo, Want, plan_items
from pixdec.generation.pipeline import (
    call_arguments,
    check_call,
    diffusers,
    find_pipeline,
    load_pipeline,
    pipeline_errors,
    short_of_memory,
)
from pixdec.generation.prompts import Prompt
from pixdec.generation.records import changed_by, done_by, record_of
from pixdec.generation.settings import GenerationSettings
from pixdec.inference.config import InferenceConfig
from pixdec.io.hub import Access
from pixdec.io.images import save_image, to_pil
from pixdec.io.quiet import quiet
from pixdec.latents import SPACES, Latent, check_latent
from pixdec.weights.describe import describe
from pixdec.weights.load import find_weights

if TYPE_CHECKING:
    from pixdec.latents import LatentSpace


def generate_many(
    prompts: str | Path | Sequence[str | Prompt],
    output: str | Path,
    settings: GenerationSettings,
    config: InferenceConfig | None = None,
) -> Iterator[Result]:
    """Make an image of every prompt, and yield what became of each; those that exist already are left out.

    Args:
        prompts: texts, or the path of a file of them (`read_prompts`).
        output: a folder, which is created; for one prompt also an image file.
        settings: generator, decoder and how they are run.
        config: how the decoder's network is run.

    Raises:
        ValueError: before the first image, what cannot be; later failures are the `error` of a result.
        OSError: the output cannot be written to.
    """
    return iter(Generation(prompts, output, settings, config))


class Generation:
    """A run: planned when it is constructed, made while it is iterated over.

    Attributes:
        items: every image of the run.
        todo: what an earlier run has not made. The parts of it are independent: another process, with a `Generation` of
            the same arguments, can `make` a part.
    """

    def __init__(
        self,
        prompts: str | Path | Sequence[str | Prompt],
        output: str | Path,
        settings: GenerationSettings,
        config: InferenceConfig | None = None,
    ) -> None:
        settings.check()
        if settings.ray is not None and settings.offload:
            raise ValueError(f"ray={settings.ray}: its workers keep generator and decoder; leave out offload")
        self.settings, self.config = settings, config or InferenceConfig()
        self._given = prompts, output
        self.device = str(best_device()) if settings.device is None else settings.device
        self.config.check(torch.device(self.device))
        self.want = Want(images=not settings.latents_only, latents=settings.latents_only or settings.save_latents)
        self.items = plan_items(prompts, str(output), settings)
        self._decoder = None if settings.latents_only else self._open_decoder("meta")
        diffusers()
        with quiet("diffusers", "transformers"):
            self.blueprint = find_pipeline(settings.pipeline)
        self._check_pipeline()
        plan = Plan(self.items, self.want, self._image_asked, self._latent_asked)
        self.todo = plan.unfinished(again=settings.again)

    def __iter__(self) -> Iterator[Result]:
        return self.make(self.todo)

    def make(self, todo: Sequence[Todo]) -> Iterator[Result]:
        """Make what is missing. The failure of one is its result, and the others are still made.

        Raises:
            ValueError, OSError: captions cannot be embedded, or generator or decoder cannot be loaded.
        """
        if not todo:
            return
        with quiet("diffusers", "transformers"):
            if self.settings.ray is not None:
                yield from self._make_on_ray(todo, self.settings.ray)
            elif self.settings.offload:
                yield from self._make_apart(todo)
            else:
                yield from map(self._maker(todo), todo)
        for folder in {each.item.hidden.parent for each in todo}:
            with contextlib.suppress(OSError):  # not there, or with latents of other runs, or of failed images
                folder.rmdir()

    def _make_on_ray(self, todo: Sequence[Todo], address: str) -> Iterator[Result]:
        from pixdec.generation.ray import on_ray

        there = replace(self.settings, ray=None, again=True)  # what may be overwritten was asked here
        for each, found in on_ray(partial(_open, *self._given, there, self.config, todo), todo, address):
            yield _failed(each, found) if isinstance(found, Exception) else found

    def _maker(self, todo: Sequence[Todo]) -> Callable[[Todo], Result]:
        """What makes each of `todo`, with generator and decoder in memory, as far as they are needed."""
        self._embed(todo)
        decoder = self._load_decoder() if any(each.image for each in todo) else None
        pipe = self.load_pipeline() if any(each.source is None for each in todo) else None
        return partial(self._attempt, pipe=pipe, decoder=decoder, keep=self.want.latents)

    def _embed(self, todo: Sequence[Todo]) -> None:
        """Before anything is loaded: no weights are needed for it."""
        if any(each.image for each in todo):
            assert self._decoder is not None, "without a decoder there are no images"
            with short_of_memory(self.device):
                embed_prompts(self._decoder, [self._told(each.item) for each in todo if each.image], self.device)

    def _make_apart(self, todo: Sequence[Todo]) -> Iterator[Result]:
        """All latents first, and when the generator is gone, all images."""
        self._embed(todo)
        made = set[Item]()
        if to_capture := [each for each in todo if each.source is None]:
            for wanted, result in self._make_latents(to_capture):
                if result.error is None:
                    made.add(wanted.item)
                if result.error is not None or not wanted.image:
                    yield result
        release_memory()
        to_decode = [
            Todo(each.item, each.source or self._place(each.item), image=True)
            for each in todo
            if each.image and (each.source is not None or each.item in made)
        ]
        if to_decode:
            yield from map(self._maker(to_decode), to_decode)

    def _make_latents(self, todo: Sequence[Todo]) -> Iterator[tuple[Todo, Result]]:
        """The latents of some items. The pipeline lives as long as this call."""
        pipe = self.load_pipeline()
        for each in todo:
            self._place(each.item).parent.mkdir(exist_ok=True)
            yield each, self._attempt(Todo(each.item, None, image=False), pipe=pipe, decoder=None, keep=True)

    def _attempt(self, todo: Todo, *, pipe: Any, decoder: PixelDecoder | None, keep: bool) -> Result:
        try:
            return self._make_one(todo, pipe, decoder, keep=keep)
        except Exception as error:
            if isinstance(error, ValueError | OSError):  # its frames would keep the generator in memory
                error = error.with_traceback(None)
                error.__cause__ = error.__context__ = None
            return _failed(todo, error)

    def _make_one(self, todo: Todo, pipe: Any, decoder: PixelDecoder | None, *, keep: bool) -> Result:
        """Latent, image, or both, of one item; keep: write the latent."""
        started, item = time.perf_counter(), todo.item
        if todo.source is None:
            latent, done = self._capture(pipe, item)
            settings = record_of(VERB, self._latent_asked(item), done)
            if keep:
                latent.save(self._place(item), settings)
        else:
            latent, settings = Latent.load(todo.source, statistics=False), {}  # checked, or trusted, when it was made
        size = None
        if todo.image:
            assert decoder is not None
            settings, size = self._decode(latent, item, decoder, settings)
        return Result(
            item.name,
            item.prompt.text,
            item.seed,
            image=item.image if todo.image else None,
            latent=self._place(item) if keep or not todo.image else None,
            size=size,
            shape=tuple(latent.tensor.shape),
            settings=settings,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _capture(self, pipe: Any, item: Item) -> tuple[Latent, dict[str, object]]:
        """The pipeline's latent at the stop, and what was done. One image a call: alone, it is always the same."""
        from pixdec.integrations.diffusers import capture
        from pixdec.integrations.diffusers.spaces import space_of

        settings = self.settings
        noise = torch.Generator().manual_seed(item.seed)  # of the CPU, so that it is the same on every device
        with pipeline_errors(self.device):
            latent = capture(
                pipe,
                stop_after=settings.stop_after,
                space="rgb" if self._for_images else settings.space,
                generator=noise,
                **self.arguments(item.prompt),
            )
        check_latent(latent.tensor, latent.space, sigma=latent.sigma, statistics=not settings.trust)
        rows, columns = latent.tensor.shape[2:]
        return latent, {
            "stop_after": self._stopped_after(pipe, space_of(pipe, settings.space)),
            "generator_steps": self.blueprint.steps(settings.steps),
            "height": rows * latent.space.factor,
            "width": columns * latent.space.factor,
            "dtype": str(getattr(pipe, "dtype", settings.dtype)).removeprefix("torch."),
            "space": latent.space.name,
            "sigma": round(float(latent.sigma[0]), 6),
        }

    @cached_property
    def _for_images(self) -> bool:
        """Whether latents are made for a decoder of images, also where that is not loaded: only the pipeline has what
        decodes them to images first, and the estimate of its own that an early stop wants."""
        if self._decoder is not None:
            return self._decoder.space.is_image
        try:
            path = find_weights(self.settings.decoder, Access(local_files_only=True))
            space = describe(path).space
        except (ValueError, OSError):  # it is not here yet, or none at all
            return False
        return space is not None and space in SPACES and SPACES[space].is_image

    def _stopped_after(self, pipe: Any, space: LatentSpace) -> object:
        """The step that the run was stopped after, also where that was left to us; None at the schedule's end."""
        from pixdec.integrations.diffusers.steps import automatic

        asked = self.settings.stop_after
        return automatic(pipe.scheduler, space) if asked == "auto" and hasattr(pipe, "scheduler") else asked

    def _decode(
        self, latent: Latent, item: Item, decoder: PixelDecoder, of_latent: dict[str, object]
    ) -> tuple[dict[str, object], tuple[int, int]]:
        """Write the image, and forget a latent that only waited for it: what was written with it, and its size."""
        if (level := float(latent.sigma[0])) > MAX_STRENGTH:
            warnings.warn(
                f"the noise level at the stop is {level:.2f}; decoders are trained up to {MAX_STRENGTH}: stop later",
                UserWarning,
                stacklevel=2,
            )
        side = latent.space.factor * decoder.scale
        check_output(item.image, latent.tensor.shape[2] * side, latent.tensor.shape[3] * side)
        with short_of_memory(self.device):
            steps = decoder.stream(latent, self._told(item), seed=item.seed, steps=self.settings.decoder_steps)
            step = deque(steps, maxlen=1).pop()
        done = {"space": latent.space.name, "sigma": round(float(latent.sigma[0]), 6), **done_by(step.how, self.config)}
        carried = {key: value for key, value in of_latent.items() if key in ("stop_after", "generator_steps")}
        settings = record_of(VERB, self._image_asked(item), {**carried, **done})
        image = to_pil(step.x0)[0]
        save_image(image, item.image, settings=settings)
        item.hidden.unlink(missing_ok=True)
        return settings, (image.height, image.width)

    def _place(self, item: Item) -> Path:
        """Where a latent is written: beside the image if it is to stay, else where it waits for the decoder."""
        return item.latent if self.want.latents else item.hidden

    def _told(self, item: Item) -> str:
        """What the decoder is told: the prompt, if it reads text."""
        assert self._decoder is not None, "without a decoder there are no images"
        return item.prompt.text if self._decoder.model.needs_text else ""

    def _latent_asked(self, item: Item) -> dict[str, object]:
        """The settings that a latent depends on; None stands for the pipeline's own."""
        given = self.arguments(item.prompt)
        return {
            "pipeline": self.blueprint.name,
            "prompt": item.prompt.text,
            "negative": given.get("negative_prompt"),
            "seed": item.seed,
            "generator_steps": given.get("num_inference_steps"),
            "stop_after": self.settings.stop_after,
            "guidance": given.get(self.blueprint.guidance or "guidance_scale"),
            "height": given.get("height"),
            "width": given.get("width"),
            "dtype": self.settings.dtype,
        }

    def _image_asked(self, item: Item) -> dict[str, object]:
        """The settings that an image depends on."""
        decoder, steps = self._decoder, self.settings.decoder_steps
        assert decoder is not None, "without a decoder there are no images"
        if steps is None:
            steps = decoder.model.default_steps or TEACHER_STEPS
        return {
            **self._latent_asked(item),
            "model": decoder.model.name,
            "scale": decoder.scale,
            "steps": steps,
            "lora": None if decoder.lora is None else decoder.lora.name,
            "lora_strength": decoder.lora_strength,
            **changed_by(self.config),
        }

    def arguments(self, prompt: Prompt) -> dict[str, Any]:
        """What the pipeline is called with for a prompt, apart from the generator of its noise."""
        return call_arguments(self.blueprint, prompt, self.settings)

    def _check_pipeline(self) -> None:
        """That the pipeline takes these arguments, reaches the stop, and makes what the decoder takes."""
        from pixdec.integrations.diffusers.calls import shared_space
        from pixdec.integrations.diffusers.noise import check_scheduler
        from pixdec.integrations.diffusers.spaces import check_one_image, space_of

        settings, hollow = self.settings, self.blueprint.hollow
        steps = self.blueprint.steps(settings.steps)
        if settings.stop_after != "auto" and steps is not None and settings.stop_after > steps:
            whose = "" if settings.steps is not None else f", {self.blueprint.kind.__name__}'s own number"
            raise ValueError(f"stop_after={settings.stop_after}: the run has {steps} steps{whose}; see steps")
        named, decoder = settings.space, self._decoder
        space = space_of(hollow, named) if decoder is None else shared_space(hollow, decoder, named)
        check_one_image(hollow, {})
        if hasattr(hollow, "scheduler"):
            check_scheduler(hollow.scheduler)
        for prompt in {item.number: item.prompt for item in self.items}.values():
            check_call(self.blueprint, space, self.arguments(prompt), prompt.where)

    def load_pipeline(self) -> Any:
        settings = self.settings
        dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
        pipe = load_pipeline(self.blueprint, self.device, dtype, offload=settings.offload)
        if getattr(pipe, "safety_checker", None) is not None:
            raise ValueError(
                f"{self.blueprint.name}: its safety_checker looks at its VAE's image, which is never made; save the "
                "pipeline without it, and check the decoded images yourself"
            )
        return pipe

    def _load_decoder(self) -> PixelDecoder:
        with short_of_memory(self.device):
            return self._open_decoder(self.device)

    def _open_decoder(self, device: str) -> PixelDecoder:
        """The decoder; on "meta" what it is, without memory for its weights."""
        settings = replace(self.settings, device=device)
        config = InferenceConfig(tile=self.config.tile) if device == "meta" else self.config
        return open_decoder(settings.decoder, settings, config, steps=settings.decoder_steps)


def _failed(todo: Todo, error: Exception) -> Result:
    return Result(todo.item.name, todo.item.prompt.text, todo.item.seed, error=error)


def _open(prompts: Any, output: Any, settings: Any, config: Any, todo: Sequence[Todo]) -> Callable[[Todo], Result]:
    """What makes one of `todo` of a `Generation` with these arguments; called by a worker of a Ray cluster."""
    return Generation(prompts, output, settings, config)._maker(todo)  # pyright: ignore[reportPrivateUsage]
