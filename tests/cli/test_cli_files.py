"""pixdec models, convert, inspect: what there is, and what a file is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixdec.io.images import save_image, to_pil
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.keymap import to_original
from pixdec.weights.load import load_decoder

Run = Callable[..., Any]
BACKBONE = PixDiTSettings(
    hidden=32,
    heads=4,
    depth=2,
    pixel_width=4,
    pixel_hidden=32,
    pixel_heads=4,
    pixel_depth=1,
    text_width=8,
    text_length=6,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """An original checkpoint of a small network for latents of so many channels."""

    def original(channels: int) -> Path:
        adapter = AdapterSettings(latent_channels=channels, width=8, blocks=1)
        network = PiD(PiDSettings(BACKBONE, adapter)).initialize()
        path = tmp_path_factory.mktemp("original") / "model_ema_bf16.pth"
        torch.save({f"net.{to_original(key)}": value.bfloat16() for key, value in network.state_dict().items()}, path)
        return path

    return original


def latent_file(path: Path, tensor: Tensor | None = None, sigma: float = 0.25) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2, 128, 2, 3, generator=generator) if tensor is None else tensor
    Latent(tensor, get_space("flux2"), sigma).save(path)
    return path


# ---- models


def test_models_are_listed_with_what_is_on_disk(run: Run, bundled: Path) -> None:
    outcome = run("models")
    assert (outcome.code, outcome.err) == (0, "")
    nano = next(line for line in outcome.out.splitlines() if line.startswith("pixdec-nano"))
    assert nano.split() == ["pixdec-nano", "rgb", "4x", "nano", "student", "any", "size", "Apache-2.0", "bundled"]
    released = next(line for line in outcome.out.splitlines() if line.startswith("pid-v1.5-flux1-4k "))
    assert "flux1, z-image" in released
    assert "NSCLv1 (non-commercial)" in released
    assert "4.0-16.8 MP" in released
    records = {record["name"]: record for record in run("models", "--json").records}
    assert records["pixdec-nano"]["path"] == str(bundled / "pixdec-nano.safetensors")
    assert len(records) == len(outcome.out.splitlines()) - 1
    assert records["pid-siglip-8x"]["scale"] == 8


def test_a_model_that_is_missing_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixdec.weights.catalog.BUNDLED", tmp_path)
    nano = next(line for line in run("models").out.splitlines() if line.startswith("pixdec-nano"))
    assert nano.endswith("no")
    assert run("models", "--json").records[0]["path"] is None


# ---- convert


def test_convert(run: Run, tmp_path: Path, original: Callable[[int], Path]) -> None:
    source, target = original(4), tmp_path / "new" / "out.safetensors"
    outcome = run("convert", source, target, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    facts = {"name": "model_ema_bf16", "kind": "student", "version": "v1", "space": "sdxl"}
    assert outcome.records == [{"input": str(source), "output": str(target), **facts}]
    ours, theirs = load_decoder(target).network.state_dict(), load_decoder(source).network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert len(ours) == len(theirs)


def test_convert_needs_the_space_where_nothing_tells(run: Run, tmp_path: Path, original: Callable[[int], Path]) -> None:
    source = original(16)
    run("convert", source, tmp_path / "out.safetensors").refused("flux1, sd3 or qwen-image", "space=")
    assert not list(tmp_path.iterdir())
    outcome = run("convert", source, tmp_path / "out.safetensors", "--space", "sd3")
    assert (outcome.code, outcome.out) == (0, "")
    assert load_decoder(tmp_path / "out.safetensors").spaces == ("sd3",)


def test_convert_refuses(run: Run, tmp_path: Path, original: Callable[[int], Path]) -> None:
    source = original(4)
    run("convert", tmp_path / "no.pth", tmp_path / "a.safetensors").refused("no.pth", "no such file")
    run("convert", source, tmp_path / "a.pth").refused("a.pth", ".safetensors")
    data = source.read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    run("convert", tmp_path / "cut.pth", tmp_path / "a.safetensors").refused("cut.pth")
    (tmp_path / "text.pth").write_text("hello")
    run("convert", tmp_path / "text.pth", tmp_path / "a.safetensors").refused("text.pth", "a text file")
    run("convert", source, source / "a.safetensors").refused("cannot create the folder")
    (tmp_path / "folder.safetensors").mkdir()
    run("convert", source, tmp_path / "folder.safetensors").refused("it is a folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cut.pth", "folder.safetensors", "text.pth"]


# ---- inspect


def test_inspect_a_decoder(run: Run, bundled: Path) -> None:
    outcome = run("inspect", bundled / "pixdec-nano.safetensors")
    assert (outcome.code, outcome.err) == (0, "")
    lines = dict(line.split(": ", 1) for line in outcome.out.splitlines())
    assert lines["kind"] == "decoder"
    assert lines["space"] == "flux2"
    assert lines["licence"] == "Apache-2.0"
    assert lines["dtypes"] == "float32"
    assert int(lines["parameters"]) > 1000
    assert lines["settings.backbone.hidden"] == "16"
    assert "problem" not in lines
    record = run("inspect", bundled / "pixdec-nano.safetensors", "--json").records[0]
    assert record["settings"]["adapter"]["latent_channels"] == 128
    assert record["problem"] is None


def test_inspect_originals(run: Run, original: Callable[[int], Path]) -> None:
    record = run("inspect", original(4), "--json").records[0]
    assert (record["kind"], record["version"], record["space"]) == ("decoder", "v1", "sdxl")
    assert record["dtypes"] == ["bfloat16"]
    assert record["settings"]["backbone"]["text_width"] == 8
    ambiguous = run("inspect", original(16).parent, "--json").records[0]
    assert ambiguous["space"] == "ambiguous: flux1, sd3 or qwen-image"
    assert ambiguous["settings"] is None


def test_inspect_an_autoencoder(run: Run, bundled: Path) -> None:
    record = run("inspect", bundled / "pixdec-tiny.safetensors", "--json").records[0]
    assert record["kind"] == "autoencoder"
    assert record["settings"]["encoder_widths"] == [8, 8, 8]


def test_inspect_a_latent(run: Run, tmp_path: Path) -> None:
    outcome = run("inspect", latent_file(tmp_path / "z.safetensors"))
    assert (outcome.code, outcome.err) == (0, "")
    lines = dict(line.split(": ", 1) for line in outcome.out.splitlines())
    assert (lines["kind"], lines["space"], lines["shape"]) == ("latent", "flux2", "2, 128, 2, 3")
    assert (lines["sigma"], lines["image"]) == ("0.25, 0.25", "48x32")
    assert float(lines["std"]) == pytest.approx(1, abs=0.1)


def test_inspect_names_what_is_wrong_with_a_latent(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    metadata = {"pixdec": "latent", "space": "flux2", "sigma": "[0.0]"}
    save_file({"latent": torch.full((1, 128, 2, 2), float("nan"))}, path, metadata)
    outcome = run("inspect", path, "--json")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "NaN" in outcome.err
    assert "NaN" in str(outcome.records[0]["problem"])
    save_file({"latent": 9 * torch.randn(1, 128, 16, 16)}, path, metadata)
    outcome = run("inspect", path)
    assert outcome.code == 2
    assert "it looks raw" in outcome.err
    assert "std: " in outcome.out


def test_inspect_names_what_is_wrong_with_a_decoder(run: Run, tmp_path: Path, original: Callable[[int], Path]) -> None:
    tensors = torch.load(original(4), weights_only=True)
    dropped = next(key for key in tensors if key.endswith("weight"))
    torch.save({key: value for key, value in tensors.items() if key != dropped}, tmp_path / "part.pth")
    outcome = run("inspect", tmp_path / "part.pth")
    assert outcome.code == 2
    assert dropped.removeprefix("net.") in outcome.err
    assert outcome.err.count("\n") == 1


def test_inspect_an_image(run: Run, tmp_path: Path, photo: Callable[..., Path]) -> None:
    record = run("inspect", photo(tmp_path / "a.jpg", 8, 4), "--json").records[0]
    assert (record["kind"], record["width"], record["height"], record["settings"]) == ("image", 8, 4, None)
    save_image(to_pil(torch.zeros(1, 3, 2, 2))[0], tmp_path / "b.png", settings={"model": "pixdec-nano", "seed": 7})
    assert "settings.seed: 7" in run("inspect", tmp_path / "b.png").out.splitlines()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.safetensors", None, "there is no such file or folder"),
        ("empty.safetensors", b"", "the file is empty"),
        ("text.bin", b"hello, this is a text", "a text file"),
        ("broken.png", b"hello", "not an image"),
    ],
)
def test_inspect_refuses(run: Run, tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    run("inspect", tmp_path / name).refused(name, says)
    data = latent_file(tmp_path / "z.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-10])
    run("inspect", tmp_path / "cut.safetensors").refused("cut.safetensors", "cut short")


def test_inspect_tensors_of_something_else(run: Run, tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(3, 4)}, tmp_path / "other.safetensors")
    outcome = run("inspect", tmp_path / "other.safetensors")
    assert outcome.code == 2
    assert "kind: unknown" in outcome.out
    assert "parameters: 12" in outcome.out
    assert "some.weight" in outcome.err
    assert json.loads(run("inspect", tmp_path / "other.safetensors", "--json").out)["tensors"] == 1
