"""Images out of memory: what a shard holds is bytes, not files."""

import io
from pathlib import Path

from PIL import ExifTags, Image

from pixdec.io.images import NEVER_ANIMATED, read_image


def decode_image(data: bytes, name: str) -> Image.Image:
    """The whole image as `pixdec.io.images.read_image` gives it: RGB, 8 bit, upright, sRGB.

    Raises:
        ValueError: one line that begins with `name`: empty, truncated, not an image, too large.
    """
    return read_image(io.BytesIO(data), name=name)


def upright_size(data: bytes | Path) -> tuple[int, int]:
    """(width, height) as `decode_image` would give them, read from the header; (0, 0) if there is no image in it."""
    try:
        with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception:  # Pillow's parsers raise many kinds on damaged headers
        return 0, 0


def frames(data: bytes | Path) -> int:
    """The number of frames of an animation (or pages of a TIFF); 1 for a picture, and for what cannot be read."""
    try:
        with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
            return 1 if image.format in NEVER_ANIMATED else int(getattr(image, "n_frames", 1))
    except Exception:  # as above
        return 1
