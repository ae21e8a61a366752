"""`pixdec decode`: latent files → images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixdec import __version__
from pixdec.cli.options import Dtype, Flag, Format, Inputs, Output
from pixdec.cli.plan import Job, check_targets, plan, prepare
from pixdec.cli.report import Report, progress

if TYPE_CHECKING:
    from tqdm import tqdm

    from pixdec.decoder import PixelDecoder
    from pixdec.latents import Latent


@dataclass(frozen=True)
class Decode:
    """Decode latents: .safetensors files of `pixdec encode` or `Latent.save` into images.

    A file that holds N latents gives NAME-1 to NAME-N.
    """

    inputs: Inputs
    """Latent files, or folders of them."""
    output: Output
    """An image file (.png, .webp, .jpg) for one input, else a folder: it is created, and mirrors input folders."""
    caption: str = ""
    """What the images show, for models that read text."""
    model: str = "pixdec-nano"
    """The decoder: a name that `pixdec models` lists, or a file or folder of weights."""
    space: str | None = None
    """The latent space, where the model's file does not tell: those of FLUX.1, SD3 and Qwen-Image look alike."""
    seed: int = 0
    """The same seed gives the same image, on every device; of a file's N latents the second draws from seed + 1."""
    steps: int | None = None
    """Decoding steps; without it as many as the model is made for."""
    trust: Flag = False
    """Decode latents also whose statistics look wrong (raw, of another space)."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is."""
    dtype: Dtype | None = None
    """Precision of the network; without it what suits the device."""
    format: Format | None = None
    """Format of the images in an output folder; png without it."""
    json: Flag = False
    """Print one JSON object for each image."""

    def run(self) -> int:
        from pixdec.images import WRITABLE
        from pixdec.latents import Latent

        jobs = plan(
            self.inputs,
            self.output,
            what="latents",
            readable={".safetensors"},
            writable=WRITABLE,
            suffix=f".{self.format or 'png'}",
        )
        report = Report(json_lines=self.json)
        images: list[tuple[Job, int]] = []  # and which latent of the file
        for job in jobs:  # all are read before the decoder is, which may be large, and again when their turn comes
            with report.attempt(job.source):
                latent = Latent.load(job.source, statistics=not self.trust)
                images += [(image, i) for i, image in enumerate(_images(job, latent.tensor.shape[0]))]
        check_targets(image for image, _ in images)
        if not images:
            return report.exit_code
        prepare(image.target for image, _ in images)

        from pixdec.cli.pictures import open_decoder

        decoder = open_decoder(self.model, self.device, self.dtype, self.space, caption=self.caption, steps=self.steps)
        with progress(len(images), "step") as bar:
            for image, index in images:
                with report.attempt(image.source):
                    whole = Latent.load(image.source, statistics=False)
                    tensor, sigma = whole.tensor[index : index + 1], whole.sigma[index : index + 1]
                    latent = Latent(tensor, whole.space, sigma, statistics=False)
                    self._decode(image, latent, self.seed + index, decoder, report, bar, len(images))
        return report.exit_code

    def _decode(
        self,
        job: Job,
        latent: Latent,
        seed: int,
        decoder: PixelDecoder,
        report: Report,
        bar: tqdm[None],
        images: int,
    ) -> None:
        from pixdec.cli.pictures import check_output, decode_one
        from pixdec.images import save_image, to_pil

        started = time.perf_counter()
        each = latent.space.factor * decoder.scale
        check_output(job.target, latent.tensor.shape[3] * each, latent.tensor.shape[2] * each)
        decoded, steps = decode_one(
            decoder,
            latent,
            caption=self.caption,
            seed=seed,
            steps=self.steps,
            bar=bar,
            images=images,
        )
        image = to_pil(decoded)[0]
        settings: dict[str, object] = {
            "pixdec": __version__,
            "verb": "decode",
            "model": decoder.model.name,
            "space": latent.space.name,
            "scale": decoder.scale,
            "sigma": round(float(latent.sigma[0]), 6),
            "caption": self.caption,
            "seed": seed,
            "steps": steps,
        }
        save_image(image, job.target, settings=settings)
        seconds = round(time.perf_counter() - started, 3)
        files = {"input": str(job.source), "output": str(job.target)}
        report.done(
            {**files, "width": image.width, "height": image.height, "seconds": seconds, "settings": settings},
            f"{job.target}  {image.width}x{image.height}  {seconds:.1f} s",
        )


def _images(job: Job, count: int) -> list[Job]:
    """The images of a file of `count` latents."""
    if count == 1:
        return [job]
    stem, suffix = job.target.stem, job.target.suffix
    return [Job(job.source, job.target.with_name(f"{stem}-{i + 1}{suffix}")) for i in range(count)]
