"""Make what a plan of `pixdec generate` lacks: latents by the pipeline, images by the decoder."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixdec import __version__
from pixdec.cli.options import Dtype, HowToRun, torch_dtype
from pixdec.cli.processes import Process
from pixdec.cli.report import Report
from pixdec.cli.shots import Shot, Todo, Want
from pixdec.cli.upscale import MAX_STRENGTH

if TYPE_CHECKING:
    from pixdec.cli.pipelines import Blueprint
    from pixdec.decoder import PixelDecoder
    from pixdec.latents import Latent


@dataclass(frozen=True)
class MakeSettings:
    """How all images of a run are made.

    Attributes:
        stop_after: the step at which the pipeline is stopped (`pixdec.integrations.diffusers.capture`).
        space: the latent space, where neither pipeline nor decoder tells.
        trust: accept latents also whose statistics look wrong.
        decoder: a name or path of weights.
        decoder_steps: None: as many as the decoder is made for.
        lora: a file for the decoder, and how much of it.
        offload: never hold generator and decoder in memory together.
        dtype: of both; None: what suits the device.
        how: how the decoder's network is run.
    """

    stop_after: int | Literal["auto"]
    space: str | None
    trust: bool
    decoder: str
    decoder_steps: int | None
    lora: str | None
    lora_strength: float
    offload: bool
    dtype: Dtype | None
    how: HowToRun


@dataclass(frozen=True)
class Plan:
    """What is to be made, and by what. `decoder` has no weights, and is None where latents only are wanted;
    `arguments` are those of the pipeline's call for each shot."""

    blueprint: Blueprint
    decoder: PixelDecoder | None
    arguments: Mapping[Shot, dict[str, Any]]
    want: Want
    settings: MakeSettings

    @property
    def shots(self) -> list[Shot]:
        return list(self.arguments)

    def latent_asked(self, shot: Shot) -> dict[str, object]:
        """The settings that a latent depends on; None stands for the pipeline's own."""
        given = self.arguments[shot]
        return {
            "pipeline": self.blueprint.name,
            "prompt": shot.prompt.text,
            "negative": given.get("negative_prompt"),
            "seed": shot.seed,
            "generator_steps": given.get("num_inference_steps"),
            "stop_after": self.settings.stop_after,
            "guidance": given.get(self.blueprint.guidance or "guidance_scale"),
            "height": given.get("height"),
            "width": given.get("width"),
            "dtype": self.settings.dtype,
        }

    def image_asked(self, shot: Shot) -> dict[str, object]:
        """The settings that an image depends on."""
        from pixdec.decoder import TEACHER_STEPS

        decoder, steps = self._decoder, self.settings.decoder_steps
        if steps is None:
            steps = len(decoder.model.times) - 1 if decoder.model.kind == "student" else TEACHER_STEPS
        return {
            **self.latent_asked(shot),
            "model": decoder.model.name,
            "scale": decoder.scale,
            "caption": self.caption(shot),
            "steps": steps,
            "lora": None if decoder.lora is None else decoder.lora.name,
            "lora_strength": decoder.lora_strength,
            **self.settings.how.changes,
        }

    def caption(self, shot: Shot) -> str:
        """What the decoder is told: the prompt, if it reads text."""
        return shot.prompt.text if self._decoder.model.needs_text else ""

    @property
    def _decoder(self) -> PixelDecoder:
        assert self.decoder is not None, "without a decoder there are no images"
        return self.decoder


@dataclass(frozen=True)
class Maker:
    """One process and what it makes with."""

    plan: Plan
    process: Process
    device: str
    report: Report

    def make(self, todo: Sequence[Todo]) -> None:
        """Make what is missing. The failure of one is reported, and the others are still made.

        Raises:
            ValueError, OSError: captions cannot be embedded, or generator or decoder cannot be loaded.
        """
        from pixdec.cli.pipelines import quiet_libraries

        with quiet_libraries(bars=self._bars):
            self._embed_captions([each.shot for each in todo if each.image])
            if self.plan.settings.offload:
                self._make_apart(todo)
            else:
                self._make_together(todo)
        for folder in {each.shot.hidden.parent for each in todo}:
            with contextlib.suppress(OSError):  # not there, or with latents of other processes, or of failed images
                folder.rmdir()

    def _make_together(self, todo: Sequence[Todo]) -> None:
        """One after the other, with generator and decoder in memory, as far as they are needed."""
        decoder = self._load_decoder() if any(each.image for each in todo) else None
        pipe = self._load_pipeline() if any(each.source is None for each in todo) else None
        with self.process.progress(len(todo), "image") as bar:
            for each in todo:
                with self.report.attempt(each.shot.name):
                    self._make_one(each, pipe, decoder, keep=self.plan.want.latents)
                bar.update()

    def _make_apart(self, todo: Sequence[Todo]) -> None:
        """All latents first, and when the generator is gone, all images."""
        from pixdec.devices import release_memory

        to_capture = [each for each in todo if each.source is None]
        made = self._make_latents(to_capture) if to_capture else set[Shot]()
        release_memory()
        to_decode = [
            Todo(each.shot, each.source or self._place(each.shot), image=True)
            for each in todo
            if each.image and (each.source is not None or each.shot in made)
        ]
        if to_decode:
            self._make_together(to_decode)

    def _make_latents(self, todo: Sequence[Todo]) -> set[Shot]:
        """The shots whose latents could be made. The pipeline lives as long as this call."""
        pipe, made = self._load_pipeline(), set[Shot]()
        with self.process.progress(len(todo), "latent") as bar:
            for each in todo:
                with self.report.attempt(each.shot.name):
                    self._place(each.shot).parent.mkdir(exist_ok=True)
                    self._make_one(Todo(each.shot, None, image=False), pipe, None, keep=True, final=not each.image)
                    made.add(each.shot)
                bar.update()
        return made

    def _make_one(self, todo: Todo, pipe: Any, decoder: PixelDecoder | None, *, keep: bool, final: bool = True) -> None:
        """Latent, image, or both, of one shot. keep: write the latent; final: nothing is missing of it then."""
        started, shot = time.perf_counter(), todo.shot
        record: dict[str, object] = {"input": shot.name}
        if todo.source is None:
            latent = self._capture(pipe, shot)
            settings: dict[str, object] = {
                "pixdec": __version__,
                "verb": "generate",
                **self.plan.latent_asked(shot),
                "space": latent.space.name,
                "sigma": round(float(latent.sigma[0]), 6),
            }
            if keep:
                latent.save(self._place(shot), settings)
        else:
            from pixdec.latents import Latent

            latent = Latent.load(todo.source, statistics=False)  # which has passed, or was trusted, when it was made
            settings = {}
        summary = f"{self._place(shot)}  {latent.space.name} {'x'.join(map(str, latent.tensor.shape))}"
        if todo.image:
            assert decoder is not None
            settings = self._decode(latent, shot, decoder)
            width, height = (side * latent.space.factor * decoder.scale for side in latent.tensor.shape[:1:-1])
            record |= {"output": str(shot.image), "width": width, "height": height}
            record |= {"latent": str(shot.latent)} if self.plan.want.latents else {}
            summary = f"{shot.image}  {width}x{height}"
        else:
            record |= {"output": str(self._place(shot)), "shape": list(latent.tensor.shape)}
        if final:
            seconds = round(time.perf_counter() - started, 3)
            self.report.done({**record, "seconds": seconds, "settings": settings}, f"{summary}  {seconds:.1f} s")

    def _capture(self, pipe: Any, shot: Shot) -> Latent:
        """The pipeline's latent at the stop. One image a call: alone, it is the same whatever else is made."""
        import torch

        from pixdec.cli.pipelines import pipeline_errors
        from pixdec.integrations.diffusers import capture
        from pixdec.latents import check_latent

        settings = self.plan.settings
        noise = torch.Generator().manual_seed(shot.seed)  # of the CPU, so that it is the same on every device
        with pipeline_errors(self.device):
            latent = capture(
                pipe,
                stop_after=settings.stop_after,
                space=settings.space,
                generator=noise,
                **self.plan.arguments[shot],
            )
        check_latent(latent.tensor, latent.space, sigma=latent.sigma, statistics=not settings.trust)
        return latent

    def _decode(self, latent: Latent, shot: Shot, decoder: PixelDecoder) -> dict[str, object]:
        """Write the image, and forget a latent that only waited for it. The settings that were written with it."""
        from pixdec.cli.pictures import check_output, decode_one
        from pixdec.cli.pipelines import short_of_memory
        from pixdec.io.images import save_image, to_pil

        if (level := float(latent.sigma[0])) > MAX_STRENGTH:
            warnings.warn(
                f"the noise level at the stop is {level:.2f}; decoders are trained up to {MAX_STRENGTH}: stop later",
                UserWarning,
                stacklevel=2,
            )
        side = latent.space.factor * decoder.scale
        check_output(shot.image, latent.tensor.shape[3] * side, latent.tensor.shape[2] * side)
        caption, steps = self.plan.caption(shot), self.plan.settings.decoder_steps
        with self.process.progress(1, "step") as bar, short_of_memory(self.device):
            decoded, _ = decode_one(decoder, latent, caption=caption, seed=shot.seed, steps=steps, bar=bar, images=1)
        settings: dict[str, object] = {
            "pixdec": __version__,
            "verb": "generate",
            **self.plan.image_asked(shot),
            "space": latent.space.name,
            "sigma": round(float(latent.sigma[0]), 6),
            "memory": self.plan.settings.how.memory,
        }
        save_image(to_pil(decoded)[0], shot.image, settings=settings)
        shot.hidden.unlink(missing_ok=True)
        return settings

    def _place(self, shot: Shot) -> Path:
        """Where a latent is written: beside the image if it is to stay, else where it waits for the decoder."""
        return shot.latent if self.plan.want.latents else shot.hidden

    def _load_pipeline(self) -> Any:
        from pixdec.cli.pipelines import load_pipeline

        settings = self.plan.settings
        dtype = torch_dtype(settings.dtype)
        pipe = load_pipeline(self.plan.blueprint, self.device, dtype, offload=settings.offload, bars=self._bars)
        if getattr(pipe, "safety_checker", None) is not None:
            raise ValueError(
                f"{self.plan.blueprint.name}: its safety_checker looks at its VAE's image, which is never made; save "
                "the pipeline without it, and check the decoded images yourself"
            )
        return pipe

    def _load_decoder(self) -> PixelDecoder:
        from pixdec.cli.pictures import open_decoder
        from pixdec.cli.pipelines import short_of_memory

        settings = self.plan.settings
        with short_of_memory(self.device):
            return open_decoder(
                settings.decoder,
                self.device,
                settings.dtype,
                settings.space,
                caption="",
                steps=settings.decoder_steps,
                lora=settings.lora,
                lora_strength=settings.lora_strength,
                run=settings.how,
            )

    def _embed_captions(self, shots: Sequence[Shot]) -> None:
        """Before anything is loaded, for the decoder's weights are not needed for it."""
        if not shots:
            return
        from pixdec.cli.pictures import embed_captions
        from pixdec.cli.pipelines import short_of_memory

        assert self.plan.decoder is not None, "without a decoder there are no images"
        with short_of_memory(self.device):
            embed_captions(self.plan.decoder, [self.plan.caption(shot) for shot in shots], self.device)

    @property
    def _bars(self) -> bool:
        return self.process.rank == 0 and sys.stderr.isatty()
