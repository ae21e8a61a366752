"""pixdec upscale: any image in, one four times as large out, with its settings; bad input is one line, exit code 2."""

from __future__ import annotations

import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from pixdec.cli.upscale import pad_to_multiple
from pixdec.images import read_image, read_settings

Run = Callable[..., Any]
Photo = Callable[..., Path]
Names = Callable[[Path], list[str]]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("given", [(32, 16), (37, 21), (5, 40), (1, 1)])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_the_output_is_exactly_four_times_as_large(
    run: Run, photo: Photo, tmp_path: Path, given: tuple[int, int], suffix: str
) -> None:
    source, target = photo(tmp_path / "in.png", *given), tmp_path / f"out{suffix}"
    outcome = run("upscale", source, "-o", target)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert size(target) == (4 * given[0], 4 * given[1])


def test_settings_go_into_the_metadata_and_to_machines(run: Run, photo: Photo, tmp_path: Path) -> None:
    source, target = photo(tmp_path / "in.png"), tmp_path / "out.png"
    outcome = run("upscale", source, "-o", target, "--seed", 3, "--strength", 0.25, "--caption", "", "--json")
    assert outcome.code == 0
    (record,) = outcome.records
    assert (record["input"], record["output"]) == (str(source), str(target))
    assert (record["width"], record["height"]) == (128, 64)
    assert record["seconds"] > 0
    settings = read_settings(target)
    assert settings == record["settings"]
    expected = {"verb": "upscale", "model": "pixdec-nano", "space": "flux2", "scale": 4, "strength": 0.25, "seed": 3}
    assert settings.items() >= {**expected, "steps": 2, "caption": ""}.items()


def test_seed_steps_and_strength_change_the_image(run: Run, photo: Photo, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png")
    results: dict[str, np.ndarray] = {}
    for name, options in {
        "plain": (),
        "again": ("--seed", 0),
        "seed": ("--seed", 1),
        "steps": ("--steps", 1),
        "strength": ("--strength", 0.5),
        "noisier": ("--strength", 0.8),
    }.items():
        assert run("upscale", source, "-o", tmp_path / f"{name}.png", *options).code == 0
        results[name] = np.asarray(read_image(tmp_path / f"{name}.png"))
    assert np.array_equal(results.pop("again"), results["plain"])
    distinct = list(results.values())
    assert not any(np.array_equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_padding_reflects_where_it_can_and_repeats_where_it_cannot() -> None:
    row = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    padded = pad_to_multiple(row, 8)
    assert padded.shape == (1, 3, 8, 8)
    assert padded[0, 0].tolist() == [[0, 1, 2, 3, 4, 5, 4, 3]] * 8
    assert pad_to_multiple(row[..., :3], 8)[0, 0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    whole = torch.rand(2, 3, 16, 8)
    assert torch.equal(pad_to_multiple(whole, 8), whole)


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "LA", "P", "1", "I;16"])
def test_every_kind_of_image(run: Run, photo: Photo, tmp_path: Path, mode: str) -> None:
    image = Image.open(photo(tmp_path / "rgb.png", 20, 12))
    source = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(source)
    else:
        image.convert(mode).save(source)
    outcome = run("upscale", source, "-o", tmp_path / "out.png")
    assert (outcome.code, outcome.err) == (0, "")
    with Image.open(tmp_path / "out.png") as out:
        assert (out.mode, out.size) == ("RGB", (80, 48))


def test_rotated_by_exif(run: Run, photo: Photo, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(photo(tmp_path / "in.png", 20, 12)).save(tmp_path / "in.jpg", exif=exif)
    assert run("upscale", tmp_path / "in.jpg", "-o", tmp_path / "out.jpg").code == 0
    with Image.open(tmp_path / "out.jpg") as out:
        assert out.size == (48, 80)
        assert out.getexif().get(ExifTags.Base.Orientation) is None


def test_animated_is_said(run: Run, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    outcome = run("upscale", tmp_path / "in.gif", "-o", tmp_path / "out.png")
    assert outcome.code == 0
    assert outcome.err == f"pixdec: note: {tmp_path / 'in.gif'}: animated, 3 frames; the first one is used\n"


def test_folders(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "sub" / "b.jpg")
    outcome = run("upscale", tmp_path / "in", "-o", tmp_path / "out" / "deep", "--format", "webp", "--steps", 1)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert names(tmp_path / "out" / "deep") == ["a.webp", "sub/b.webp"]


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 100) + b"IDAT" + bytes(104)


BAD = {
    "missing.png": (None, ["there is no such file"]),
    "empty.png": (b"", ["the file is empty"]),
    "text.png": (b"this is a text, whatever its name says", ["not an image"]),
    "wide.png": (bomb(50_000, 40), ["50000x40 pixels", "the limit is 16384 a side"]),
    "huge.png": (bomb(60_000, 60_000), ["3600000000 pixels", "the limit is 16384 a side"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images(run: Run, names: Names, tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    run("upscale", tmp_path / name, "-o", tmp_path / "new" / "out.png").refused(name, *words)
    assert names(tmp_path) == ([] if content is None else [name])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_images(run: Run, names: Names, tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"in{suffix}")
    data = (tmp_path / f"in{suffix}").read_bytes()
    (tmp_path / f"in{suffix}").write_bytes(data[: len(data) * 2 // 3])
    run("upscale", tmp_path / f"in{suffix}", "-o", tmp_path / "out.png").refused(f"in{suffix}")
    assert names(tmp_path) == [f"in{suffix}"]


def test_a_bad_image_among_good_ones(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    good, other = photo(tmp_path / "a.png"), photo(tmp_path / "c.png")
    (tmp_path / "b.png").write_bytes(photo(tmp_path / "b.png", 64, 64).read_bytes()[:-400])
    outcome = run(
        "upscale", good, tmp_path / "b.png", tmp_path / "d.png", other, "-o", tmp_path / "out", "--steps", 1, "--json"
    )
    assert outcome.code == 2
    assert outcome.err.count("\n") == 2
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    told = {Path(str(record["input"])).name: "error" in record for record in outcome.records}
    assert told == {"a.png": False, "b.png": True, "c.png": False, "d.png": True}


def test_an_output_that_would_be_too_large(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    run("upscale", photo(tmp_path / "in.png", 4097, 1), "-o", tmp_path / "out.png").refused(
        "16388x4 pixels", "the limit is 16384 a side"
    )
    run("upscale", photo(tmp_path / "in.png", 4096, 1), "-o", tmp_path / "out.webp").refused(
        "16384x4 pixels", "WEBP holds 16383"
    )
    assert names(tmp_path) == ["in.png"]


def test_outputs_that_cannot_be_written(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png")
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "in.png").mkdir(parents=True)
    run("upscale", source, "-o", tmp_path / "file" / "out.png").refused("file", "cannot create the folder")
    run("upscale", source, "-o", tmp_path / "file" / "out").refused("file", "cannot create the folder")
    run("upscale", source, "-o", tmp_path / "folder").refused("in.png", "it is a folder")
    run("upscale", source, "-o", source).refused("would overwrite the input")
    assert names(tmp_path) == ["file", "in.png"]


def test_a_full_disk(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png", 64, 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))  # a write beyond fails half-way, as on a full disk
    try:
        outcome = run("upscale", source, "-o", tmp_path / "out.png", "--steps", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    outcome.refused("cannot write", "out.png")
    assert names(tmp_path) == ["in.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "pixdec-mano"), ["pixdec-mano", "pixdec-nano"]),
        (("--model", "no/such/file.safetensors"), ["file.safetensors", "no such file"]),
        (("--model", "pid-sd3-2k"), ["pid-sd3-2k"]),
        (("--model", "pixdec-tiny"), ["autoencoder"]),
        (("--steps", "0"), ["--steps 0"]),
        (("--caption", "a cat"), ["a cat", "pixdec-nano takes no text"]),
        (("--device", "abacus"), ["abacus"]),
    ],
)
def test_bad_options(
    run: Run, photo: Photo, names: Names, tmp_path: Path, options: tuple[str, ...], words: list[str]
) -> None:
    outcome = run("upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert all(word in outcome.err.splitlines()[-1] for word in words), outcome.err
    assert names(tmp_path) == ["in.png"]


def test_progress_on_a_terminal(run: Run, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    outcome = run("upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png")
    assert outcome.code == 0
    assert "step" in outcome.err
    assert outcome.out.startswith(f"{tmp_path / 'out.png'}  128x64  ")
