"""`pixdec decode`: latent files → images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pixdec.cli.options import USUAL, Decoding, Flag, Inputs, Output, parse_size
from pixdec.cli.report import Made, Report, progress
from pixdec.cli.targets import Job, Kinds, check_targets, plan

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from pixdec.decoder import PixelDecoder
    from pixdec.generation.records import Asked
    from pixdec.latents import Latent


@dataclass(frozen=True)
class _Image:
    """One image to make: of latent number `index` of the file `job.source`, which has so many rows and columns."""

    job: Job
    index: int
    rows: int
    columns: int
    space: str
    prompt: str
    seed: int
    vae: str | None

    def latent(self, file: Latent) -> Latent:
        """The latent alone, a batch of one, of those of its file."""
        from pixdec.latents import Latent

        here = slice(self.index, self.index + 1)
        return Latent(file.tensor[here], file.space, file.sigma[here], statistics=False)

    def of_pixels(self, decoder: PixelDecoder) -> _Image:
        """As a decoder is given it: one of images is given those that an autoencoder makes of the latents first."""
        from pixdec.latents import get_space

        factor = get_space(self.space).factor if decoder.space.is_image else 1
        return replace(self, rows=self.rows * factor, columns=self.columns * factor)


@dataclass(frozen=True)
class Decode:
    """Decode latents into images: .safetensors of `pixdec encode` or `Latent.save`, .latent of ComfyUI, .pt or .npy.

    Files that name no latent space, which only ours do, need --space. One that holds N latents gives NAME-1 to NAME-N.
    Latents that `pixdec generate` saved are decoded with their own prompt and seed, unless others are given. Images
    that exist already, made so of the same files, are skipped.
    """

    inputs: Inputs
    """Latent files, or folders of them."""
    output: Output
    """An image file (.png, .webp, .jpg) for one input, else a folder: it is created, and mirrors input folders."""
    prompt: str | None = None
    """What the images show, for models that read text; without it each latent's own prompt, if it was saved with one.
    "" is no prompt."""
    seed: int | None = None
    """The same seed gives the same image, on every device; of a file's N latents the second draws from seed + 1.
    Without it each latent's own seed, if it was saved with one, else 0."""
    size: str | None = None
    """WIDTHxHEIGHT of the images in pixels, in their own shape: they are resampled to it."""
    trust: Flag = False
    """Decode latents also whose statistics look wrong (raw, of another space)."""
    vae: str | None = None
    """What decodes a latent to an image first, for decoders of images: a VAE or TAE of diffusers, a hub id or a folder,
    or pixdec-tiny, which is taken without it for the latents that it encoded."""
    by: Decoding = USUAL

    def run(self) -> int:
        from pixdec.io.files import prepare
        from pixdec.io.images import WRITABLE
        from pixdec.latents import SUFFIXES, Latent

        if self.size is not None:
            parse_size(self.size)
        self.by.check()
        jobs = plan(self.inputs, self.output, Kinds("latents", SUFFIXES, WRITABLE, self.by.suffix))
        report, images = Report(json_lines=self.by.json), list[_Image]()
        for job in jobs:  # all are checked before the decoder is loaded, which may be large
            with report.attempt(job.source):
                latent = Latent.load(job.source, space=self.by.space, statistics=not self.trust)
                images += self._images(job, latent)
        check_targets(image.job for image in images)
        if not images:
            return report.exit_code
        if not self.by.plan:
            prepare(image.job.target for image in images)
        decoder = self.by.here().open(self.prompt or "")
        images = [image.of_pixels(decoder) for image in images]
        if self.by.plan:
            for image in images:
                with report.attempt(image.job.source):
                    report.tell_plan(decoder, image.rows, image.columns, image.job)
            return report.exit_code
        asked = {image: self._asked(image, decoder) for image in images}
        todo = report.left("decode", asked, lambda image: image.job, again=self.by.again)
        with progress(len(todo), "step") as bar:
            make = partial(self._maker, [image.prompt for image in todo])
            for (image, _), made in self.by.results(make, [(each, asked[each]) for each in todo], decoder, bar):
                report.outcome(image.job, made)
        return report.exit_code

    def _maker(
        self, prompts: Sequence[str], decoder: PixelDecoder, tick: Callable[[int], None]
    ) -> Callable[[tuple[_Image, Asked]], Made]:
        """What makes one image, of those with these prompts; on a Ray cluster each worker has its own."""
        from pixdec.encoder import first_decode
        from pixdec.generation.decoding import embed_prompts
        from pixdec.generation.records import record_of
        from pixdec.io.images import save_image
        from pixdec.latents import Latent
        from pixdec.text import EncoderUnavailableError

        with contextlib.suppress(EncoderUnavailableError):  # images that want it say so themselves
            embed_prompts(decoder, prompts, decoder.device)
        files = dict[Path, Latent]()  # no more than one, which is read once for all its images

        def make(item: tuple[_Image, Asked]) -> Made:
            image, asked = item
            if (source := image.job.source) not in files:
                files.clear()
                read = Latent.load(source, space=image.space, statistics=False)
                as_it_is = read.space.is_image or not decoder.space.is_image
                files[source] = read if as_it_is else first_decode(read, image.vae)
            started = time.perf_counter()
            picture, done = self._decode(image, image.latent(files[source]), decoder, tick)
            recorded = record_of("decode", asked, done)
            save_image(picture, image.job.target, settings=recorded)
            return recorded, time.perf_counter() - started

        return make

    def _images(self, job: Job, latent: Latent) -> list[_Image]:
        """The images of a file of latents: prompt and seed as the options say, else as its settings say."""
        from pixdec.encoder import TINY
        from pixdec.io.arguments import seed_of
        from pixdec.latents import latent_settings

        path, settings = job.source, latent_settings(job.source)
        count, _, rows, columns = latent.tensor.shape
        vae = self.vae or (TINY if TINY in (latent.encoder, settings.get("encoder")) else None)
        prompt = settings.get("prompt", "") if self.prompt is None else self.prompt
        if not isinstance(prompt, str):
            raise ValueError(f"{path}: its prompt is {prompt!r}, expected a text; give --prompt")
        if self.seed is None:
            try:
                seed = seed_of(settings.get("seed", 0))
            except ValueError as error:
                raise ValueError(f"{path}: its {error}; give --seed") from error
        else:
            seed = seed_of(seed_of(self.seed) + count - 1) - count + 1
        if count == 1:
            return [_Image(job, 0, rows, columns, latent.space.name, prompt, seed, vae)]
        stem, suffix = job.target.stem, job.target.suffix
        targets = [job.target.with_name(f"{stem}-{i + 1}{suffix}") for i in range(count)]
        return [
            _Image(Job(path, target), i, rows, columns, latent.space.name, prompt, seed + i, vae)
            for i, target in enumerate(targets)
        ]

    def _asked(self, image: _Image, decoder: PixelDecoder) -> dict[str, object]:
        from pixdec.generation.records import fingerprint

        return {
            "source": fingerprint(image.job.source),
            "index": image.index,
            **self.by.asked(decoder),
            "prompt": image.prompt if decoder.model.needs_text else "",
            "seed": image.seed,
            "size": self.size,
            "vae": image.vae if decoder.space.is_image else None,
        }

    def _decode(
        self, image: _Image, latent: Latent, decoder: PixelDecoder, tick: Callable[[int], None]
    ) -> tuple[PILImage, dict[str, object]]:
        """The image of a latent, and what was done."""
        from pixdec.generation.decoding import check_output, check_shape
        from pixdec.generation.records import done_by
        from pixdec.io.images import to_pil

        each, size = latent.space.factor * decoder.scale, None if self.size is None else parse_size(self.size)
        own = (image.rows * each, image.columns * each)
        check_output(image.job.target, *(size or own))
        if size is not None:
            check_shape(size, own)
        prompt, step = image.prompt if decoder.model.needs_text else "", None
        for step in decoder.stream(latent, prompt, seed=image.seed, steps=self.by.steps, size=size):
            tick(step.total)
        assert step is not None, "a decoder takes at least one step"
        picture = to_pil(step.x0)[0]
        return picture, {
            "steps": step.total,
            "sigma": round(float(latent.sigma[0]), 6),
            **done_by(step.how, self.by.how.config()),
            "width": picture.width,
            "height": picture.height,
        }
