"""What people bring: transparency, depth, metadata, runs that were interrupted, machines that are too small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw

from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.generation import UpscaleSettings, upscale
from pixdec.io.images import read_image, read_picture, read_settings, save_picture

Run = Callable[..., Any]
Photo = Callable[..., Path]


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def logo(path: Path) -> Path:
    """A white disc on transparent white."""
    image = Image.new("RGBA", (48, 32), (255, 255, 255, 0))
    ImageDraw.Draw(image).ellipse((10, 6, 38, 26), fill=(255, 255, 255, 255))
    image.save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparency_is_enlarged_and_kept(run: Run, tmp_path: Path, suffix: str) -> None:
    outcome = run("upscale", logo(tmp_path / "logo.png"), "-o", tmp_path / f"out{suffix}", "--steps", 1)
    assert (outcome.code, outcome.err) == (0, "")
    with Image.open(tmp_path / f"out{suffix}") as out, Image.open(tmp_path / "logo.png") as given:
        assert (out.mode, out.size) == ("RGBA", (192, 128))
        wanted = given.getchannel("A").resize((192, 128), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(out)[..., 3].astype(int) - np.asarray(wanted)).mean() < 0.5


def test_transparency_that_cannot_be_kept_is_said(run: Run, tmp_path: Path) -> None:
    source = logo(tmp_path / "logo.png")
    outcome = run("upscale", source, "-o", tmp_path / "out.jpg", "--steps", 1)
    assert outcome.code == 0
    assert "out.jpg: a JPEG has no transparency; the image is on white" in outcome.err
    outcome = run("encode", source, "-o", tmp_path / "out.safetensors")
    assert outcome.code == 0
    assert "logo.png: its transparency is composited on white" in outcome.err


def test_what_is_hidden_under_transparency_does_not_show(tmp_path: Path) -> None:
    decoder, results = PixelDecoder.from_pretrained(), []
    for hidden in (0, 255):
        values = np.full((16, 16, 4), hidden, np.uint8)
        values[4:12, 4:12] = (200, 80, 20, 255)
        values[..., 3] = 0
        values[4:12, 4:12, 3] = 255
        Image.fromarray(values).save(tmp_path / "in.png")
        results.append(upscale(read_picture(tmp_path / "in.png"), decoder, settings=UpscaleSettings(steps=1)).color)
    assert torch.equal(*results)


def test_metadata_is_kept_unless_it_is_stripped(run: Run, photo: Photo, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Copyright], exif[ExifTags.Base.Orientation] = "(c) me", 6
    Image.open(photo(tmp_path / "in.png")).save(tmp_path / "in.jpg", exif=exif, dpi=(300, 300))
    for name, more in (("kept", ()), ("bare", ("--strip-metadata",))):
        assert run("upscale", tmp_path / "in.jpg", "-o", tmp_path / f"{name}.jpg", "--steps", 1, *more).code == 0
    with Image.open(tmp_path / "kept.jpg") as kept, Image.open(tmp_path / "bare.jpg") as bare:
        assert kept.getexif()[ExifTags.Base.Copyright] == "(c) me"
        assert ExifTags.Base.Orientation not in kept.getexif()
        assert kept.info["dpi"] == (300, 300)
        assert ExifTags.Base.Copyright not in bare.getexif()
        assert bare.info.get("dpi") != (300, 300)
        assert kept.size == bare.size == (64, 128)


def test_16_bits_are_kept_if_asked_for(run: Run, photo: Photo, tmp_path: Path) -> None:
    picture = read_picture(photo(tmp_path / "in.png"))
    save_picture(picture, tmp_path / "deep.png", settings={}, bits=16)
    outcome = run("upscale", tmp_path / "deep.png", "-o", tmp_path / "out.png", "--steps", 1, "--bits", 16)
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "out.png").read_bytes()[24] == 16
    outcome = run("upscale", tmp_path / "deep.png", "-o", tmp_path / "flat.png", "--steps", 1)
    assert "16 bits a channel; the output has 8, --bits 16 keeps them" in outcome.err
    deep, flat = (read_picture(tmp_path / name).color for name in ("out.png", "flat.png"))
    assert (deep - flat).abs().max() <= 1.01 / 255
    assert deep.unique().numel() > flat.unique().numel()


def test_a_photograph_that_is_too_large_is_told_what_would_do(
    run: Run, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("generation.decoding", "io.writing"):
        monkeypatch.setattr(f"pixdec.{module}.MAX_SIDE", 100)
    source = photo(tmp_path / "in.png", 60, 40)
    run("upscale", source, "-o", tmp_path / "out.png").refused("240x160", "--longest 100 or --scale 1.66 would do")
    assert run("upscale", source, "-o", tmp_path / "out.png", "--scale", 1.66, "--steps", 1).code == 0


@pytest.mark.parametrize("verb", ["upscale", "encode", "decode"])
def test_a_run_goes_on_where_it_ended(run: Run, photo: Photo, tmp_path: Path, verb: str) -> None:
    for name in "ab":
        photo(tmp_path / "in" / f"{name}.png", seed=ord(name))
    more = () if verb == "encode" else ("--steps", 1)
    source = tmp_path / "in"
    if verb == "decode":
        assert run("encode", source, "-o", tmp_path / "z").code == 0
        source = tmp_path / "z"
    common = (verb, source, "-o", tmp_path / "out", *more)
    assert run(*common).code == 0
    first = stamps(tmp_path / "out")
    outcome = run(*common, "--json")
    assert stamps(tmp_path / "out") == first
    assert [record["skipped"] for record in outcome.records] == [True, True]
    next(file for file in (tmp_path / "out").iterdir() if file.stem == "a").unlink()
    assert run(*common).code == 0
    second = stamps(tmp_path / "out")
    assert {name for name in first if second[name] == first[name]} == {name for name in first if name[0] == "b"}
    photo(tmp_path / "in" / "b.png", seed=5)  # another image of the same name
    if verb == "decode":
        assert run("encode", tmp_path / "in", "-o", source).code == 0
    assert run(*common).code == 0
    third = stamps(tmp_path / "out")
    assert {name for name in first if third[name] == second[name]} == {name for name in first if name[0] == "a"}
    assert run(*common, "--again").code == 0
    assert not set(stamps(tmp_path / "out").items()) & set(third.items())


def test_other_settings_make_the_image_anew(run: Run, photo: Photo, tmp_path: Path) -> None:
    source, target = photo(tmp_path / "in.png"), tmp_path / "out.png"
    seen = list[bytes]()
    for more in ((), ("--seed", 1), ("--steps", 1), ("--bits", 16)):
        assert run("upscale", source, "-o", target, *more).code == 0
        seen.append(target.read_bytes())
    assert len(set(seen)) == 4


def test_an_error_of_any_kind_leaves_the_rest_of_a_batch(
    run: Run, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, width in (("a", 32), ("b", 48), ("c", 32)):
        photo(tmp_path / "in" / f"{name}.png", width, 16)
    stream = PixelDecoder.stream
    errors = iter([RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), KeyError("odd")])

    def fails(self: PixelDecoder, latent: Any, *args: Any, **kwargs: Any) -> Any:
        if latent.tensor.shape[3] == 3:
            raise next(errors)
        return stream(self, latent, *args, **kwargs)

    monkeypatch.setattr(PixelDecoder, "stream", fails)
    for words in (("b.png", "out of memory", "--memory"), ("b.png", "unexpected KeyError: 'odd'")):
        outcome = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--steps", 1, "--again")
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert all(word in outcome.err for word in words)
        assert sorted(stamps(tmp_path / "out")) == ["a.png", "c.png"]


def test_jfif_and_hidden_files(run: Run, photo: Photo, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.jpg").rename(tmp_path / "in" / "a.jfif")
    (tmp_path / "in" / "._a.jfif").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    outcome = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--steps", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(stamps(tmp_path / "out")) == ["a.png"]


def test_files_of_a_folder_that_are_left_out_are_said(run: Run, photo: Photo, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    for name in ("b.heic", "c.HEIC", "d.txt"):
        (tmp_path / "in" / name).touch()
    outcome = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--steps", 1)
    assert outcome.code == 0
    assert outcome.err == f"pixdec: note: {tmp_path / 'in'}: no images, left out: 2 .heic, 1 .txt\n"


def test_compiling_without_a_compiler(run: Run, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    def compile_blocks(network: torch.nn.Module) -> None:
        network.velocity = broken  # pyright: ignore[reportArgumentType]  # compiled at its first call

    monkeypatch.setattr("pixdec.inference.engine.compile_blocks", compile_blocks)
    for name in "ab":
        photo(tmp_path / "in" / f"{name}.png", 16, 16)
    outcome = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu", "--compile", "default")
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 2
    assert all("--compile default" in line and "No working C++ compiler" in line for line in lines)
    assert all(line.endswith("leave it out") for line in lines)


def test_saved_settings_say_what_was_done(run: Run, photo: Photo, tmp_path: Path) -> None:
    source, target = photo(tmp_path / "in.png"), tmp_path / "out.png"
    assert run("upscale", source, "-o", target, "--memory", "auto", "--device", "cpu").code == 0
    settings = read_settings(target)
    assert "auto" not in {value for value in settings.values() if isinstance(value, str)}
    assert settings["dtype"] in ("float32", "bfloat16")
    assert settings["steps"] == 2
    assert read_image(target).size == (128, 64)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_in_python_too(name: str) -> None:
    for opened in (PixelDecoder, ImageEncoder):
        with pytest.raises(ValueError, match=f"device='{name}'.*expected cpu, cuda, cuda:N or mps"):
            opened.from_pretrained(device=name)
