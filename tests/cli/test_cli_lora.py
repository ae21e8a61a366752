"""--lora and --lora-strength of decode, upscale and generate, and what inspect says of such a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from klein_pipeline import klein, one_process

from pixdec.io.images import read_image, read_settings, to_tensor
from pixdec.latents import Latent, get_space
from pixdec.weights.load import load_decoder
from pixdec.weights.lora import save_lora

__all__ = ["klein", "one_process"]

Run = Callable[..., Any]
Photo = Callable[..., Path]


@pytest.fixture(scope="module")
def lora(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the tests' pixdec-nano."""
    settings = load_decoder(bundled / "pixdec-nano.safetensors").network.settings
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, out, width in (("qkv", 48, 16), ("proj", 16, 16)):
        key = f"backbone.patch_blocks.0.image.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(2, width, generator=generator)
        tensors[f"{key}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    path = tmp_path_factory.mktemp("lora") / "mine.safetensors"
    facts = {"name": "mine", "base": "pixdec-nano", "space": "flux2", "licence": "Apache-2.0"}
    save_lora(tensors, path, alpha=4.0, layers=("qkv", "proj"), network=settings, **facts)
    return path


@pytest.fixture
def latent(tmp_path: Path) -> Path:
    path = tmp_path / "z.safetensors"
    tensor = 0.7 * torch.randn(1, 128, 2, 3, generator=torch.Generator().manual_seed(0))
    Latent(tensor, get_space("flux2"), 0.0).save(path)
    return path


def pixels(path: Path) -> torch.Tensor:
    return to_tensor(read_image(path))


def test_decode_with_a_lora(run: Run, latent: Path, lora: Path, tmp_path: Path) -> None:
    images = [tmp_path / f"{i}.png" for i in range(4)]
    assert run("decode", latent, "-o", images[0]).code == 0
    for image, strength in zip(images[1:], ("0", "0.5", "1"), strict=True):
        outcome = run("decode", latent, "-o", image, "--lora", lora, "--lora-strength", strength, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.records[0]["settings"]["lora"] == "mine"
    assert torch.equal(pixels(images[1]), pixels(images[0]))
    half, full = (float((pixels(image) - pixels(images[0])).abs().mean()) for image in images[2:])
    assert 0 < half < full
    assert "lora" not in read_settings(images[0])
    assert (read_settings(images[2])["lora"], read_settings(images[2])["lora_strength"]) == ("mine", 0.5)


def test_upscale_with_a_lora(run: Run, photo: Photo, lora: Path, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png")
    assert run("upscale", source, "-o", tmp_path / "a.png").code == 0
    assert run("upscale", source, "-o", tmp_path / "b.png", "--lora", lora).code == 0
    assert not torch.equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert read_settings(tmp_path / "b.png")["lora_strength"] == 1.0


def test_generate_with_a_lora(run: Run, klein: Path, lora: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    common = ("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", image, "--steps", 2, "--guidance", 1)
    common += ("--height", 32, "--width", 48, "--device", "cpu", "--dtype", "float32")
    assert run(*common).code == 0
    plain = pixels(image)
    run(*common, "--lora", lora, "--lora-strength", "0.5").refused("a.png", "lora None, not 'mine'", "--again")
    assert run(*common, "--lora", lora, "--lora-strength", "0.5", "--again").code == 0
    assert not torch.equal(pixels(image), plain)
    assert (read_settings(image)["lora"], read_settings(image)["lora_strength"]) == ("mine", 0.5)
    made = image.stat().st_mtime_ns
    assert run(*common, "--lora", lora, "--lora-strength", "0.5").code == 0
    assert image.stat().st_mtime_ns == made
    run(*common).refused("a.png", "lora 'mine', not None")
    run(*common, "--lora", lora, "--lora-strength", "inf").refused("strength inf")


def test_loras_that_cannot_be(run: Run, latent: Path, lora: Path, tmp_path: Path, bundled: Path) -> None:
    out = ("-o", tmp_path / "a.png")
    run("decode", latent, *out, "--lora-strength", "0.5").refused("--lora-strength 0.5", "--lora")
    run("decode", latent, *out, "--lora", lora, "--lora-strength", "nan").refused("strength nan", "finite")
    run("decode", latent, *out, "--lora", tmp_path / "no").refused("no: there is no such file")
    run("decode", latent, *out, "--lora", bundled / "pixdec-nano.safetensors").refused("no LoRA but 'decoder'")
    run("decode", latent, *out, "--model", lora).refused("no decoder but a LoRA", "--lora")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(lora.read_bytes()[:-1])
    run("upscale", latent, *out, "--lora", cut).refused("z.safetensors")  # no image; the LoRA is not reached
    run("decode", latent, *out, "--lora", cut).refused("cut.safetensors", "cut short")
    assert not (tmp_path / "a.png").exists()


def test_inspect_a_lora(run: Run, lora: Path, tmp_path: Path) -> None:
    outcome = run("inspect", lora)
    assert (outcome.code, outcome.err) == (0, "")
    lines = dict(line.split(": ", 1) for line in outcome.out.splitlines())
    assert (lines["kind"], lines["name"], lines["base"], lines["space"]) == ("lora", "mine", "pixdec-nano", "flux2")
    assert (lines["settings.rank"], lines["settings.alpha"], lines["settings.layers"]) == ("2", "4.0", "qkv, proj")
    assert lines["parameters"] == str(2 * (16 + 48) + 2 * (16 + 16))
    record = run("inspect", lora, "--json").records[0]
    assert (record["kind"], record["problem"], record["settings"]["rank"]) == ("lora", None, 2)


def test_inspect_names_what_is_wrong_with_a_lora(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "half.safetensors"
    save_file({"a.lora_A.weight": torch.zeros(2, 3)}, path, {"pixdec": "lora", "base": "pixdec-nano"})
    outcome = run("inspect", path)
    assert outcome.code == 2
    assert "base: pixdec-nano" in outcome.out.splitlines()
    assert outcome.err.count("\n") == 1
    assert outcome.err.count(str(path)) == 1
    assert "metadata lack" in outcome.err
