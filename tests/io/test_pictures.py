"""Pictures: transparency, 16 bits and metadata go in, and come out again."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from pixdec.io.images import Picture, read_image, read_picture, read_settings, save_picture
from pixdec.io.metadata import NOTHING
from pixdec.io.tensors import filled

RNG = np.random.default_rng(0)


def deep_png(values: np.ndarray) -> bytes:
    """(H,W,C) of 16 bits as a PNG, some rows filtered."""
    kinds = {1: 0, 2: 4, 3: 2, 4: 6}
    height, width, channels = values.shape
    rows, above = b"", np.zeros(width * channels * 2, np.uint8)
    for number, row in enumerate(values):
        line = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
        rows += b"\2" + (line - above).tobytes() if number % 2 else b"\0" + line.tobytes()
        above = line

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kinds[channels], 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def deep_tiff(values: np.ndarray, order: str) -> bytes:
    """(H,W,3) of 16 bits as a TIFF without compression."""
    height, width, _ = values.shape
    data = values.astype(f"{order}u2").tobytes()
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(data))]
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        ifd += struct.pack(f"{order}HHI", tag, kind, count) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = mark + struct.pack(f"{order}I", 14 + len(data)) + struct.pack(f"{order}3H", 16, 16, 16)
    return start + data + ifd + bytes(4)


def back(picture: Picture, most: int) -> np.ndarray:
    """(H,W,3 or 4) of integers."""
    parts = [(picture.color + 1) * (most / 2)] + ([] if picture.alpha is None else [picture.alpha * most])
    return torch.cat(parts, 1)[0].permute(1, 2, 0).double().round().numpy().astype(int)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_come_out_as_they_went_in(tmp_path: Path, channels: int) -> None:
    values = RNG.integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    (tmp_path / "in.png").write_bytes(deep_png(values))
    picture = read_picture(tmp_path / "in.png")
    wanted = values if channels > 2 else np.concatenate([values[..., :1]] * 3 + [values[..., 1:]], -1)
    assert picture.bits == 16
    assert np.array_equal(back(picture, 65535), wanted)
    assert np.array_equal(back(read_picture(io.BytesIO((tmp_path / "in.png").read_bytes())), 65535), wanted)
    save_picture(picture, tmp_path / "out.png", settings={"a": 1}, bits=16)
    assert (tmp_path / "out.png").read_bytes()[24] == 16
    assert np.array_equal(back(read_picture(tmp_path / "out.png"), 65535), wanted)
    assert read_settings(tmp_path / "out.png") == {"a": 1}


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_a_tiff(order: str) -> None:
    values = RNG.integers(0, 65536, (6, 5, 3)).astype(np.uint16)
    picture = read_picture(io.BytesIO(deep_tiff(values, order)))
    assert picture.bits == 16
    assert np.array_equal(back(picture, 65535), values)


def test_16_bits_of_another_profile_are_read_with_8_and_said(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = zlib.compress(profile.replace("sRGB".encode("utf-16-be"), "XXXX".encode("utf-16-be")))
    chunk = b"iCCP" + b"x\0\0" + data
    png = deep_png(RNG.integers(0, 65536, (2, 2, 3)).astype(np.uint16))
    whole = png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    with pytest.warns(UserWarning, match="16 bits a channel, of another color profile than sRGB: read with 8"):
        read_picture(io.BytesIO(whole))


def test_16_bits_need_a_png(tmp_path: Path) -> None:
    picture = Picture(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"16 bits a channel can be written to a \.png only"):
        save_picture(picture, tmp_path / "out.jpg", settings={}, bits=16)
    with pytest.raises(ValueError, match="bits=12"):
        save_picture(picture, tmp_path / "out.png", settings={}, bits=12)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparency_stays(tmp_path: Path, suffix: str) -> None:
    values = RNG.integers(1, 256, (8, 6, 4), dtype=np.uint8)  # lossless WebP may forget colors of transparent pixels
    Image.fromarray(values).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    assert np.array_equal(back(picture, 255), values)
    save_picture(picture, tmp_path / f"out{suffix}", settings={})
    assert np.array_equal(np.asarray(Image.open(tmp_path / f"out{suffix}")), values)
    with pytest.warns(UserWarning, match="a JPEG has no transparency; the image is on white"):
        save_picture(picture, tmp_path / "out.jpg", settings={})
    with pytest.warns(UserWarning, match="composited on white"):
        flat = np.asarray(read_image(tmp_path / "in.png")).astype(int)
    assert np.abs(back(picture.flat(), 255) - flat).max() <= 1


def test_an_opaque_image_has_no_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(tmp_path / "in.png")
    assert read_picture(tmp_path / "in.png").alpha is None


def test_transparent_pixels_take_the_colors_around_them() -> None:
    colors, alpha = torch.full((1, 3, 37, 21), -1.0), torch.zeros(1, 1, 37, 21)
    colors[..., 3:9, 4:15], alpha[..., 3:9, 4:15] = 0.5, 1
    assert torch.allclose(filled(colors, alpha), torch.tensor(0.5))
    assert torch.equal(filled(colors, alpha * 0), colors * 0)  # nothing is seen of it


def photographed() -> tuple[Image.Image, Image.Exif]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Copyright] = 6, "(c) me"
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.DateTimeOriginal] = "2020:01:02 03:04:05"
    inner[ExifTags.Base.ExifImageWidth] = inner[ExifTags.Base.ExifImageHeight] = 16
    inner[ExifTags.Base.UserComment] = b"ASCII\0\0\0a lovely day"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return Image.new("RGB", (16, 16), (90, 120, 60)), exif


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:rights="me"/></x:xmpmeta>'


@pytest.mark.parametrize("given", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_metadata_is_carried_over(tmp_path: Path, given: str, suffix: str) -> None:
    image, exif = photographed()
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
    xmp = {"pnginfo": chunks} if given == ".png" else {"xmp": XMP}
    image.save(tmp_path / f"in{given}", exif=exif, dpi=(300, 300), **xmp)
    picture = read_picture(tmp_path / f"in{given}")
    picture = replace(picture, color=picture.color.repeat(1, 1, 2, 2))
    save_picture(picture, tmp_path / f"out{suffix}", settings={"seed": 3})
    assert read_settings(tmp_path / f"out{suffix}") == {"seed": 3}
    with Image.open(tmp_path / f"out{suffix}") as out:
        found, inner = out.getexif(), out.getexif().get_ifd(ExifTags.IFD.Exif)
        assert found.get(ExifTags.Base.Orientation, 1) == 1
        assert found[ExifTags.Base.Copyright] == "(c) me"
        assert inner[ExifTags.Base.DateTimeOriginal] == "2020:01:02 03:04:05"
        assert inner[ExifTags.Base.ExifImageWidth] == 32
        assert b"a lovely day" in inner[ExifTags.Base.UserComment]
        assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        said = out.info["xmp"].encode() if isinstance(out.info["xmp"], str) else out.info["xmp"]
        assert b'tiff:Orientation="1" dc:rights="me"' in said
        if given != ".webp":  # which has no resolution of its own
            assert (out.info.get("dpi", (found.get(0x11A),))[0]) == pytest.approx(300, abs=0.1)


def test_iptc_stays_in_a_jpeg_and_is_missed_elsewhere(tmp_path: Path) -> None:
    picture = Picture(torch.zeros(1, 3, 8, 8), metadata=replace(NOTHING, iptc=b"\x1c\x02\x50\x00\x02me"))
    save_picture(picture, tmp_path / "a.jpg", settings={})
    again = read_picture(tmp_path / "a.jpg")
    assert again.metadata.iptc == picture.metadata.iptc
    with pytest.warns(UserWarning, match=r"b\.png: PNG cannot hold IPTC; left out"):
        save_picture(again, tmp_path / "b.png", settings={})


def test_texts_of_a_png(tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_text("parameters", "a fox, steps 20")
    chunks.add_text("pixdec", '{"seed": 1}')
    Image.new("RGB", (4, 4)).save(tmp_path / "in.png", pnginfo=chunks)
    picture = read_picture(tmp_path / "in.png")
    save_picture(picture, tmp_path / "out.png", settings={"seed": 2}, bits=16)
    with Image.open(tmp_path / "out.png") as out:
        assert out.info["parameters"] == "a fox, steps 20"
    assert read_settings(tmp_path / "out.png") == {"seed": 2}
    with pytest.warns(UserWarning, match=r"JPEG cannot hold texts \(parameters\); left out"):
        save_picture(picture, tmp_path / "out.jpg", settings={})


def test_damaged_files_are_refused_in_one_line() -> None:
    """A few hundred mutations of every format: read, or a ValueError."""
    chance, sources = random.Random(0), list[bytes]()
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"):
        image, exif = photographed()
        stream = io.BytesIO()
        options = {"exif": exif} if kind != "BMP" and kind != "GIF" else {}
        image.save(stream, kind, save_all=kind in ("GIF", "TIFF"), **options)
        sources.append(stream.getvalue())
    sources.append(deep_tiff(np.zeros((4, 4, 3), np.uint16), "<"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(700):
            data = bytearray(sources[number % len(sources)])
            for _ in range(chance.choice((1, 2, 8))):
                data[chance.randrange(len(data))] = chance.randrange(256)
            if chance.random() < 0.2:
                del data[chance.randrange(len(data)) :]
            for read in (read_picture, read_image):
                try:
                    read(io.BytesIO(bytes(data)))
                except ValueError as error:
                    assert "\n" not in str(error)


@pytest.mark.parametrize("error", [IndexError("x"), TypeError("x"), SyntaxError("x")])
def test_a_damaged_count_of_frames_is_no_reason_to_refuse(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> int:
        raise error

    Image.new("RGB", (4, 4)).save(tmp_path / "in.gif")
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.n_frames", property(fails))
    assert read_picture(tmp_path / "in.gif").size == (4, 4)
    assert read_image(tmp_path / "in.gif").size == (4, 4)


def test_exif_gets_no_parts_that_it_had_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Copyright] = "(c) me"
    Image.new("RGB", (4, 4)).save(tmp_path / "in.jpg", exif=exif)
    save_picture(read_picture(tmp_path / "in.jpg"), tmp_path / "out.png", settings={})
    with Image.open(tmp_path / "out.png") as out:
        assert dict(out.getexif()) == {ExifTags.Base.Copyright: "(c) me"}


def test_a_picture_is_upright(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(tmp_path / "in.png", exif=exif)
        assert np.array_equal(back(read_picture(tmp_path / "in.png"), 255), np.asarray(read_image(tmp_path / "in.png")))
