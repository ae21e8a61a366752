"""`pixdec upscale`: image → latent → larger image."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixdec import __version__
from pixdec.cli.options import USUAL, Decoding, Flag, Format, Inputs, Output, check_refine
from pixdec.cli.plan import Job, plan, prepare
from pixdec.cli.processes import Process
from pixdec.cli.report import Report

if TYPE_CHECKING:
    from tqdm import tqdm

    from pixdec.decoder import PixelDecoder
    from pixdec.encoder import ImageEncoder

MAX_STRENGTH = 0.8  # decoders are trained on latents up to this noise level

Piece = tuple[Job, tuple[int, int]]  # an image, and its width and height


@dataclass(frozen=True)
class Upscale:
    """Upscale images: encode each, and decode it larger (4x with most models).

    Any image Pillow reads, of any size; the output is exactly --scale times as large, or of --size, or as long as
    --longest says. For less than the model's own scale the decoded image is shrunk; for more, the given image is
    enlarged before it is encoded, which looks sharper than enlarging what was decoded.
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
    caption: str = ""
    """What the images show, for models that read text."""
    vae: str | None = None
    """The autoencoder that encodes, a diffusers VAE by name or folder; without it the bundled one (FLUX.2 only)."""
    refine: int | None = None
    """Steps that bring the latent nearer to the image, by gradient descent through the autoencoder's decoder; without
    it 16 for the bundled autoencoder and 0 for others."""
    seed: int = 0
    """The same seed gives the same image, on every device."""
    by: Decoding = USUAL
    format: Format | None = None
    """Format of the images in an output folder; png without it."""
    json: Flag = False
    """Print one JSON object for each input."""

    def run(self) -> int:
        process, report = Process.here(), Report(json_lines=self.json)
        return process.carry_out(
            report,
            lambda: self._find(process, report),
            lambda piece: piece[1][0] * piece[1][1],
            lambda pieces: self._make(pieces, process, report),
            self.by.team,
        )

    def _find(self, process: Process, report: Report) -> list[Piece]:
        """All images; what can be refused before anything is loaded is refused."""
        from pixdec.cli.pictures import check_run
        from pixdec.io.images import READABLE, WRITABLE, image_size

        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ValueError(f"--strength {self.strength}: expected 0 to {MAX_STRENGTH}")
        check_refine(self.refine)
        self._check_sizes()
        process.part_of((), len, self.by.team)  # refuses a team that cannot be
        check_run(self.by.how, self.by.device, self.by.team)
        jobs = plan(
            self.inputs,
            self.output,
            what="images",
            readable=READABLE,
            writable=WRITABLE,
            suffix=f".{self.format or 'png'}",
        )
        sizes: dict[Job, tuple[int, int]] = {}
        for job in jobs:
            with process.attempt(report, job.source):
                sizes[job] = image_size(job.source)
        if not self.by.plan:
            prepare(job.target for job in sizes)
        return list(sizes.items())

    def _make(self, pieces: Sequence[Piece], process: Process, report: Report) -> None:
        """These images, by this process or its team."""
        from pixdec.cli.pictures import check_output, open_for, tell_plan

        decoder = open_for(process, self.by, self.caption, any_images=bool(pieces))
        if decoder is None:
            return
        if self.by.plan:
            for job, (width, height) in pieces:
                with process.attempt(report, job.source, self.by.team):
                    large = self._output_size((height, width), decoder.scale)
                    check_output(job.target, large[1], large[0])
                    sides, factor = self._encoded_size((height, width), decoder.scale), decoder.space.factor
                    rows, columns = (math.ceil(side / factor) for side in sides)
                    if process.leads(self.by.team):
                        tell_plan(decoder, rows, columns, job, report)
            return

        from pixdec.encoder import ImageEncoder

        encoder = ImageEncoder.from_pretrained(decoder.space.name, self.vae, decoder.device, refine=self.refine)
        with process.progress(len(pieces), "step") as bar:
            for job, (width, height) in pieces:
                with process.attempt(report, job.source, self.by.team):
                    large = self._output_size((height, width), decoder.scale)
                    check_output(job.target, large[1], large[0])
                    self._upscale(job, decoder, encoder, process, report, bar, len(pieces))

    def _check_sizes(self) -> None:
        """Raises ValueError for more than one size, or one that no output can have."""
        from pixdec.cli.pictures import parse_size

        given = [f"--{name}" for name in ("scale", "size", "longest") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each say how large the output is; leave out all but one")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f"--scale {self.scale}: expected a number above 0, such as 2 or 1.5")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"--longest {self.longest}: expected at least 1 pixel")
        if self.size is not None:
            parse_size(self.size)

    def _output_size(self, image: tuple[int, int], own_scale: int) -> tuple[int, int]:
        """The (height, width) of the output for an image of (height, width)."""
        from pixdec.cli.pictures import parse_size
        from pixdec.inference.sizes import scaled

        if self.size is not None:
            return parse_size(self.size)
        if self.longest is not None:
            return scaled(image, self.longest / max(image))
        return scaled(image, own_scale if self.scale is None else self.scale)

    def _encoded_size(self, image: tuple[int, int], own_scale: int) -> tuple[int, int]:
        """The (height, width) that an image of (height, width) has when it is encoded: enlarged if the decoder alone
        would not do."""
        wanted = self._output_size(image, own_scale)
        height, width = (max(old, math.ceil(new / own_scale)) for old, new in zip(image, wanted, strict=True))
        return height, width

    def _upscale(
        self,
        job: Job,
        decoder: PixelDecoder,
        encoder: ImageEncoder,
        process: Process,
        report: Report,
        bar: tqdm[None],
        images: int,
    ) -> None:
        from pixdec.cli.pictures import check_shape, decode_one, how_made
        from pixdec.inference.sizes import fit
        from pixdec.io.images import pad_to_multiple, read_image, resize, save_image, to_pil, to_tensor

        started, scale = time.perf_counter(), decoder.scale
        image = read_image(job.source)
        size = self._output_size((image.height, image.width), scale)
        check_shape(size, job.source, (image.height * scale, image.width * scale))
        small = to_tensor(image)
        height, width = self._encoded_size((image.height, image.width), scale)
        if (height, width) != small.shape[2:]:
            # Four Kodak images, shrunk to a sixth and brought back: 1.1 dB nearer than by enlarging what was decoded,
            # and with a fifth more gradient (nano, 4 steps).
            small = resize(small, height, width, how="lanczos").clamp(-1, 1)
        latent = encoder.encode(pad_to_multiple(small, encoder.space.factor))
        latent = latent.noised(self.strength, self.seed)
        decoded, steps = decode_one(
            decoder,
            latent,
            caption=self.caption,
            seed=self.seed,
            steps=self.by.steps,
            bar=bar,
            images=images,
        )
        own = (height * scale, width * scale)
        large = to_pil(fit(decoded[..., : own[0], : own[1]], size))[0]
        settings: dict[str, object] = {
            "pixdec": __version__,
            "verb": "upscale",
            "model": decoder.model.name,
            "encoder": encoder.name,
            "refine": encoder.refine,
            "space": decoder.space.name,
            "scale": scale,
            "strength": self.strength,
            "caption": self.caption,
            "seed": self.seed,
            "steps": steps,
            **how_made(decoder, self.by.how, None if size == (image.height * scale, image.width * scale) else size),
        }
        if not process.leads(self.by.team):
            return
        save_image(large, job.target, settings=settings)
        seconds = round(time.perf_counter() - started, 3)
        files = {"input": str(job.source), "output": str(job.target)}
        report.done(
            {**files, "width": large.width, "height": large.height, "seconds": seconds, "settings": settings},
            f"{job.target}  {large.width}x{large.height}  {seconds:.1f} s",
        )
