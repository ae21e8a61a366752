"""Images at the border: files ↔ PIL ↔ tensors, and resizing.

PIL images are RGB, 8 bit, sRGB. Tensors are (B, 3, H, W) in [-1, 1]; B batch, H,W pixels.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from pixdec.io.files import reason_of, replacing

MAX_SIDE = 2**14  # pixels; squares of this side are written
MAX_PIXELS = 2**27  # larger images are not read, which is seen from their header: a small file can claim any size
_BAND = 2**22  # pixels of an image that are converted at a time

READABLE = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
WRITABLE: Mapping[str, str] = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}  # suffix → format
_FORMAT_MAX_SIDE = {"PNG": 2**31 - 1, "WEBP": 16383, "JPEG": 65535}

_ASCII_COMMENT = b"ASCII\0\0\0"  # EXIF's UserComment begins with its character code
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Several frames in these are not an animation: a preview or depth map beside the photograph, layers beside the whole.
NEVER_ANIMATED = frozenset({"MPO", "PSD"})


def read_image(file: str | Path | BinaryIO, *, name: str | None = None) -> Image.Image:
    """Read a file, or a stream that can seek, as RGB, 8 bit, upright.

    `name` is what messages call it; None: its path, or "the image" for a stream.

    EXIF rotation is applied; transparency is composited on white; an embedded colour profile is converted to sRGB;
    CMYK, palette, grey and 16-bit images (value / 257, rounded) are converted. Of an animation the first frame is
    read, with a `UserWarning`.

    Raises:
        ValueError: one line: missing, truncated, not an image, larger than MAX_SIDE a side or MAX_PIXELS in all (found
            from the header, before any pixel is decoded), or of a kind without an agreed range (floating point).
    """
    name = name or (str(file) if isinstance(file, str | Path) else "the image")
    with _open(file, name) as image:
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise many kinds on damaged files
            raise ValueError(
                f"{name}: the {image.format} image is truncated or damaged ({reason_of(error)})"
            ) from error
        frames = int(getattr(image, "n_frames", 1))
        if frames > 1 and image.format not in NEVER_ANIMATED:
            warnings.warn(f"{name}: animated, {frames} frames; the first one is used", UserWarning, stacklevel=2)
        turn = _ORIENTATIONS.get(_orientation(image))
        try:
            rgb = _to_rgb(image)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return rgb if turn is None else rgb.transpose(turn)


def image_size(path: str | Path) -> tuple[int, int]:
    """The stored sides (width, height) of an image file, read from its header: EXIF rotation may swap them.

    Raises:
        ValueError: as `read_image`, as far as the header tells.
    """
    with _open(path, str(path)) as image:
        return image.size


def save_image(image: Image.Image, path: str | Path, *, settings: Mapping[str, object]) -> None:
    """Write RGB to `path` as PNG, WebP or JPEG, by its suffix, whole or not at all (`files.replacing`).

    `settings` (JSON) goes into the metadata, where `read_settings` finds it: a PNG text chunk "pixdec"; in WebP and
    JPEG the EXIF UserComment {"pixdec": settings}. WebP is lossless; JPEG has quality 95 without chroma subsampling.

    Raises:
        ValueError: not RGB, the suffix is none of these, or the format cannot hold an image this large.
        OSError: `path` cannot be written.
    """
    if image.mode != "RGB":
        raise ValueError(f"image of mode {image.mode}; expected RGB: convert it with image.convert('RGB')")
    kind = output_format(path, image.width, image.height)
    encoded = io.BytesIO()  # whole in memory first: Pillow reports a full disk as "encoder error -2"
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_text("pixdec", json.dumps(settings))
        image.save(encoded, kind, pnginfo=chunks)
    else:
        exif = Image.Exif()
        comment = _ASCII_COMMENT + json.dumps({"pixdec": settings}).encode("ascii")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        if kind == "WEBP":
            image.save(encoded, kind, lossless=True, exif=exif)
        else:
            image.save(encoded, kind, quality=95, subsampling=0, exif=exif)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def output_format(path: str | Path, width: int, height: int) -> str:
    """The format, "PNG", "WEBP" or "JPEG", that `save_image` writes an image of this size to `path` in.

    Raises:
        ValueError: the suffix names none of them, or the format cannot hold an image this large.
    """
    kind = WRITABLE.get(Path(path).suffix.lower())
    if kind is None:
        suffix = Path(path).suffix or "a file without a suffix"
        raise ValueError(f"{path}: cannot write {suffix}; expected one of {', '.join(WRITABLE)}")
    if max(width, height) > _FORMAT_MAX_SIDE[kind]:
        raise ValueError(f"{path}: {width}x{height} pixels; {kind} holds {_FORMAT_MAX_SIDE[kind]} a side, write a .png")
    return kind


def read_settings(path: str | Path) -> dict[str, object]:
    """The settings `save_image` wrote into the metadata of a file; empty if there are none.

    Raises:
        ValueError: the file is missing or not an image.
    """
    with _open(path, str(path), pixels=MAX_SIDE**2) as image:  # nothing but the metadata is read
        if image.format == "PNG":
            return _json_object(image.info.get("pixdec"))
        comment: object = _exif(image).get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        if not isinstance(comment, bytes) or not comment.startswith(_ASCII_COMMENT):
            return {}
        return _json_object(_json_object(comment.removeprefix(_ASCII_COMMENT)).get("pixdec"))


def to_tensor(images: Image.Image | Sequence[Image.Image]) -> Tensor:
    """RGB images of one size → (B, 3, H, W) float32 in [-1, 1]: value / 127.5 - 1.

    Raises:
        ValueError: no image, not RGB, or of several sizes.
    """
    batch = [images] if isinstance(images, Image.Image) else list(images)
    if not batch:
        raise ValueError("no images; expected one or more of the same size")
    for image in batch:
        if image.mode != "RGB":
            raise ValueError(f"image of mode {image.mode}; expected RGB: convert it with image.convert('RGB')")
        if image.size != batch[0].size:
            raise ValueError(f"images of {_by(batch[0].size)} and {_by(image.size)} pixels; a batch has one size")
    values = np.stack([np.asarray(image) for image in batch])  # (B,H,W,3)
    return torch.as_tensor(values).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) → B images: round((x + 1) · 127.5), with values outside [-1, 1] clamped to it.

    Raises:
        ValueError: another shape, or NaN or infinite values.
    """
    _check_images(images)
    return [_picture(image) for image in images.detach()]


def _picture(image: Tensor) -> Image.Image:
    """(3,H,W) → an image, some rows at a time: whole float copies of a large one would take gigabytes."""
    height, width = image.shape[1:]
    picture, rows = Image.new("RGB", (width, height)), max(1, _BAND // width)
    for top in range(0, height, rows):
        band = image[:, top : top + rows]
        if not bool(band.isfinite().all()):
            raise ValueError(f"images of shape {tuple(image.shape)} hold NaN or infinite values; nothing can show them")
        values = band.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
        picture.paste(Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy()), (0, top))
    return picture


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """Extend (B, 3, H, W) on the right and below, until both sides are multiples of `factor`: what encoders ask for.

    By reflection, so that the border looks like more of the image; where a side is too short to reflect that much, by
    repeating its last pixels. Of an image that is decoded `scale` times larger, [..., : H·scale, : W·scale] is wanted.
    """
    bottom, right = -images.shape[2] % factor, -images.shape[3] % factor
    images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < images.shape[3] else "replicate")
    return F.pad(images, (0, 0, 0, bottom), mode="reflect" if bottom < images.shape[2] else "replicate")


def resize(images: Tensor, height: int, width: int, *, how: Literal["bicubic", "lanczos"] = "bicubic") -> Tensor:
    """Resize (B, 3, H, W) → (B, 3, height, width), antialiased, in float32; device and dtype are kept.

    Sharp edges overshoot: the result may leave [-1, 1] a little, and is not clamped.

    "bicubic" is Keys' kernel with a = -1/2, on the images' device; "lanczos" has three lobes and runs on the CPU. Both
    agree with Pillow's filters of those names, without its rounding to 8 bits.

    Raises:
        ValueError: another shape, a side below 1, or another `how`.
    """
    _check_images(images)
    if height < 1 or width < 1:
        raise ValueError(f"size {height}x{width}: both sides must be at least 1")
    if how == "bicubic":
        source = images.float().cpu() if images.device.type == "mps" else images.float()  # which has no such kernel
        resized = F.interpolate(source, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return resized.to(images.device, images.dtype)
    if how == "lanczos":
        resized = [_lanczos(plane, height, width) for plane in images.detach().float().cpu().flatten(0, 1)]
        return torch.stack(resized).view(*images.shape[:2], height, width).to(images.device, images.dtype)
    raise ValueError(f"how={how!r}; expected 'bicubic' or 'lanczos'")


def _lanczos(plane: Tensor, height: int, width: int) -> Tensor:  # (H,W) → (height,width)
    resized = Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.LANCZOS)  # mode F: float32
    return torch.as_tensor(np.array(resized))


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W), none of them 0")


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
        raise ValueError(f"{name}: too many pixels, {limit} ({reason_of(error)})") from error
    except Exception as error:  # Pillow's parsers raise many kinds on damaged headers
        raise ValueError(f"{name}: cannot be read as an image ({reason_of(error)})") from error
    if max(image.size) > MAX_SIDE or image.width * image.height > pixels:
        image.close()
        raise ValueError(f"{name}: {_by(image.size)} pixels; {limit}")
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


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB, as a new image without metadata."""
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
    colours = _to_srgb(image, profile).convert("RGB")
    if alpha is not None:
        colours = Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)
    colours.info = {}  # Pillow would save a profile that lies here
    return colours


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes I;16…, or I, which Pillow also uses for it) → L or, with a transparent value, LA."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(
            f"its integers span {values.min()} to {values.max()}, no agreed range; save it with 8 or 16 bits a channel"
        )
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent: object = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
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


def _exif(image: Image.Image) -> Image.Exif:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, of corrupt EXIF data
            return image.getexif()
    except (OSError, SyntaxError, ValueError, LookupError, struct.error):  # no reason to refuse the pixels
        return Image.Exif()


def _orientation(image: Image.Image) -> int:
    value: object = _exif(image).get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def _json_object(text: object) -> dict[str, object]:
    """A JSON object, given as such or as text; empty if it is none."""
    if isinstance(text, str | bytes):
        try:
            text = json.loads(text)
        except ValueError:
            return {}
    return cast("dict[str, object]", text) if isinstance(text, dict) else {}


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "READABLE",
    "WRITABLE",
    "image_size",
    "output_format",
    "pad_to_multiple",
    "read_image",
    "read_settings",
    "resize",
    "save_image",
    "to_pil",
    "to_tensor",
]
