"""images: every kind of file in, RGB tensors and back, three formats out with their settings."""

from __future__ import annotations

import io
import json
import resource
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from meter import Meter
from pixdec.io import images, tensors
from pixdec.io.images import image_size, output_format, read_image, read_settings, resize, save_image, to_pil, to_tensor

SETTINGS: dict[str, object] = {"model": "pixdec-nano", "seed": 3, "caption": "Zürich\n\"雪\" 'x'", "steps": None}


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    """Smooth RGB colours, so that lossy formats and colour conversions stay close."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 215, (3, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of 8-bit values."""
    return float(np.abs(pixels(one) - pixels(other)).mean())


def one_line(error: BaseException, *, names: str) -> str:
    text = str(error)
    assert "\n" not in text
    assert names in text
    return text


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# ---- reading


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", ".png", 0),
        ("RGB", ".bmp", 0),
        ("RGB", ".tif", 0),
        ("RGB", ".ppm", 0),
        ("RGB", ".jpg", 4),
        ("RGBA", ".png", 0),
        ("RGBX", ".tif", 0),
        ("YCbCr", ".tif", 3),
        ("CMYK", ".tif", 2),
        ("CMYK", ".jpg", 4),
        ("P", ".png", 16),
        ("P", ".gif", 16),
    ],
)
def test_reads_every_colour_mode(tmp_path: Path, mode: str, suffix: str, tolerance: int) -> None:
    path = tmp_path / f"in{suffix}"
    picture().convert(mode).save(path, quality=95, subsampling=0)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == (24, 16)
    assert image.info == {}
    assert distance(image, picture()) <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_grey_becomes_equal_channels(tmp_path: Path, mode: str) -> None:
    grey = picture().convert("L").convert(mode)
    grey.save(tmp_path / "in.png")
    assert np.array_equal(pixels(read_image(tmp_path / "in.png")), pixels(grey.convert("L").convert("RGB")))


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (200, 100, 0, 255))
    image.putpixel((1, 0), (200, 100, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.save(tmp_path / "in.png")
    with pytest.warns(UserWarning, match=r"in\.png: its transparency is composited on white"):
        assert pixels(read_image(tmp_path / "in.png"))[0].tolist() == [[200, 100, 0], [255] * 3, [127] * 3]


@pytest.mark.filterwarnings("ignore:.*transparency")
def test_transparent_palette_and_key_colour(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixels(read_image(tmp_path / "p.png"))[0].tolist() == [[255, 0, 0], [255] * 3]
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((1, 0), 9)
    grey.save(tmp_path / "l.png", transparency=9)
    assert pixels(read_image(tmp_path / "l.png"))[0].tolist() == [[7] * 3, [255] * 3]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"in{suffix}")
    assert pixels(read_image(tmp_path / f"in{suffix}"))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_16_bit_colour(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">3H", 0, 0x8080, 0xFFFF)
    data = png(1, 1).replace(b"\x08\x02\x00\x00\x00", b"\x10\x02\x00\x00\x00")
    start = data.index(b"IHDR")
    data = data[: start + 17] + struct.pack(">I", zlib.crc32(data[start : start + 17]))
    body = zlib.compress(rows)
    data += struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    (tmp_path / "in.png").write_bytes(data + b"\0\0\0\0IEND\xaeB`\x82")
    assert pixels(read_image(tmp_path / "in.png"))[0, 0].tolist() == [0, 128, 255]


def test_numbers_without_an_agreed_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ValueError, match="floating-point"):
        read_image(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="0 to 70000"):
        read_image(tmp_path / "i.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_rotation(tmp_path: Path, orientation: int, suffix: str) -> None:
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture().save(tmp_path / f"in{suffix}", exif=exif, quality=95, subsampling=0)
    expected = turned(pixels(picture()))
    found = pixels(read_image(tmp_path / f"in{suffix}"))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= (0 if suffix == ".png" else 4)


def test_broken_exif_does_not_hide_the_pixels(tmp_path: Path) -> None:
    picture().save(tmp_path / "in.jpg", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    assert read_image(tmp_path / "in.jpg").size == (24, 16)


def test_a_colour_profile_is_converted(tmp_path: Path) -> None:
    image = picture()
    linear = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    swapped = bytes(linear).replace(b"rXYZ", b"tmp0").replace(b"gXYZ", b"rXYZ").replace(b"tmp0", b"gXYZ")
    renamed = swapped.replace("sRGB".encode("utf-16-be"), "XXXX".encode("utf-16-be"))
    image.save(tmp_path / "swapped.png", icc_profile=renamed)  # red and green primaries change places
    expected = pixels(image)[..., [1, 0, 2]]
    assert np.abs(pixels(read_image(tmp_path / "swapped.png")) - expected).max() <= 2


@pytest.mark.parametrize("profile", ["sRGB", "broken"])
def test_srgb_and_broken_profiles_change_nothing(tmp_path: Path, profile: str) -> None:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile == "sRGB" else b"nonsense" * 20
    picture().save(tmp_path / "in.png", icc_profile=data)
    assert np.array_equal(pixels(read_image(tmp_path / "in.png")), pixels(picture()))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_the_first_frame_of_an_animation_is_read_and_said(tmp_path: Path, suffix: str) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    red.save(tmp_path / f"in{suffix}", save_all=True, append_images=[blue])
    with pytest.warns(UserWarning, match=r"in\.\w+: animated, 2 frames; the first one is used"):
        image = read_image(tmp_path / f"in{suffix}")
    red_green_blue = pixels(image)[0, 0]
    assert red_green_blue[0] > 240
    assert red_green_blue[2] < 15


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.png", None, "there is no such file"),
        ("empty.png", b"", "the file is empty"),
        ("text.png", b"hello, this is not an image\n", "not an image"),
        ("header.png", png(8, 8)[:20], "Truncated"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for read in (read_image, image_size, read_settings):
        with pytest.raises(ValueError, match=says) as caught:
            read(tmp_path / name)
        one_line(caught.value, names=name)


def test_a_stream_is_read_as_the_file(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    stream = io.BytesIO(data)
    assert np.array_equal(pixels(read_image(stream)), pixels(read_image(tmp_path / "a.png")))
    assert not stream.closed
    with (tmp_path / "a.png").open("rb") as opened:
        assert np.array_equal(pixels(read_image(opened, name="a")), pixels(picture()))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"plain text", "not an image, or of a format unknown here"),
        (png(2, 2)[:20], "cannot be read as an image"),
        (png(2, 2), "truncated or damaged"),
        (png(2**15, 2), "the limit is"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said_of_its_name(data: bytes, says: str) -> None:
    for name, called in (("shard-1/fox.png", "shard-1/fox.png"), (None, "the image")):
        with pytest.raises(ValueError, match=f"^{called}: .*{says}|^{called}: {says}") as refused:
            read_image(io.BytesIO(data), name=name)
        assert "\n" not in str(refused.value)
        assert "BytesIO" not in str(refused.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"truncated|not an image|cannot be read") as caught:
        read_image(tmp_path / f"cut{suffix}")
    one_line(caught.value, names=f"cut{suffix}")


@pytest.mark.parametrize("size", [(50_000, 10), (10, 50_000), (12_000, 12_000), (50_000, 50_000)])
def test_claims_of_many_pixels_are_refused_from_the_header(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=f"the limit is {images.MAX_SIDE} a side") as caught:
            read_image(tmp_path / "bomb.png")
    text = one_line(caught.value, names="bomb.png")
    assert f"{size[0]}x{size[1]}" in text or str(size[0] * size[1]) in text


def test_settings_are_read_of_outputs_too_large_to_read(tmp_path: Path) -> None:
    """16384 x 16384 pixels may be written; reading their settings decodes none of them."""
    largest = png(images.MAX_SIDE, images.MAX_SIDE)
    text = b"pixdec\0" + json.dumps(SETTINGS).encode()
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    (tmp_path / "large.png").write_bytes(largest[:33] + chunk + largest[33:])
    assert read_settings(tmp_path / "large.png") == SETTINGS
    with pytest.raises(ValueError, match="the limit is"):
        read_image(tmp_path / "large.png")
    (tmp_path / "larger.png").write_bytes(png(images.MAX_SIDE + 1, images.MAX_SIDE))
    with pytest.raises(ValueError, match="the limit is"):
        read_settings(tmp_path / "larger.png")


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "in.png")
    assert pixels(read_image(tmp_path / "in.png")).tolist() == [[[9, 8, 7]]]
    assert image_size(tmp_path / "in.png") == (1, 1)


# ---- tensors


def test_every_8_bit_value_survives_the_round_trip() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, values[::-1], values.T], -1))
    tensor = to_tensor([image, image])
    assert tensor.shape == (2, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert tensor[0, 0, 0, 1] == pytest.approx(1 / 127.5 - 1)
    assert all(np.array_equal(pixels(back), pixels(image)) for back in to_pil(tensor))


def test_to_pil_clamps_and_rounds() -> None:
    tensor = torch.tensor([-3.0, 0.0, 1.5, 0.9999], dtype=torch.bfloat16).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert pixels(to_pil(tensor)[0])[..., 0].tolist() == [[0, 128], [255, 255]]


def test_to_pil_goes_band_by_band_and_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.rand(2, 3, 50, 40, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    whole = to_pil(tensor)
    for band in (1, 3 * 40, 7 * 40 + 5):
        monkeypatch.setattr(tensors, "_BAND", band)
        assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(to_pil(tensor), whole, strict=True))
    for row in (0, 25, 49):
        tensor[1, 2, row, 7] = float("inf")
        with pytest.raises(ValueError, match="NaN or infinite"):
            to_pil(tensor)
        tensor[1, 2, row, 7] = 0


def test_to_pil_of_a_large_image_takes_little_besides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1, 3, 1024, 512)
    monkeypatch.setattr(tensors, "_BAND", 2**15)  # a sixteenth of it
    with Meter() as meter:
        to_pil(tensor)
    assert 0 < meter.most < tensor.nbytes / 4


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 4), (1, 3, 0, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        to_pil(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        resize(torch.zeros(shape), 2, 2)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_pil(torch.full((1, 3, 2, 2), float("nan")))


def test_to_tensor_refuses_what_is_no_batch() -> None:
    with pytest.raises(ValueError, match="no images"):
        to_tensor([])
    with pytest.raises(ValueError, match="mode L"):
        to_tensor(Image.new("L", (2, 2)))
    with pytest.raises(ValueError, match="2x2 and 3x2"):
        to_tensor([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))])


# ---- resizing


@pytest.mark.parametrize("size", [(7, 5), (16, 24), (50, 33), (1, 1)])
@pytest.mark.parametrize("how", ["bicubic", "lanczos"])
def test_resize_agrees_with_pillow(size: tuple[int, int], how: str) -> None:
    batch = [picture(seed=1), picture(seed=2)]
    resized = resize(to_tensor(batch), *size, how=how)  # pyright: ignore[reportArgumentType]
    assert resized.shape == (2, 3, *size)
    kernel = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}[how]
    for ours, image in zip(to_pil(resized), batch, strict=True):
        assert np.abs(pixels(ours) - pixels(image.resize(size[::-1], kernel))).max() <= 1


@pytest.mark.parametrize("how", ["bicubic", "lanczos"])
def test_resize_keeps_dtype_and_does_not_clamp(how: str) -> None:
    edge = torch.ones(1, 3, 8, 8)
    edge[..., 4:] = -1
    assert resize(edge, 16, 16, how=how).max() > 1.01  # pyright: ignore[reportArgumentType]
    assert resize(edge.bfloat16(), 16, 16, how=how).dtype == torch.bfloat16  # pyright: ignore[reportArgumentType]


def test_resize_refuses_bad_sizes_and_names() -> None:
    with pytest.raises(ValueError, match="0x4"):
        resize(torch.zeros(1, 3, 4, 4), 0, 4)
    with pytest.raises(ValueError, match="'nearest'"):
        resize(torch.zeros(1, 3, 4, 4), 4, 4, how="nearest")  # pyright: ignore[reportArgumentType]


# ---- writing


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".webp", "WEBP"), (".jpg", "JPEG"), (".JPEG", "JPEG")])
def test_saves_with_settings(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"out{suffix}"
    save_image(picture(), path, settings=SETTINGS)
    assert read_settings(path) == SETTINGS
    with Image.open(path) as image:
        assert image.format == kind
        assert "icc_profile" not in image.info
    assert distance(read_image(path), picture()) <= (1 if kind == "JPEG" else 0)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_images_of_others_have_no_settings(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0a lovely day"
    picture().save(tmp_path / "b.jpg", exif=exif)
    chunks = PngInfo()
    chunks.add_text("pixdec", "[1, 2]")
    picture().save(tmp_path / "c.png", pnginfo=chunks)
    picture().save(tmp_path / "d.gif")
    assert [read_settings(tmp_path / name) for name in ("a.png", "b.jpg", "c.png", "d.gif")] == [{}] * 4


@pytest.mark.parametrize("name", ["out.gif", "out", "out.png.txt"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of \.png, \.webp, \.jpg, \.jpeg"):
        save_image(picture(), tmp_path / name, settings={})
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_too_small_is_refused() -> None:
    assert output_format("out.webp", 16383, 5) == "WEBP"
    with pytest.raises(ValueError, match="WEBP holds 16383 a side"):
        output_format("out.webp", 16384, 5)


def test_only_rgb_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode L"):
        save_image(Image.new("L", (2, 2)), tmp_path / "out.png", settings={})
    with pytest.raises(ValueError, match="mode RGBA"):
        save_image(Image.new("RGBA", (2, 2)), tmp_path / "out.jpg", settings={})


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OSError, match="cannot write") as caught:
            save_image(noise, path, settings=SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(caught.value, names=path.name)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_settings_are_json(tmp_path: Path) -> None:
    save_image(picture(), tmp_path / "out.png", settings={"a": 1.5})
    with Image.open(tmp_path / "out.png") as image:
        assert json.loads(image.info["pixdec"]) == {"a": 1.5}
    with pytest.raises(TypeError):
        save_image(picture(), tmp_path / "no.png", settings={"a": object()})
    assert not (tmp_path / "no.png").exists()
