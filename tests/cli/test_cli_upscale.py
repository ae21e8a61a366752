"""pixdec upscale: any image in, one four times as large out, with its settings; bad input is one line, exit code 2."""

from __future__ import annotations

import resource
import struct
import sys
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from pixdec.io.images import pad_to_multiple, read_image, read_settings, resize, to_pil, to_tensor
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import save_decoder

Run = Callable[..., Any]
Photo = Callable[..., Path]
Names = Callable[[Path], list[str]]
MATH = ("--attention", "math")


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
    outcome = run("upscale", source, "-o", target, "--seed", 3, "--strength", 0.25, "--prompt", "", "--json")
    assert outcome.code == 0
    (record,) = outcome.records
    assert (record["input"], record["output"]) == (str(source), str(target))
    assert (record["width"], record["height"]) == (128, 64)
    assert record["seconds"] > 0
    settings = read_settings(target)
    assert settings == record["settings"]
    expected = {"verb": "upscale", "model": "pixdec-nano", "space": "flux2", "scale": 4, "strength": 0.25, "seed": 3}
    assert settings.items() >= {**expected, "steps": 2, "prompt": "", "encoder": "pixdec-tiny"}.items()


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
    note = f"pixdec: note: {source}: 16 bits a channel; the output has 8, --bits 16 keeps them in a .png\n"
    assert (outcome.code, outcome.err) == (0, note if mode == "I;16" else "")
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


@pytest.mark.parametrize(
    ("options", "given", "wanted"),
    [
        (("--scale", 2), (37, 21), (74, 42)),
        (("--scale", 3), (37, 21), (111, 63)),
        (("--scale", 6), (37, 21), (222, 126)),
        (("--scale", 5), (37, 21), (185, 105)),  # no multiple of the model's 4
        (("--scale", 1.5), (37, 21), (round(37 * 1.5), round(21 * 1.5))),
        (("--scale", 0.5), (5, 1), (2, 1)),
        (("--scale", 4), (37, 21), (148, 84)),
        (("--size", "100x57"), (37, 21), (100, 57)),
        (("--size", "300x170"), (37, 21), (300, 170)),
        (("--longest", 64), (37, 21), (64, 36)),
        (("--longest", 64), (21, 37), (36, 64)),
    ],
)
def test_any_factor_and_any_size(
    run: Run, photo: Photo, tmp_path: Path, options: tuple[object, ...], given: tuple[int, int], wanted: tuple[int, int]
) -> None:
    outcome = run("upscale", photo(tmp_path / "in.png", *given), "-o", tmp_path / "out.png", "--json", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert size(tmp_path / "out.png") == wanted
    (record,) = outcome.records
    assert (record["width"], record["height"]) == wanted
    settings = read_settings(tmp_path / "out.png")
    assert (settings["width"], settings["height"]) == wanted
    assert settings["scale"] == 4


def test_a_smaller_factor_shrinks_what_the_model_decodes(run: Run, photo: Photo, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png", 37, 21)
    assert run("upscale", source, "-o", tmp_path / "four.png").code == 0
    assert run("upscale", source, "-o", tmp_path / "two.png", "--scale", 2).code == 0
    four, two = read_image(tmp_path / "four.png"), read_image(tmp_path / "two.png")
    ours, theirs = np.asarray(two).astype(int), np.asarray(four.resize((74, 42), Image.Resampling.BICUBIC)).astype(int)
    assert (np.abs(ours - theirs) > 2).mean() < 0.01, "but where values overshoot, which a file clips before"
    assert np.abs(ours - theirs).mean() < 0.5


def test_a_larger_factor_enlarges_the_image_before_it_is_encoded(run: Run, photo: Photo, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png", 32, 16)
    larger = to_pil(resize(to_tensor(read_image(source)), 32, 64, how="lanczos"))[0]
    larger.save(tmp_path / "larger.png")
    assert run("upscale", tmp_path / "larger.png", "-o", tmp_path / "four.png").code == 0
    assert run("upscale", source, "-o", tmp_path / "eight.png", "--scale", 8).code == 0
    four, eight = (np.asarray(read_image(tmp_path / f"{name}.png")).astype(int) for name in ("four", "eight"))
    assert four.shape == eight.shape
    assert np.abs(four - eight).mean() < 1, "but for the rounding of the file between"


def test_tiles_change_the_image_a_little_and_are_recorded(run: Run, photo: Photo, tmp_path: Path) -> None:
    source, results = photo(tmp_path / "in.png", 48, 32), []
    for options in ((), ("--tile", 40), ("--tile", 0), ("--tile", 192)):
        assert run("upscale", source, "-o", tmp_path / "out.png", *options).code == 0
        results.append((np.asarray(read_image(tmp_path / "out.png")), read_settings(tmp_path / "out.png").get("tile")))
    (whole, _), (tiled, _), (none, _), (large, _) = results
    assert [tile for _, tile in results] == [None, 40, None, 192]
    assert not np.array_equal(whole, tiled)
    assert np.array_equal(whole, none)
    assert np.array_equal(whole, large)


@pytest.mark.skipif(find_spec("flash_attn_interface") is not None, reason="FlashAttention-3 is installed")
def test_a_kernel_that_is_not_installed(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    outcome = run("upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "new" / "out.png", "--attention", "flash3")
    outcome.refused("--attention flash3: the package flash_attn_interface is not installed; FlashAttention-3")
    assert names(tmp_path) == ["in.png"]


def test_how_the_network_is_run_leaves_the_image(run: Run, photo: Photo, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png", 48, 32)
    options = {"plain": (), "memory": ("--memory", "3GB"), "bytes": ("--memory", 3 * 10**9), "math": MATH}
    for name, more in options.items():
        assert run("upscale", source, "-o", tmp_path / f"{name}.png", "--dtype", "float32", *more).code == 0
    plain, *others = (np.asarray(read_image(tmp_path / f"{name}.png")).astype(int) for name in options)
    assert all(np.abs(other - plain).max() <= 1 for other in others)
    told = {name: read_settings(tmp_path / f"{name}.png") for name in options}
    assert told["memory"].pop("memory") == "3GB"
    assert told["bytes"].pop("memory") == "3000000000"
    assert told["math"].pop("attention") == "math"
    assert all(each.pop("asked") for each in told.values())  # the model's own steps
    assert all(each == told["plain"] for each in told.values())


def test_eight_bits_change_the_image_and_are_recorded(run: Run, photo: Photo, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    source, model = photo(tmp_path / "in.png", 16, 16), wide(tmp_path / "wide.safetensors")
    for name, more in (("plain", ()), ("eight", ("--quantize", "int8-weights"))):
        outcome = run("upscale", source, "-o", tmp_path / f"{name}.png", "--model", model, "--device", "cpu", *more)
        assert (outcome.code, outcome.err) == (0, "")
    assert not np.array_equal(*(np.asarray(read_image(tmp_path / f"{name}.png")) for name in ("plain", "eight")))
    plain, eight = (read_settings(tmp_path / f"{name}.png") for name in ("plain", "eight"))
    assert eight == {**plain, "quantize": "int8-weights"}


def wide(path: Path) -> Path:
    """A decoder with Linears that are large enough to be kept in eight bits, with small random weights."""
    backbone = PixDiTSettings(
        hidden=128, heads=2, depth=1, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=None
    )
    torch.manual_seed(0)
    network = PiD(PiDSettings(backbone, AdapterSettings(128, latent_factor=16, width=8, blocks=1))).initialize()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_decoder(network, path, name="wide", space="flux2", version="v1", licence="Apache-2.0")
    return path


def test_a_plan_of_each_image_and_no_image(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "large.png", 40, 20)
    photo(tmp_path / "in" / "small.png", 17, 8)
    common = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "--plan", "--device", "cpu")
    outcome = run(*common, "--memory", "3GB")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"{tmp_path / 'in' / 'large.png'}:"
    assert lines[1].startswith("  192x128, 1 image, on cpu: as a whole")  # with what the image was padded by
    assert lines[3].endswith(" GB of 3.00 GB")
    assert lines[4:6] == [f"{tmp_path / 'in' / 'small.png'}:", lines[1].replace("192x128", "128x64")]

    outcome = run(*common, "--tile", 64, "--scale", 8, "--json", "--memory", "3GB")
    plans = [record["plan"] for record in outcome.records]
    assert [(plan["width"], plan["height"], plan["tile"], plan["limit"]) for plan in plans] == [
        (320, 192, 64, 3_000_000_000),
        (192, 64, 64, 3_000_000_000),
    ]
    assert plans[0]["total"] > plans[0]["peak"] == sum(plans[0]["parts"].values()) > 0
    outcome = run(*common, "--memory", "20MB")
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()
    assert "large.png: 192x128 does not fit" in first
    assert "small.png: 128x64 does not fit" in second
    assert names(tmp_path) == ["in/large.png", "in/small.png"]


def test_a_size_of_another_shape_is_refused_and_the_rest_goes_on(
    run: Run, photo: Photo, names: Names, tmp_path: Path
) -> None:
    fits, other = photo(tmp_path / "a.png", 32, 16), photo(tmp_path / "b.png", 16, 32)
    outcome = run("upscale", fits, other, "-o", tmp_path / "out", "--size", "64x32")
    outcome.refused("--size 64x32", "b.png", "64x128", "16x32 or 64x128")
    assert names(tmp_path / "out") == ["a.png"]


def test_exif_rotation_counts_for_a_size(run: Run, photo: Photo, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(photo(tmp_path / "in.png", 20, 12)).save(tmp_path / "in.jpg", exif=exif)
    assert run("upscale", tmp_path / "in.jpg", "-o", tmp_path / "out.png", "--size", "24x40").code == 0
    assert size(tmp_path / "out.png") == (24, 40)


def test_an_output_that_would_be_too_large(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    run("upscale", photo(tmp_path / "in.png", 4097, 1), "-o", tmp_path / "out.png").refused(
        "16388x4 pixels", "the limit is 16384 a side"
    )
    run("upscale", photo(tmp_path / "in.png", 4096, 1), "-o", tmp_path / "out.png", "--scale", 4.1).refused(
        "16794x4 pixels", "the limit is 16384 a side"
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
        (("--prompt", "a cat"), ["--prompt a cat: pixdec-nano takes no text"]),
        (("--seed", str(2**64)), ["--seed 18446744073709551616", "2^64 - 1"]),
        (("--bits", "16", "-o", "out.jpg"), ["out.jpg", "16 bits"]),
        (("--device", "gpu"), ["--device gpu", "expected cpu, cuda"]),
        (("--device", "cuda:99"), ["--device cuda:99", "not available here"]),
        (("--device", "meta"), ["--device meta"]),
        (("--device", "abacus"), ["abacus"]),
        (("--scale", "0"), ["--scale 0", "above 0"]),
        (("--scale", "nan"), ["--scale nan"]),
        (("--scale", "2000"), ["64000x32000", "the limit is 16384 a side"]),
        (("--scale", "2", "--longest", "64"), ["scale and longest each say"]),
        (("--longest", "0"), ["--longest 0"]),
        (("--size", "64"), ["--size 64", "WIDTHxHEIGHT"]),
        (("--size", "0x32"), ["--size 0x32", "WIDTHxHEIGHT"]),
        (("--tile", "60"), ["--tile 60", "multiple of 8", "take 64"]),
        (("--memory", "lots"), ["--memory lots", "'8GB'"]),
        (("--memory", "8"), ["--memory 8 is 8 bytes"]),
        (("--memory", "20MB"), ["in.png: 128x64 does not fit in 0.02 GB: the least that would do is 0."]),
        (("--quantize", "fp8", "--device", "cpu"), ["--quantize fp8 on cpu", "CUDA"]),
        (("--quantize", "int8", "--device", "cpu"), ["--quantize int8", "no Linears of 128 x 128"]),
        (("--compile", "graphs", "--device", "cpu"), ["--compile graphs on cpu", "CUDA"]),
        (("--attention", "cudnn", "--device", "cpu"), ["--attention cudnn", "does not run on cpu"]),
        (("--attention", "slow"), ["--attention", "slow"]),
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
