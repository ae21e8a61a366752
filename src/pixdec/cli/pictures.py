"""What `upscale` and `decode` have in common: one latent into one image file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pixdec.cli.options import Dtype, check_device, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from pixdec.decoder import PixelDecoder
    from pixdec.latents import Latent


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
    model: str, device: str | None, dtype: Dtype | None, space: str | None, *, caption: str, steps: int | None
) -> PixelDecoder:
    """Load a decoder and see that it takes this caption and so many steps, once for all images.

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
    return decoder


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
