"""What the verbs that decode have in common: one latent into one image file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pixdec.cli.options import Dtype, check_device, torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from tqdm import tqdm

    from pixdec.decoder import PixelDecoder
    from pixdec.latents import Latent

_CAPTIONS_AT_ONCE = 64  # an embedding of one takes 1.4 MB


def check_output(target: Path, width: int, height: int) -> None:
    """Refuse an image that could not be written, or not be read again, before it is decoded.

    Raises:
        ValueError: one line that names the size and the limit.
    """
    from pixdec.images import MAX_PIXELS, MAX_SIDE, output_format

    output_format(target, width, height)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"the limit is {MAX_SIDE} a side and {MAX_PIXELS} in all"
        raise ValueError(f"{target}: the output would have {width}x{height} pixels; {limit}")


def open_decoder(
    model: str,
    device: str | None,
    dtype: Dtype | None,
    space: str | None,
    *,
    caption: str,
    steps: int | None,
    lora: str | None = None,
    lora_strength: float = 1.0,
) -> PixelDecoder:
    """Load a decoder, with a LoRA if one is named, and see that it takes this caption and so many steps, once for all
    images.

    Raises:
        ValueError: it does not, or as `PixelDecoder.from_pretrained`.
        OSError: as `PixelDecoder.from_pretrained`.
    """
    from pixdec.decoder import PixelDecoder
    from pixdec.flow import student_times

    check_device(device)
    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: expected at least 1")
    decoder = PixelDecoder.from_pretrained(model, device, torch_dtype(dtype), space=space)
    if steps is not None and decoder.model.kind == "student":
        student_times(decoder.model.times, steps, distilled=decoder.is_distilled)
    if caption and not decoder.model.needs_text:
        raise ValueError(f"--caption {caption!r}: {decoder.model.name} takes no text; leave it out")
    if lora is not None:
        decoder.load_lora(lora, lora_strength)
    elif lora_strength != 1:
        raise ValueError(f"--lora-strength {lora_strength}: of which LoRA? Name its file with --lora")
    return decoder


def lora_settings(decoder: PixelDecoder) -> dict[str, object]:
    """What an image records of the LoRA it was made with; nothing without one."""
    return {} if decoder.lora is None else {"lora": decoder.lora.name, "lora_strength": decoder.lora_strength}


def embed_captions(decoder: PixelDecoder, captions: Iterable[str], device: str | torch.device) -> None:
    """Embed into the cache, all at once, the texts that decoding with these captions asks for, if the decoder reads
    text: otherwise every decode would load the caption encoder for itself.

    Raises:
        ValueError: as `CaptionEmbeddings`.
    """
    texts = list(dict.fromkeys(captions))
    if not texts or not decoder.model.needs_text:
        return
    from pixdec.text import NEGATIVE_PROMPT, CaptionEmbeddings

    if decoder.model.kind == "teacher":  # which is guided away from it
        texts.append(NEGATIVE_PROMPT)
    embeddings = CaptionEmbeddings()
    missing = embeddings.missing(texts)
    for start in range(0, len(missing), _CAPTIONS_AT_ONCE):
        embeddings(missing[start : start + _CAPTIONS_AT_ONCE], device)


def decode_one(
    decoder: PixelDecoder,
    latent: Latent,
    *,
    caption: str,
    seed: int,
    steps: int | None,
    bar: tqdm[None],
    images: int,
) -> tuple[Tensor, int]:
    """Decode a batch of one, moving the bar (of a run over so many images) at every step.

    Returns:
        The image (1, 3, H, W) in [-1, 1], and the number of steps taken.
    """
    last = None
    for step in decoder.stream(latent, caption, seed=seed, steps=steps):
        bar.total = images * step.total
        bar.update()
        last = step
    assert last is not None, "a decoder takes at least one step"
    return last.x0, last.total
