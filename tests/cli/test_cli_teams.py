"""pixdec upscale and decode by two real processes: images that are shared out, and images that both decode together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.cli import main
from pixdec.io.images import read_image, read_settings
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import save_decoder
from ring import run_ring

SIZES = {"a.png": (32, 16), "b.png": (21, 40), "c.png": (48, 48)}
COMMON = ("--device", "cpu", "--dtype", "float32")


@dataclass(frozen=True)
class Told:
    """Of one command in one process: its exit code, its records, and its lines on stderr."""

    code: int
    records: list[dict[str, Any]]
    err: list[str]


@dataclass(frozen=True)
class Made:
    """What two processes were told to make, and the folder where one process made the same."""

    folder: Path
    told: dict[str, list[Told]]
    alone: dict[str, int]

    def pixels(self, name: str, *, alone: bool = False) -> np.ndarray[Any, Any]:
        return np.asarray(read_image(self.folder / ("alone" if alone else "shared") / name)).astype(int)


def unwindowed(path: Path) -> Path:
    """A decoder whose attention sees the whole image, with small random weights."""
    backbone = PixDiTSettings(
        hidden=16, heads=2, depth=1, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=None
    )
    adapter = AdapterSettings(latent_channels=128, latent_factor=16, width=8, blocks=1)
    torch.manual_seed(0)
    network = PiD(PiDSettings(backbone, adapter)).initialise()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_decoder(network, path, name="unwindowed", space="flux2", version="v1", licence="Apache-2.0")
    return path


def commands(folder: Path, nano: Path, output: str) -> dict[str, list[str]]:
    out, model = folder / output, str(unwindowed(folder / "unwindowed.safetensors"))
    windowed = ("--model", str(nano))
    given: dict[str, tuple[object, ...]] = {
        "share": ("upscale", folder / "in", "-o", out / "share", *windowed),
        "tiles": ("upscale", folder / "in", "-o", out / "tiles", *windowed, "--tile", 40),
        "bands": ("upscale", folder / "in", "-o", out / "bands", "--model", model),
        "decode": ("decode", folder / "latents", "-o", out / "decode", "--model", model, "--size", "96x64"),
        "windows": ("upscale", folder / "in" / "a.png", "-o", out / "windows.png", *windowed),
        "plan": ("upscale", folder / "in", "-o", out / "plan", *windowed, "--plan"),
        "auto": ("decode", folder / "latents", "-o", out / "auto", *windowed, "--memory", "auto"),
        "option": ("upscale", folder / "in", "-o", out / "option", "--strength", 2),
    }
    return {name: [*map(str, each), *COMMON, "--json"] for name, each in given.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bundled: Path) -> Made:
    folder = tmp_path_factory.mktemp("teams")
    noise = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        coarse = Image.fromarray(noise.integers(30, 225, (3, 4, 3)).astype(np.uint8))
        (folder / "in").mkdir(exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "in" / name)
    (folder / "in" / "damaged.png").write_text("no image")
    tensor = 0.7 * torch.randn(2, 128, 2, 3, generator=torch.Generator().manual_seed(0))
    (folder / "latents").mkdir()
    Latent(tensor, get_space("flux2")).save(folder / "latents" / "z.safetensors")

    nano = bundled / "pixdec-nano.safetensors"
    alone: dict[str, int] = {}
    with one_thread():
        for name, arguments in commands(folder, nano, "alone").items():
            if name not in ("plan", "auto", "option"):
                alone[name] = main(arguments)

    shared = commands(folder, nano, "shared")
    for name in ("tiles", "bands", "decode", "windows", "plan", "auto"):
        shared[name] += ["--team", "2"]
    (folder / "commands.json").write_text(json.dumps(list(shared.values())))
    said = run_ring(Path(__file__).with_name("team_commands.py"), 2, folder / "commands.json")
    assert [each.code for each in said] == [0, 0], "\n".join(each.err for each in said)
    told: dict[str, list[Told]] = {}
    for each in said:
        codes = json.loads(each.out.splitlines()[-1])
        outs, errs = parts(each.out.splitlines()[:-1]), parts(each.err.splitlines())
        for name, code, out, err in zip(shared, codes, outs, errs, strict=True):
            told.setdefault(name, []).append(Told(code, [json.loads(line) for line in out], err))
    return Made(folder, told, alone)


@contextmanager
def one_thread() -> Iterator[None]:
    """As each of the processes has; with more, sums are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parts(lines: list[str]) -> list[list[str]]:
    """The lines of each command."""
    found: list[list[str]] = []
    for line in lines:
        if line.startswith("command "):
            found.append([])
        else:
            found[-1].append(line)
    return found


@pytest.mark.parametrize("name", ["share", "tiles"])
@pytest.mark.parametrize("image", SIZES)
def test_the_images_are_those_of_one_process_to_the_bit(made: Made, name: str, image: str) -> None:
    path = f"{name}/{image}"
    assert np.array_equal(made.pixels(path), made.pixels(path, alone=True))
    assert made.pixels(path).std() > 1
    settings = [read_settings(made.folder / how / path) for how in ("shared", "alone")]
    assert settings[0] == settings[1]
    assert settings[0].get("tile") == (40 if name == "tiles" else None)


def test_tiles_are_told_from_whole_images(made: Made) -> None:
    assert not np.array_equal(made.pixels("tiles/c.png"), made.pixels("share/c.png"))


@pytest.mark.parametrize("image", [*(f"bands/{name}" for name in SIZES), "decode/z-1.png", "decode/z-2.png"])
def test_images_in_bands_are_those_of_one_process_but_for_rounding(made: Made, image: str) -> None:
    ours, theirs = made.pixels(image), made.pixels(image, alone=True)
    assert abs(ours - theirs).max() <= 1
    assert ours.std() > 1


def test_what_is_shared_out_is_made_once_and_what_is_damaged_said_once(made: Made) -> None:
    first, second = made.told["share"]
    assert (first.code, second.code, made.alone["share"]) == (2, 2, 2)
    assert inputs(first) == ["c.png", "damaged.png"]  # 2304 pixels
    assert inputs(second) == ["a.png", "b.png"]  # 512 and 840 pixels
    assert len(first.err) == 1
    assert "damaged.png: not an image" in first.err[0]
    assert second.err == []


@pytest.mark.parametrize(("name", "code"), [("tiles", 2), ("bands", 2), ("decode", 0), ("plan", 2)])
def test_the_first_speaks_for_its_team(made: Made, name: str, code: int) -> None:
    first, second = made.told[name]
    assert (first.code, second.code) == (code, code)
    assert inputs(first) == (["z.safetensors"] * 2 if name == "decode" else sorted([*SIZES, "damaged.png"]))
    assert second.records == []
    assert second.err == []
    assert len(first.err) == (1 if code else 0)


def inputs(told: Told) -> list[str]:
    return sorted(Path(record["input"]).name for record in told.records)


@pytest.mark.parametrize(("name", "words"), [("auto", "--memory auto with --team 2"), ("option", "--strength 2.0")])
def test_what_cannot_be_is_said_once_and_nothing_is_made(made: Made, name: str, words: str) -> None:
    first, second = made.told[name]
    assert (first.code, second.code) == (2, 2)
    assert len(first.err) == 1
    assert words in first.err[0]
    assert (first.records, second.records, second.err) == ([], [], [])
    assert sorted(path.name for path in (made.folder / "shared").iterdir()) == [
        "bands",
        "decode",
        "share",
        "tiles",
        "windows.png",
    ]
