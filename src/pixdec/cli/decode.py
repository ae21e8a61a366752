"""`pixdec decode`: latent files → images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pixdec import __version__
from pixdec.cli.options import USUAL, Decoding, Flag, Format, Inputs, Output
from pixdec.cli.plan import Job, check_targets, plan, prepare
from pixdec.cli.processes import Process
from pixdec.cli.report import Report

if TYPE_CHECKING:
    from tqdm import tqdm

    from pixdec.decoder import PixelDecoder
    from pixdec.latents import Latent


@dataclass(frozen=True)
class _Image:
    """One image to make: of latent number `index` of the file `job.source`, which has so many rows and columns."""

    job: Job
    index: int
    rows: int
    columns: int
    space: str
    caption: str
    seed: int

    def latent(self) -> Latent:
        """The latent alone, a batch of one; its statistics are not judged again."""
        from pixdec.latents import Latent

        file, here = _read(self.job.source, self.space), slice(self.index, self.index + 1)
        return Latent(file.tensor[here], file.space, file.sigma[here], statistics=False)


@lru_cache(maxsize=1)
def _read(path: Path, space: str) -> Latent:
    """A file, which is read once for all its latents: they come one after the other."""
    from pixdec.latents import Latent

    return Latent.load(path, space=space, statistics=False)


@dataclass(frozen=True)
class Decode:
    """Decode latents into images: .safetensors of `pixdec encode` or `Latent.save`, .latent of ComfyUI, .pt or .npy.

    Files that name no latent space, which only ours do, need --space. One that holds N latents gives NAME-1 to NAME-N.
    Latents that `pixdec generate` saved are decoded with their own prompt and seed, unless others are given.
    """

    inputs: Inputs
    """Latent files, or folders of them."""
    output: Output
    """An image file (.png, .webp, .jpg) for one input, else a folder: it is created, and mirrors input folders."""
    caption: str | None = None
    """What the images show, for models that read text; without it each latent's own prompt, if it was saved with one.
    "" is no caption."""
    seed: int | None = None
    """The same seed gives the same image, on every device; of a file's N latents the second draws from seed + 1.
    Without it each latent's own seed, if it was saved with one, else 0."""
    size: str | None = None
    """WIDTHxHEIGHT of the images in pixels, in their own shape: they are resampled to it."""
    trust: Flag = False
    """Decode latents also whose statistics look wrong (raw, of another space)."""
    by: Decoding = USUAL
    format: Format | None = None
    """Format of the images in an output folder; png without it."""
    json: Flag = False
    """Print one JSON object for each image."""

    def run(self) -> int:
        process, report = Process.here(), Report(json_lines=self.json)
        return process.carry_out(
            report,
            lambda: self._find(process, report),
            lambda image: image.rows * image.columns,
            lambda images: self._make(images, process, report),
            self.by.team,
        )

    def _find(self, process: Process, report: Report) -> list[_Image]:
        """All images; what can be refused before anything is loaded is refused."""
        from pixdec.cli.pictures import check_run, parse_size
        from pixdec.io.images import WRITABLE
        from pixdec.latents import SUFFIXES, Latent

        if self.size is not None:
            parse_size(self.size)
        process.part_of((), len, self.by.team)  # refuses a team that cannot be
        check_run(self.by.how, self.by.device, self.by.team)
        jobs = plan(
            self.inputs,
            self.output,
            what="latents",
            readable=set(SUFFIXES),
            writable=WRITABLE,
            suffix=f".{self.format or 'png'}",
        )
        images: list[_Image] = []
        for job in jobs:  # all are read before the decoder is, which may be large, and again when their turn comes
            with process.attempt(report, job.source):
                latent = Latent.load(job.source, space=self.by.space, statistics=not self.trust)
                images += self._images(job, latent)
        check_targets(image.job for image in images)
        if not self.by.plan:
            prepare(image.job.target for image in images)
        return images

    def _make(self, images: Sequence[_Image], process: Process, report: Report) -> None:
        """These images, by this process or its team."""
        from pixdec.cli.pictures import embed_captions, open_for, tell_plan
        from pixdec.text import EncoderUnavailableError

        decoder = open_for(process, self.by, self.caption or "", any_images=bool(images))
        if decoder is None:
            return
        if self.by.plan:
            for image in images:
                with process.attempt(report, image.job.source, self.by.team):
                    if process.leads(self.by.team):
                        tell_plan(decoder, image.rows, image.columns, image.job, report)
            return
        with contextlib.suppress(EncoderUnavailableError):  # images that want it say so themselves
            embed_captions(decoder, [image.caption for image in images], decoder.device)
        with process.progress(len(images), "step") as bar:
            for image in images:
                with process.attempt(report, image.job.source, self.by.team):
                    self._decode(image, decoder, process, report, bar, len(images))

    def _images(self, job: Job, latent: Latent) -> list[_Image]:
        """The images of a file of latents: caption and seed as the options say, else as its settings say."""
        from pixdec.latents import latent_settings

        path, settings = job.source, latent_settings(job.source)
        count, _, rows, columns = latent.tensor.shape
        space = latent.space.name
        caption = settings.get("prompt", "") if self.caption is None else self.caption
        seed = settings.get("seed", 0) if self.seed is None else self.seed
        if not isinstance(caption, str):
            raise ValueError(f"{path}: its prompt is {caption!r}, expected a text; give --caption")
        if not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) >= 2**63:
            raise ValueError(f"{path}: its seed is {seed!r}, expected a whole number below 2^63; give --seed")
        if count == 1:
            return [_Image(job, 0, rows, columns, space, caption, seed)]
        stem, suffix = job.target.stem, job.target.suffix
        targets = [job.target.with_name(f"{stem}-{i + 1}{suffix}") for i in range(count)]
        return [
            _Image(Job(path, target), i, rows, columns, space, caption, seed + i) for i, target in enumerate(targets)
        ]

    def _decode(
        self,
        image: _Image,
        decoder: PixelDecoder,
        process: Process,
        report: Report,
        bar: tqdm[None],
        images: int,
    ) -> None:
        from pixdec.cli.pictures import check_output, check_shape, decode_one, how_made, parse_size
        from pixdec.io.images import save_image, to_pil

        started, job, latent = time.perf_counter(), image.job, image.latent()
        caption = image.caption if decoder.model.needs_text else ""
        each, size = latent.space.factor * decoder.scale, None if self.size is None else parse_size(self.size)
        own = (image.rows * each, image.columns * each)
        height, width = size or own
        check_output(job.target, width, height)
        check_shape((height, width), job.source, own)
        decoded, steps = decode_one(
            decoder,
            latent,
            caption=caption,
            seed=image.seed,
            steps=self.by.steps,
            bar=bar,
            images=images,
            size=size,
        )
        settings: dict[str, object] = {
            "pixdec": __version__,
            "verb": "decode",
            "model": decoder.model.name,
            "space": latent.space.name,
            "scale": decoder.scale,
            "sigma": round(float(latent.sigma[0]), 6),
            "caption": caption,
            "seed": image.seed,
            "steps": steps,
            **how_made(decoder, self.by.how, size),
        }
        if not process.leads(self.by.team):
            return
        picture = to_pil(decoded)[0]
        save_image(picture, job.target, settings=settings)
        seconds = round(time.perf_counter() - started, 3)
        files = {"input": str(job.source), "output": str(job.target)}
        report.done(
            {**files, "width": picture.width, "height": picture.height, "seconds": seconds, "settings": settings},
            f"{job.target}  {picture.width}x{picture.height}  {seconds:.1f} s",
        )
