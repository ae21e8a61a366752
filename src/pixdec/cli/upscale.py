"""`pixdec upscale`: image → larger image."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from pixdec.cli.options import USUAL, Decoding, Flag, Inputs, Output, parse_size
from pixdec.cli.report import Made, Report, progress
from pixdec.cli.targets import Job, Kinds, plan

if TYPE_CHECKING:
    from pixdec.decoder import PixelDecoder
    from pixdec.encoder import ImageEncoder
    from pixdec.generation.enlarge import UpscaleSettings
    from pixdec.generation.records import Asked
    from pixdec.io.images import Picture


@dataclass(frozen=True)
class Upscale:
    """Upscale images: decode each larger (4x with most models), encoded first if the model takes latents.

    Any image Pillow reads, of any size; the output is exactly --scale times as large, or of --size, or as long as
    --longest says. For less than the model's own scale the decoded image is shrunk; for more, the given image is
    enlarged before it is encoded, which looks sharper than enlarging what was decoded. Transparency and metadata stay.
    Images that exist already, made so of the same files, are skipped.
    """

    inputs: Inputs
    """Images, or folders of images."""
    output: Output
    """An image file (.png, .webp, .jpg) for one input, else a folder: it is created, and mirrors input folders."""
    scale: float | None = None
    """How many times as large, such as 2, 3, 6 or 1.5; without it as many as the model decodes, 4 with most."""
    size: str | None = None
    """WIDTHxHEIGHT of the output in pixels, in the image's own shape."""
    longest: int | None = None
    """The longer side of the output in pixels; the other follows from the image."""
    strength: float = 0.0
    """How much may be invented, 0 to 0.8: the noise level that is added to the latent and told to the decoder."""
    prompt: str = ""
    """What the images show, for models that read text."""
    vae: str | None = None
    """What encodes the images for a model of latents: a diffusers VAE by name or folder; without it the bundled one
    (FLUX.2 only). Models of images, such as pixdec-nano, need none."""
    seed: int = 0
    """The same seed gives the same image, on every device."""
    bits: Literal[8, 16] = 8
    """Bits a channel of the output; 16 in a PNG only."""
    strip_metadata: Flag = False
    """Leave out EXIF (place and time too), XMP, IPTC, texts and resolution, which are carried over otherwise."""
    by: Decoding = USUAL

    def run(self) -> int:
        from pixdec.generation.enlarge import UpscaleSettings
        from pixdec.io.files import prepare
        from pixdec.io.images import READABLE, WRITABLE, image_size
        from pixdec.io.writing import check_bits

        settings = UpscaleSettings(
            self.scale,
            None if self.size is None else parse_size(self.size),
            self.longest,
            self.strength,
            self.prompt,
            self.seed,
            self.by.steps,
        )
        self.by.check()
        jobs = plan(self.inputs, self.output, Kinds("images", READABLE, WRITABLE, self.by.suffix))
        for job in jobs[:1]:  # all have one suffix
            check_bits(job.target, self.bits)
        report, sizes = Report(json_lines=self.by.json), dict[Job, tuple[int, int]]()
        for job in jobs:
            with report.attempt(job.source):
                width, height = image_size(job.source)
                sizes[job] = height, width
        if not sizes:
            return report.exit_code
        if not self.by.plan:
            prepare(job.target for job in sizes)
        decoder = self.by.here().open(self.prompt)
        if self.by.plan:
            for job, size in sizes.items():
                with report.attempt(job.source):
                    _tell_plan(decoder, settings.encoded_size(size, decoder.scale), job, report)
            return report.exit_code
        asked = {job: self._asked(job, decoder, settings) for job in sizes}
        todo = report.left("upscale", asked, lambda job: job, again=self.by.again)
        with progress(len(todo), "step") as bar:
            items = [(job, asked[job]) for job in todo]
            for (job, _), made in self.by.results(partial(self._maker, settings), items, decoder, bar):
                report.outcome(job, made)
        return report.exit_code

    def _maker(
        self, settings: UpscaleSettings, decoder: PixelDecoder, tick: Callable[[int], None]
    ) -> Callable[[tuple[Job, Asked]], Made]:
        """What makes one image; on a Ray cluster each worker has its own."""
        from pixdec.generation.enlarge import encoder_for
        from pixdec.generation.records import record_of
        from pixdec.io.images import save_picture

        encoder = encoder_for(decoder, self.vae)

        def make(item: tuple[Job, Asked]) -> Made:
            started, (job, asked) = time.perf_counter(), item
            large, done = self._upscale(job, decoder, encoder, settings, tick)
            recorded = record_of("upscale", asked, done)
            save_picture(large, job.target, settings=recorded, bits=self.bits)
            return recorded, time.perf_counter() - started

        return make

    def _asked(self, job: Job, decoder: PixelDecoder, settings: UpscaleSettings) -> dict[str, object]:
        from pixdec.generation.records import fingerprint

        return {
            "source": fingerprint(job.source),
            **self.by.asked(decoder),
            "vae": self.vae,
            "strength": self.strength,
            "prompt": self.prompt,
            "seed": self.seed,
            "factor": self.scale,
            "size": self.size,
            "longest": self.longest,
            "bits": self.bits,
            "metadata": not self.strip_metadata,
        }

    def _upscale(
        self,
        job: Job,
        decoder: PixelDecoder,
        encoder: ImageEncoder | None,
        settings: UpscaleSettings,
        tick: Callable[[int], None],
    ) -> tuple[Picture, dict[str, object]]:
        """The large picture, and what was done."""
        from pixdec.generation.enlarge import upscale
        from pixdec.generation.records import done_by
        from pixdec.inference.engine import DecodeStep
        from pixdec.io.images import read_picture
        from pixdec.io.metadata import NOTHING

        picture = read_picture(job.source)
        if picture.bits == 16 and self.bits == 8:
            text = f"{job.source}: 16 bits a channel; the output has 8, --bits 16 keeps them in a .png"
            warnings.warn(text, UserWarning, stacklevel=2)
        if self.strip_metadata:
            picture = replace(picture, metadata=NOTHING)
        _check_limits(job, picture.size, decoder, settings)
        steps = list[DecodeStep]()

        def seen(step: DecodeStep) -> None:
            steps[:] = [step]
            tick(step.total)

        large = upscale(picture, decoder, encoder, settings, seen)
        return large, {
            "steps": steps[0].total,
            **done_by(steps[0].how, self.by.how.config()),
            "encoder": None if encoder is None else encoder.name,
            "width": large.size[1],
            "height": large.size[0],
        }


def _check_limits(job: Job, image: tuple[int, int], decoder: PixelDecoder, settings: UpscaleSettings) -> None:
    """Refuse an output that no file can hold, and say what would do."""
    from pixdec.generation.decoding import check_output
    from pixdec.io.writing import MAX_SIDE

    height, width = settings.output_size(image, decoder.scale)
    most = math.floor(MAX_SIDE / max(image) * 100) / 100
    check_output(job.target, height, width, f": --longest {MAX_SIDE} or --scale {most:g} would do")


def _tell_plan(decoder: PixelDecoder, encoded: tuple[int, int], job: Job, report: Report) -> None:
    rows, columns = (math.ceil(side / decoder.space.factor) for side in encoded)
    report.tell_plan(decoder, rows, columns, job)
