"""`pixdec encode`: images → latent files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixdec.cli.options import Dtype, Flag, Inputs, Json, Output, check_device, torch_dtype
from pixdec.cli.report import Report, progress
from pixdec.cli.targets import Job, Kinds, plan

if TYPE_CHECKING:
    from pixdec.encoder import ImageEncoder


@dataclass(frozen=True)
class Encode:
    """Encode images into normalised latents, saved as .safetensors with their space and noise level.

    Sides must be multiples of the space's factor (16 for FLUX.2, 8 for most others): nothing is cropped or padded.
    Latents that exist already, made so of the same files, are skipped.
    """

    inputs: Inputs
    """Images, or folders of images."""
    output: Output
    """A .safetensors file for one input, else a folder: it is created, and mirrors input folders."""
    space: str = "flux2"
    """The latent space: flux1, flux2, sd3, sdxl, qwen-image or z-image."""
    vae: str | None = None
    """The autoencoder, a diffusers VAE by name or folder; without it the bundled one (FLUX.2 space only)."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the CPU."""
    dtype: Dtype | None = None
    """Precision of the autoencoder; without it float32."""
    again: Flag = False
    """Make latents anew that exist with the same settings; without it they are skipped."""
    json: Json = False

    def run(self) -> int:
        from pixdec.io.files import prepare
        from pixdec.io.images import READABLE, image_size
        from pixdec.latents import get_space

        jobs = plan(self.inputs, self.output, Kinds("images", READABLE, {".safetensors"}, ".safetensors"))
        factor = get_space(self.space).factor
        report = Report(json_lines=self.json)
        asked = dict[Job, dict[str, object]]()
        for job in jobs:
            with report.attempt(job.source):
                width, height = image_size(job.source)
                if width % factor or height % factor:
                    raise ValueError(
                        f"{job.source}: {width}x{height} pixels; expected sides that are multiples of {factor}: "
                        "crop it, or use `pixdec upscale`, which takes any size"
                    )
                asked[job] = self._asked(job)
        if not (todo := report.left("encode", asked, lambda job: job, again=self.again)):
            return report.exit_code
        prepare(job.target for job in todo)

        from pixdec.encoder import ImageEncoder

        check_device(self.device)
        encoder = ImageEncoder.from_pretrained(self.space, self.vae, self.device, torch_dtype(self.dtype))
        with progress(len(todo), "image") as bar:
            for job in todo:
                with report.attempt(job.source):
                    _encode(job, encoder, asked[job], report)
                bar.update()
        return report.exit_code

    def _asked(self, job: Job) -> dict[str, object]:
        from pixdec.generation.records import fingerprint

        source = fingerprint(job.source)
        return {"source": source, "encoder": self.vae or "pixdec-tiny", "space": self.space, "dtype": self.dtype}


def _encode(job: Job, encoder: ImageEncoder, asked: dict[str, object], report: Report) -> None:
    from pixdec.generation.records import record_of
    from pixdec.io.images import read_picture

    picture = read_picture(job.source)
    if picture.alpha is not None:
        warnings.warn(f"{job.source}: its transparency is composited on white", UserWarning, stacklevel=2)
    latent = encoder.encode(picture.flat().color)
    latent.save(job.target, record_of("encode", asked, {}))
    shape = list(latent.tensor.shape)
    report.done(
        {"input": str(job.source), "output": str(job.target), "space": latent.space.name, "shape": shape},
        f"{job.target}  {latent.space.name} {'x'.join(map(str, shape))}",
    )
