"""`pixdec encode`: images → latent files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixdec.cli.options import Dtype, Flag, Inputs, Output, check_device, check_refine, torch_dtype
from pixdec.cli.plan import Job, plan, prepare
from pixdec.cli.report import Report, progress

if TYPE_CHECKING:
    from pixdec.encoder import ImageEncoder


@dataclass(frozen=True)
class Encode:
    """Encode images into normalised latents, saved as .safetensors with their space and noise level.

    Sides must be multiples of the space's factor (16 for FLUX.2, 8 for most others): nothing is cropped or padded.
    """

    inputs: Inputs
    """Images, or folders of images."""
    output: Output
    """A .safetensors file for one input, else a folder: it is created, and mirrors input folders."""
    space: str = "flux2"
    """The latent space: flux1, flux2, sd3, sdxl, qwen-image or z-image."""
    vae: str | None = None
    """The autoencoder, a diffusers VAE by name or folder; without it the bundled one (FLUX.2 space only)."""
    refine: int | None = None
    """Steps that bring each latent nearer to its image, by gradient descent through the autoencoder's decoder; without
    it 16 for the bundled autoencoder and 0 for others."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the CPU."""
    dtype: Dtype | None = None
    """Precision of the autoencoder; without it float32."""
    json: Flag = False
    """Print one JSON object for each input."""

    def run(self) -> int:
        from pixdec.io.images import READABLE, image_size

        check_refine(self.refine)
        jobs = plan(
            self.inputs,
            self.output,
            what="images",
            readable=READABLE,
            writable={".safetensors"},
            suffix=".safetensors",
        )
        from pixdec.latents import get_space

        factor = get_space(self.space).factor
        report = Report(json_lines=self.json)
        ready: list[Job] = []
        for job in jobs:
            with report.attempt(job.source):
                width, height = image_size(job.source)
                if width % factor or height % factor:
                    raise ValueError(
                        f"{job.source}: {width}x{height} pixels; expected sides that are multiples of {factor}: "
                        "crop it, or use `pixdec upscale`, which takes any size"
                    )
                ready.append(job)
        if not ready:
            return report.exit_code
        prepare(job.target for job in ready)

        from pixdec.encoder import ImageEncoder

        check_device(self.device)
        encoder = ImageEncoder.from_pretrained(self.space, self.vae, self.device, torch_dtype(self.dtype), self.refine)
        with progress(len(ready), "image") as bar:
            for job in ready:
                with report.attempt(job.source):
                    _encode(job, encoder, report)
                bar.update()
        return report.exit_code


def _encode(job: Job, encoder: ImageEncoder, report: Report) -> None:
    from pixdec.io.images import read_image, to_tensor

    latent = encoder.encode(to_tensor(read_image(job.source)))
    latent.save(job.target)
    shape = list(latent.tensor.shape)
    report.done(
        {"input": str(job.source), "output": str(job.target), "space": latent.space.name, "shape": shape},
        f"{job.target}  {latent.space.name} {'x'.join(map(str, shape))}",
    )
