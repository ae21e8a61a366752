"""Decoders as those who make many images need them: what cannot be is refused before the first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from pixdec.decoder import PixelDecoder
from pixdec.generation.settings import DecodingSettings
from pixdec.inference.config import InferenceConfig
from pixdec.inference.sizes import Size, check_tile, has_shape_of, nearest
from pixdec.io.arguments import whole
from pixdec.io.images import MAX_SIDE, output_format
from pixdec.sampling.flow import student_times
from pixdec.text import NEGATIVE_PROMPT, CaptionEmbeddings

_PROMPTS_AT_ONCE = 64  # an embedding of one takes 1.4 MB


def open_decoder(
    model: str,
    by: DecodingSettings,
    config: InferenceConfig,
    *,
    steps: int | None = None,
    revision: str | None = None,
) -> PixelDecoder:
    """Load a decoder, with a LoRA if one is named, and see that it takes so many steps and such tiles.

    Raises:
        ValueError: it does not, or as `PixelDecoder.from_pretrained`.
        OSError: as `PixelDecoder.from_pretrained`.
    """
    if steps is not None:
        whole("steps", steps)
    decoder = PixelDecoder.from_pretrained(
        model,
        by.device,
        None if by.dtype is None else getattr(torch, by.dtype),
        space=by.space,
        config=config,
        revision=revision,
    )
    if steps is not None and decoder.model.kind == "student":
        student_times(decoder.model.times, steps)
    if by.lora is not None:
        decoder.load_lora(by.lora, by.lora_strength)
    if config.tile is not None:
        check_tile(config.tile, decoder.network.patch)
    if config.memory is None and decoder.device.type != "meta":
        decoder.prepare()
    return decoder


def check_output(target: Path, height: int, width: int, way_out: str = "") -> None:
    """Refuse an image that could not be written, before it is decoded.

    Raises:
        ValueError: one line that names the size, the limit and, if one is known, the way out.
    """
    output_format(target, width, height)
    if max(width, height) > MAX_SIDE:
        limit = f"the limit is {MAX_SIDE} a side{way_out}"
        raise ValueError(f"{target}: the output would have {width}x{height} pixels; {limit}")


def check_shape(size: Size, image: Size) -> None:
    """Refuse a (height, width) that an image of (height, width) would have to be distorted for.

    Raises:
        ValueError: one line that names sizes of the right shape.
    """
    if not has_shape_of(size, image):
        sizes = (size, image, *nearest(size, image))
        asked, own, *others = (f"{width}x{height}" for height, width in sizes)
        raise ValueError(f"size={asked}: the image has the shape of {own}; ask for {' or '.join(others)}, and crop it")


def embed_prompts(decoder: PixelDecoder, prompts: Iterable[str], device: str | torch.device) -> None:
    """Embed into the cache, all at once, the texts that decoding with these prompts asks for, if the decoder reads
    text: otherwise every decode would load the caption encoder for itself.

    Raises:
        ValueError: as `CaptionEmbeddings`.
    """
    texts = list(dict.fromkeys(prompts))
    if not texts or not decoder.model.needs_text:
        return
    if decoder.model.kind == "teacher":  # which is guided away from it
        texts.append(NEGATIVE_PROMPT)
    embeddings = CaptionEmbeddings()
    missing = embeddings.missing(texts)
    for start in range(0, len(missing), _PROMPTS_AT_ONCE):
        embeddings(missing[start : start + _PROMPTS_AT_ONCE], device)
