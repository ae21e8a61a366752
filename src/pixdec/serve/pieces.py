"""What becomes of one work in a worker: what was sent, as its decoder takes it, and what comes of that."""

from __future__ import annotations

import base64
import io
import logging
import re
import time
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from pixdec.decoder import PixelDecoder
from pixdec.devices import is_out_of_memory
from pixdec.encoder import TINY, ImageEncoder, first_decode
from pixdec.generation.enlarge import UpscaleSettings, enlarged, image_for, latent_of
from pixdec.generation.records import done_by
from pixdec.inference.engine import DecodeStep, MemoryExhaustedError
from pixdec.io.files import first_line_of
from pixdec.io.images import Picture, read_picture, to_pil
from pixdec.io.metadata import NOTHING
from pixdec.latents import Latent
from pixdec.serve.jobs import Pixels, ServiceError, Work, given

logger = logging.getLogger("pixdec.serve")

PREVIEW = 320  # pixels of the longer side


@dataclass
class Loaded:
    """A decoder that is on the device, with what encodes for it."""

    decoder: PixelDecoder
    encoder: ImageEncoder | None
    size: int  # bytes of its weights


@dataclass
class Piece:
    """A work that is ready to be decoded, and what becomes of it."""

    id: str
    work: Work
    previews: bool
    latent: Latent
    picture: Picture | None = None
    upscale: UpscaleSettings | None = None
    wanted: bool = True
    seconds: dict[str, float] = field(default_factory=dict[str, float])


def prepared(
    asked: tuple[str, Work, bool], loaded: Loaded, vae: str | None
) -> tuple[Piece, tuple[int, int], Pixels | None]:
    """A work as its decoder takes it, (width, height) of the image, and what the decoder is given, if that is an image.

    Args:
        asked: id, work, and whether previews are wanted.
        loaded: its decoder.
        vae: of the service for this model.

    Raises:
        ValueError: what was sent cannot be used.
    """
    started = time.perf_counter()
    decoder, (id, work, previews) = loaded.decoder, asked
    if work.kind == "upscale":
        picture = read_picture(io.BytesIO(work.data))
        upscale = UpscaleSettings(prompt=work.prompt, seed=work.seed, steps=work.steps, **work.options)
        small = image_for(picture, decoder.scale, upscale)
        latent = latent_of(small, decoder, loaded.encoder, upscale)
        first = latent.tensor if decoder.space.is_image else small
        height, width = upscale.output_size(picture.size, decoder.scale)
        piece = Piece(id, work, previews, latent, picture, upscale)
    else:
        sigma = work.options.get("sigma")
        sent = work.pipeline is None  # what our own pipeline made is not in question
        latent = Latent.from_bytes(work.data, space=work.options.get("space"), statistics=sent)
        if latent.tensor.shape[0] != 1:
            raise ValueError(f"the latent holds {latent.tensor.shape[0]}; expected one for each request")
        latent = latent if sigma is None else latent.with_sigma(sigma)
        if decoder.space.is_image and not latent.space.is_image:
            if vae is None and latent.encoder != TINY:  # a client's file decides not what is loaded
                raise ValueError(f"a latent of {latent.encoder or latent.space.name}; this service has no VAE for it")
            latent = first_decode(latent) if vae is None else first_decode(latent, vae)
        first = latent.tensor if decoder.space.is_image else None
        factor = latent.space.factor * decoder.scale
        height, width = (side * factor for side in latent.tensor.shape[2:])
        piece = Piece(id, work, previews, latent)
    piece.seconds["prepare"] = time.perf_counter() - started
    seen = None if first is None else Pixels.of(to_pil(first.clamp(-1, 1))[0], {})
    return piece, (width, height), seen


def finished(piece: Piece, step: DecodeStep, row: int, decoder: PixelDecoder) -> Pixels:
    """The image of a piece, in that row of the last step."""
    x0, work = step.x0[row : row + 1], piece.work
    if piece.picture is not None and piece.upscale is not None:
        picture = enlarged(piece.picture, x0, decoder.scale, piece.upscale)
    else:
        picture = Picture(x0)
    settings = given(
        verb=work.kind if work.pipeline is None else "generate",
        model=work.model,
        prompt=work.prompt or None,
        seed=work.seed,
        steps=step.total,
        **work.options,
        pipeline=work.pipeline,
        **done_by(step.how, decoder.config),
    )
    metadata = NOTHING if piece.picture is None else piece.picture.metadata
    return Pixels.of(picture.pil(), settings, metadata)


def failure_of(error: BaseException) -> ServiceError:
    """What a client is told of an error: of ours what they say, of others no more than their kind."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, MemoryExhaustedError) or is_out_of_memory(error):
        return ServiceError(
            "out_of_memory", "the device has too little memory left for this image; ask for a smaller one"
        )
    if isinstance(error, ValueError):
        line = first_line_of(error)
        field = re.match(r"(\w+)=", line)  # as our errors begin
        return ServiceError("unprocessable", line, field and field[1])
    logger.error("a work failed", exc_info=error)
    return ServiceError("internal", f"the decoder failed ({type(error).__name__})")


def preview_of(x0: Tensor) -> str:
    """An estimate (3,H,W) as a small WebP, in a data URL."""
    shrink = -(-max(x0.shape[1:]) // PREVIEW)
    image = to_pil(F.avg_pool2d(x0[None], shrink) if min(x0.shape[1:]) >= shrink > 1 else x0[None])[0]
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=75, method=0)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
