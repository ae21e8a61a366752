"""Images into files: PNG (8 or 16 bits), WebP or JPEG, whole or not at all."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pixdec.io.files import write_whole
from pixdec.io.metadata import NOTHING, Metadata, save_options
from pixdec.io.tensors import over_white, to_pil

MAX_SIDE = 2**14  # pixels; squares of this side are written
# suffix → format
WRITABLE: Mapping[str, str] = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG"}
_FORMAT_MAX_SIDE = {"PNG": 2**31 - 1, "WEBP": 16383, "JPEG": 65535}


@dataclass(frozen=True)
class Picture:
    """An image with all that belongs to it.

    Attributes:
        color: (1, 3, H, W) float32 in [-1, 1], sRGB, upright.
        alpha: (1, 1, H, W) float32 in [0, 1], the opacity; None for an opaque image. Colors are not multiplied by it.
        bits: 8 or 16 a channel, as in the file.
        metadata: what else the file says.
    """

    color: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    metadata: Metadata = NOTHING

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.color.shape[2], self.color.shape[3]

    def flat(self) -> Picture:
        """The image without transparency, on a white ground."""
        if self.alpha is None:
            return self
        return replace(self, color=over_white(self.color, self.alpha), alpha=None)

    def pil(self) -> Image.Image:
        """The image with 8 bits a channel: RGB, or RGBA."""
        image = to_pil(self.color)[0]
        if self.alpha is not None:
            image.putalpha(Image.fromarray(_integers(self.alpha[0, 0], 255)))
        return image


def save_picture(picture: Picture, path: str | Path, *, settings: Mapping[str, object], bits: int = 8) -> None:
    """Write a picture as `save_image` does, with its transparency and metadata; `bits`: 8, or 16 in a PNG.

    A JPEG has no transparency: it gets the image on white, with a note.

    Raises:
        ValueError: as `save_image`; 16 bits in another format.
        OSError: `path` cannot be written.
    """
    kind = output_format(path, picture.size[1], picture.size[0])
    check_bits(path, bits)
    if kind == "JPEG" and picture.alpha is not None:
        warnings.warn(f"{path}: a JPEG has no transparency; the image is on white", UserWarning, stacklevel=2)
        picture = picture.flat()
    if bits == 8:
        save_image(picture.pil(), path, settings=settings, metadata=picture.metadata)
        return
    encoded = io.BytesIO()
    for part in _deep_png(
        picture, _options(path, picture.metadata, settings, kind, (picture.size[1], picture.size[0]))
    ):
        encoded.write(part)
    _put(encoded, path)


def save_image(
    image: Image.Image, path: str | Path, *, settings: Mapping[str, object], metadata: Metadata = NOTHING
) -> None:
    """Write RGB or RGBA to `path` as PNG, WebP or JPEG, by its suffix, whole or not at all (`files.replacing`).

    `settings` (JSON) goes into the metadata, where `read_settings` finds it: a PNG text chunk "pixdec"; in WebP and
    JPEG the EXIF UserComment {"pixdec": settings}. WebP is lossless; JPEG has quality 95 without chroma subsampling.
    What the format cannot hold of `metadata` is said in a note.

    Raises:
        ValueError: neither RGB nor RGBA, or RGBA for JPEG; the suffix is none of these, or the format cannot hold an
            image this large.
        OSError: `path` cannot be written.
    """
    kind = output_format(path, image.width, image.height)
    _put(encode_image(image, kind, settings=settings, metadata=metadata, name=str(path)), path)


def encode_image(
    image: Image.Image,
    kind: str,
    *,
    settings: Mapping[str, object],
    metadata: Metadata = NOTHING,
    quality: int | None = None,
    name: str = "the image",
) -> io.BytesIO:
    """RGB or RGBA as the bytes of a "PNG", "WEBP" or "JPEG", as `save_image` writes them; `quality` 0 to 100 makes a
    WebP lossy, and a JPEG smaller. `name` is what notes call it.

    Raises:
        ValueError: neither RGB nor RGBA, or RGBA for JPEG.
    """
    if image.mode not in (("RGB",) if kind == "JPEG" else ("RGB", "RGBA")):
        raise ValueError(f"image of mode {image.mode}; expected RGB: convert it with image.convert('RGB')")
    encoded = io.BytesIO()  # whole in memory first: Pillow reports a full disk as "encoder error -2"
    # Without loss WebP's "quality" is its effort: the least takes a fifteenth of the time, for a tenth more bytes.
    webp = {"lossless": True, "method": 0, "quality": 0}
    how = {"PNG": {}, "WEBP": webp, "JPEG": {"quality": 95, "subsampling": 0}}[kind]
    if quality is not None and kind != "PNG":
        how = {"quality": quality}
    image.save(encoded, kind, **how, **_options(name, metadata, settings, kind, image.size))
    return encoded


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


def check_bits(path: str | Path, bits: int) -> None:
    """See that a file can have so many bits a channel.

    Raises:
        ValueError: neither 8 nor 16, or 16 in a file that is no PNG.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits={bits}: expected 8 or 16 a channel")
    if bits == 16 and WRITABLE.get(Path(path).suffix.lower()) != "PNG":
        raise ValueError(f"{path}: 16 bits a channel can be written to a .png only")


def _options(
    path: str | Path, metadata: Metadata, settings: Mapping[str, object], kind: str, size: tuple[int, int]
) -> dict[str, Any]:
    options, lost = save_options(metadata, settings, kind, size)
    if lost:
        warnings.warn(f"{path}: {kind} cannot hold {', '.join(lost)}; left out", UserWarning, stacklevel=3)
    return options


def _put(encoded: io.BytesIO, path: str | Path) -> None:
    write_whole(path, encoded.getbuffer())


def _deep_png(picture: Picture, options: Mapping[str, Any]) -> Generator[bytes]:
    """A PNG of 16 bits a channel, which Pillow does not write, with the chunks of metadata that Pillow makes."""
    small = io.BytesIO()
    Image.new("RGB", (1, 1)).save(small, "PNG", **options)
    height, width = picture.size
    color_type = 2 if picture.alpha is None else 6
    yield small.getvalue()[:8]
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    yield from (_chunk(kind, data) for kind, data in _chunks(small.getvalue()) if kind[:1].islower())
    channels = 3 if picture.alpha is None else 4
    packer, above = zlib.compressobj(6), np.zeros(width * channels * 2, np.uint8)
    for row in range(height):
        values = _integers(picture.color[0, :, row].T, 65535, low=-1)  # (W,3)
        if picture.alpha is not None:
            values = np.concatenate((values, _integers(picture.alpha[0, :, row].T, 65535)), axis=1)
        line = np.frombuffer(values.astype(">u2").tobytes(), np.uint8)
        if data := packer.compress(b"\2" + (line - above).tobytes()):  # filter 2: the difference from the row above
            yield _chunk(b"IDAT", data)
        above = line
    yield _chunk(b"IDAT", packer.flush())
    yield _chunk(b"IEND", b"")


def _integers(values: Tensor, most: int, low: float = 0.0) -> np.ndarray[Any, Any]:
    """[low, 1] → [0, most], rounded."""
    scaled = ((values.detach().double().clamp(low, 1) - low) * (most / (1 - low))).round_().cpu().numpy()
    return scaled.astype(np.uint8 if most == 255 else np.uint16)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(png: bytes) -> Generator[tuple[bytes, bytes]]:
    place = 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length
