"""Images out of files: as PIL, or with all that belongs to them (`Picture`). `tensors`, `writing` and `metadata` do the
rest, and are offered here too.

PIL images are RGB, 8 bit, sRGB. Tensors are (B, 3, H, W) in [-1, 1]; B batch, H,W pixels.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pixdec.io.files import files_below, reason_of
from pixdec.io.metadata import exif_of, metadata_of, settings_in
from pixdec.io.tensors import pad_to_multiple, resize, to_pil, to_tensor
from pixdec.io.writing import MAX_SIDE, WRITABLE, Picture, output_format, save_image, save_picture

MAX_PIXELS = 2**27  # larger images are not read, which is seen from their header: a small file can claim any size

READABLE = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".tga"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)

# EXIF's orientation → whether rows and columns change places, then which of them are reversed: rows, columns.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# Several frames in these are not an animation: a preview or depth map beside the photograph, layers beside the whole.
NEVER_ANIMATED = frozenset({"MPO", "PSD"})


def read_image(file: str | Path | BinaryIO, *, name: str | None = None) -> Image.Image:
    """Read a file, or a stream that can seek, as RGB, 8 bit, upright.

    `name` is what messages call it; None: its path, or "the image" for a stream.

    EXIF rotation is applied; an embedded color profile is converted to sRGB; CMYK, palette, grey and 16-bit images
    (value / 257, rounded) are converted. Of an animation the first frame is read, and transparency is composited on
    white, each with a `UserWarning`. `read_picture` keeps transparency and 16 bits.

    Raises:
        ValueError: one line: missing, truncated, not an image, larger than MAX_SIDE a side or MAX_PIXELS in all (found
            from the header, before any pixel is decoded), or of a kind without an agreed range (floating point).
    """
    name = name or _name_of(file)
    with _loaded(file, name) as image:
        colors, alpha = _to_srgb(image)
        if alpha is not None and cast("tuple[int, int]", alpha.getextrema())[0] < 255:
            warnings.warn(f"{name}: its transparency is composited on white", UserWarning, stacklevel=2)
            colors = Image.composite(colors, Image.new("RGB", colors.size, "white"), alpha)
        if _orientation(image) in _TURNS:
            return Image.fromarray(_upright(np.asarray(colors), image))
        return colors


def read_picture(file: str | Path | BinaryIO) -> Picture:
    """As `read_image`, with transparency, 16 bits a channel and metadata.

    Of images with 16 bits a channel and another color profile than sRGB, colors are converted with 8 bits, with a note.

    Raises:
        ValueError: as `read_image`.
    """
    name = _name_of(file)
    with _loaded(file, name) as image:
        metadata, deep = metadata_of(image), _is_deep(image)
        values = _values_of_16_bits(image, file) if deep and not _foreign_profile(image) else None
        if values is None:
            if deep:
                why = "of another color profile than sRGB" if _foreign_profile(image) else "stored in an unusual way"
                warnings.warn(f"{name}: 16 bits a channel, {why}: read with 8", UserWarning, stacklevel=2)
            colors, opacity = _to_srgb(image)
            merged = colors if opacity is None else Image.merge("RGBA", (*colors.split(), opacity))
            values = np.asarray(merged)
        most = 65535 if values.dtype == np.uint16 else 255
        tensor = torch.from_numpy(_upright(values, image).astype(np.float32)).permute(2, 0, 1)[None]
        color, alpha = tensor[:, :3] / (most / 2) - 1, tensor[:, 3:] / most
        is_opaque = alpha.numel() == 0 or bool((alpha == 1).all())
        return Picture(color, None if is_opaque else alpha, 16 if deep else 8, metadata)


def image_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """The stored sides (width, height) of an image file, read from its header: EXIF rotation may swap them.

    Raises:
        ValueError: as `read_image`, as far as the header tells.
    """
    with _open(file, _name_of(file)) as image:
        return image.size


def upright_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) as `read_image` would give them, read from the header; (0, 0) if there is no image in it."""
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception:  # Pillow's parsers raise many kinds on damaged headers
        return 0, 0


def images_below(folder: Path, what: str = "images", output: Path | None = None) -> list[Path]:
    """The images below a folder, as `files_below` has them, without what earlier runs wrote below `output`.

    Raises:
        ValueError: there is no such folder, or no image in it; `what` is what it was to hold.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such file or folder of {what}")
    earlier = output.resolve() if output is not None and folder.resolve() in output.resolve().parents else None
    found = [name for name in files_below(folder, READABLE) if earlier not in (folder / name).resolve().parents]
    if not found:
        raise ValueError(f"{folder}: no {what} in this folder; looked for {', '.join(sorted(READABLE))}")
    return found


def count_frames(file: str | Path | BinaryIO) -> int:
    """The number of frames of an animation (or pages of a TIFF); 1 for a picture, and for what cannot be read."""
    try:
        with Image.open(file) as image:
            return _frames(image)
    except Exception:  # as above
        return 1


def read_settings(path: str | Path) -> dict[str, object]:
    """The settings `save_image` wrote into the metadata of a file; empty if there are none.

    Raises:
        ValueError: the file is missing or not an image.
    """
    with _open(path, str(path), pixels=MAX_SIDE**2) as image:  # nothing but the metadata is read
        return settings_in(image)


def _name_of(file: str | Path | BinaryIO) -> str:
    return str(file) if isinstance(file, str | Path) else "the image"


@contextmanager
def _loaded(file: str | Path | BinaryIO, name: str) -> Generator[Image.Image]:
    """An image with its pixels. Whatever goes wrong with it is a ValueError of one line: Pillow's decoders, and what it
    looks up on demand (frames, palettes, metadata), raise many kinds on damaged files."""
    with _open(file, name) as image:
        try:
            tiles = list(cast("Any", image).tile)
            image.load()
            cast("Any", image).stored_as = tiles  # `load` forgets it
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"{name}: the {image.format} image is truncated or damaged ({reason_of(error)})"
            ) from error
        if (frames := _frames(image)) > 1:
            warnings.warn(f"{name}: animated, {frames} frames; the first one is used", UserWarning, stacklevel=4)
        try:
            yield image
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{name}: {reason_of(error)}") from error


def _frames(image: Image.Image) -> int:
    try:
        return 1 if image.format in NEVER_ANIMATED else int(getattr(image, "n_frames", 1))
    except Exception:  # what follows the first image is damaged
        return 1


def _upright(values: np.ndarray[Any, Any], stored: Image.Image) -> np.ndarray[Any, Any]:
    """Values (H,W,C) of an image as it is stored, turned as its EXIF says."""
    swapped, down, across = _TURNS.get(_orientation(stored), (False, False, False))
    values = values.swapaxes(0, 1) if swapped else values
    return values[:: -1 if down else 1, :: -1 if across else 1]


def _open(file: str | Path | BinaryIO, name: str, *, pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a file or stream lazily, no pixel decoded, within the limits; every failure is a ValueError of one line."""
    limit = f"the limit is {MAX_SIDE} a side and {pixels} in all"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are judged below, and of corrupt metadata
            image = _identified(file, bombs=pixels > MAX_PIXELS)
    except FileNotFoundError as error:
        raise ValueError(f"{name}: there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"{name}: it is a folder, not an image") from error
    except UnidentifiedImageError as error:
        size = Path(file).stat().st_size if isinstance(file, str | Path) else file.seek(0, io.SEEK_END)
        why = "the file is empty" if size == 0 else "not an image, or of a format unknown here"
        raise ValueError(f"{name}: {why}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: too many pixels, {limit}; shrink or crop it first ({reason_of(error)})") from error
    except Exception as error:  # Pillow's parsers raise many kinds on damaged headers
        raise ValueError(f"{name}: cannot be read as an image ({reason_of(error)})") from error
    if max(image.size) > MAX_SIDE or image.width * image.height > pixels:
        image.close()
        raise ValueError(f"{name}: {image.width}x{image.height} pixels; {limit}; shrink or crop it first")
    return image


def _identified(file: str | Path | BinaryIO, *, bombs: bool) -> Image.Image:
    """`Image.open`; with `bombs`, also the large images of our own formats that it refuses."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        if not bombs or not isinstance(file, str | Path):
            raise
        kinds = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile, b"RIFF": WebPImageFile}
        with Path(file).open("rb") as stream:
            start = stream.read(4)
        kind = next((kind for mark, kind in kinds.items() if start.startswith(mark)), None)
        if kind is None:
            raise
        return kind(file)


def _to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Any mode → RGB in sRGB, as a new image without metadata, and the opacity (L) of one that has any."""
    profile: object = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("a floating-point image has no agreed range; save it with 8 or 16 bits a channel")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    colors = _converted(image, profile).convert("RGB")
    if colors is image:  # as it was opened
        colors = image.copy()
    colors.info = {}  # Pillow would save a profile that lies here
    return colors, alpha


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes I;16…, or I, which Pillow also uses for it) → L or, with a transparent value, LA."""
    values, opacity = _gray_of_16_bits(image)
    gray = Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))
    if opacity is not None:
        gray.putalpha(Image.fromarray((opacity // 257).astype(np.uint8)))
    return gray


def _gray_of_16_bits(image: Image.Image) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """The values (H,W) of 16-bit grey and, with a transparent value, the opacity, 0 or 65535."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(
            f"its integers span {values.min()} to {values.max()}, no agreed range; save it with 8 or 16 bits a channel"
        )
    transparent: object = image.info.get("transparency")
    opacity = np.where(values == transparent, 0, 65535).astype(np.uint16) if isinstance(transparent, int) else None
    return values.astype(np.uint16), opacity


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel, as far as Pillow tells."""
    return image.mode.startswith("I") or any(";16" in _raw_mode(tile) for tile in cast("Any", image).stored_as)


def _raw_mode(tile: Any) -> str:
    args: object = tile[3]
    first: object = cast("tuple[object, ...]", args)[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _values_of_16_bits(image: Image.Image, file: str | Path | BinaryIO) -> np.ndarray[Any, Any] | None:
    """(H,W,3 or 4) of 16 bits; None for what cannot be read so.

    Pillow keeps the upper byte of each value of RGB and RGBA. Told that the bytes are in the other order, it gives the
    lower ones; told that grey with opacity is RGBA of 8 bits, all four.
    """
    if image.mode.startswith("I"):
        gray, opacity = _gray_of_16_bits(image)
        return np.stack([gray] * 3 if opacity is None else [gray, gray, gray, opacity], -1)
    tiles = cast("Any", image).stored_as
    modes, mode = {_raw_mode(tile) for tile in tiles}, _raw_mode(tiles[0])
    kind, _, order = mode.partition(";16")
    if len(modes) > 1 or kind not in ("RGB", "RGBA", "LA") or order not in ("B", "L", "N"):
        return None
    if kind == "RGB" and image.has_transparency_data:  # one transparent color
        return None
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    other = "RGBA" if kind == "LA" else f"{kind};16{'L' if order == 'B' else 'B'}"
    if not isinstance(file, str | Path):
        file.seek(0)
    with _identified(file, bombs=True) as again:
        opened: Any = again
        args = [(other, *tile[3][1:]) if isinstance(tile[3], tuple) else other for tile in tiles]
        opened.tile = [tile._replace(args=each) for tile, each in zip(opened.tile, args, strict=True)]
        again.load()
        found = np.asarray(again).astype(np.uint16)
    if kind == "LA":
        gray, opacity = found[..., 0] * 256 + found[..., 1], found[..., 2] * 256 + found[..., 3]
        return np.stack([gray, gray, gray, opacity], -1)
    upper = np.asarray(image)[..., : found.shape[-1]].astype(np.uint16)
    return upper * 256 + found


def _foreign_profile(image: Image.Image) -> bool:
    """Whether there is a usable color profile other than sRGB."""
    profile: object = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return False
    try:
        return "sRGB" not in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False


def _converted(image: Image.Image, profile: object) -> Image.Image:
    """Convert RGB, L or CMYK from its embedded profile to sRGB; without a usable profile, as it is."""
    if not isinstance(profile, bytes) or not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        target = cast("Any", ImageCms).createProfile("sRGB")  # its result has no type
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or of other channels: ignored, as viewers do
        return image


def _orientation(image: Image.Image) -> int:
    value: object = exif_of(image).get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "READABLE",
    "WRITABLE",
    "Picture",
    "count_frames",
    "image_size",
    "output_format",
    "pad_to_multiple",
    "read_image",
    "read_picture",
    "read_settings",
    "resize",
    "save_image",
    "save_picture",
    "to_pil",
    "to_tensor",
    "upright_size",
]
