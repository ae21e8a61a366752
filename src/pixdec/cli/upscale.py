"""`pixdec upscale`: image → latent → larger image."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixdec import __version__
from pixdec.cli.options import Dtype, Flag, Format, Inputs, Output
from pixdec.cli.plan import Job, plan, prepare
from pixdec.cli.report import Report, progress

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from pixdec.decoder import PixelDecoder
    from pixdec.encoder import ImageEncoder

MAX_STRENGTH = 0.8  # decoders are trained on latents up to this noise level


@dataclass(frozen=True)
class Upscale:
    """Upscale images: encode each, and decode it larger (4x with most models).

    Any image Pillow reads, of any size; the output is exactly the model's scale times as large.
    """

    inputs: Inputs
    """Images, or folders of images."""
    output: Output
    """An image file (.png, .webp, .jpg) for one input, else a folder: it is created, and mirrors input folders."""
    strength: float = 0.0
    """How much may be invented, 0 to 0.8: the noise level that is added to the latent and told to the decoder."""
    caption: str = ""
    """What the images show, for models that read text."""
    model: str = "pixdec-nano"
    """The decoder: a name that `pixdec models` lists, or a file or folder of weights."""
    lora: str | None = None
    """A LoRA for the decoder: a file of `pixdec train` with --lora.rank."""
    lora_strength: float = 1.0
    """How much of the LoRA is added: 1 as trained, 0 nothing."""
    space: str | None = None
    """The latent space, where the model's file does not tell: those of FLUX.1, SD3 and Qwen-Image look alike."""
    vae: str | None = None
    """The autoencoder that encodes, a diffusers VAE by name or folder; without it the bundled one (FLUX.2 only)."""
    seed: int = 0
    """The same seed gives the same image, on every device."""
    steps: int | None = None
    """Decoding steps; without it as many as the model is made for."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is."""
    dtype: Dtype | None = None
    """Precision of the decoder; without it what suits the device."""
    format: Format | None = None
    """Format of the images in an output folder; png without it."""
    json: Flag = False
    """Print one JSON object for each input."""

    def run(self) -> int:
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise ValueError(f"--strength {self.strength}: expected 0 to {MAX_STRENGTH}")
        from pixdec.images import READABLE, WRITABLE, image_size

        jobs = plan(
            self.inputs,
            self.output,
            what="images",
            readable=READABLE,
            writable=WRITABLE,
            suffix=f".{self.format or 'png'}",
        )
        report = Report(json_lines=self.json)
        sizes: dict[Job, tuple[int, int]] = {}
        for job in jobs:
            with report.attempt(job.source):
                sizes[job] = image_size(job.source)
        if not sizes:
            return report.exit_code
        prepare(job.target for job in sizes)

        from pixdec.cli.pictures import check_output, open_decoder
        from pixdec.encoder import ImageEncoder

        decoder = open_decoder(
            self.model,
            self.device,
            self.dtype,
            self.space,
            caption=self.caption,
            steps=self.steps,
            lora=self.lora,
            lora_strength=self.lora_strength,
        )
        encoder = ImageEncoder.from_pretrained(decoder.space.name, self.vae, decoder.device)
        with progress(len(sizes), "step") as bar:
            for job, (width, height) in sizes.items():
                with report.attempt(job.source):
                    check_output(job.target, width * decoder.scale, height * decoder.scale)
                    self._upscale(job, decoder, encoder, report, bar, len(sizes))
        return report.exit_code

    def _upscale(
        self, job: Job, decoder: PixelDecoder, encoder: ImageEncoder, report: Report, bar: tqdm[None], images: int
    ) -> None:
        from pixdec.cli.pictures import decode_one, lora_settings
        from pixdec.images import read_image, save_image, to_pil, to_tensor

        started = time.perf_counter()
        image = read_image(job.source)
        latent = encoder.encode(pad_to_multiple(to_tensor(image), encoder.space.factor))
        latent = latent.noised(self.strength, self.seed)
        decoded, steps = decode_one(
            decoder,
            latent,
            caption=self.caption,
            seed=self.seed,
            steps=self.steps,
            bar=bar,
            images=images,
        )
        scale = decoder.scale
        large = to_pil(decoded[..., : image.height * scale, : image.width * scale])[0]
        settings: dict[str, object] = {
            "pixdec": __version__,
            "verb": "upscale",
            "model": decoder.model.name,
            "encoder": encoder.name,
            "space": decoder.space.name,
            "scale": scale,
            "strength": self.strength,
            "caption": self.caption,
            "seed": self.seed,
            "steps": steps,
            **lora_settings(decoder),
        }
        save_image(large, job.target, settings=settings)
        seconds = round(time.perf_counter() - started, 3)
        files = {"input": str(job.source), "output": str(job.target)}
        report.done(
            {**files, "width": large.width, "height": large.height, "seconds": seconds, "settings": settings},
            f"{job.target}  {large.width}x{large.height}  {seconds:.1f} s",
        )


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """Extend (B, 3, H, W) on the right and below, until both sides are multiples of `factor`.

    By reflection, so that the border looks like more of the image; where a side is too short to reflect that much, by
    repeating its last pixels.
    """
    from torch.nn import functional as F

    bottom, right = -images.shape[2] % factor, -images.shape[3] % factor
    images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < images.shape[3] else "replicate")
    return F.pad(images, (0, 0, 0, bottom), mode="reflect" if bottom < images.shape[2] else "replicate")
