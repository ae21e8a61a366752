"""Latent: what its constructor guarantees, and its file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pixdec.latents import SPACES, Latent, get_space, latent_settings

FLUX1 = get_space("flux1")


def values(batch: int = 3, channels: int = 16, side: int = 8) -> torch.Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_one_sigma_serves_all() -> None:
    latent = Latent(values(), FLUX1, 0.25)
    assert latent.sigma.dtype == torch.float32
    assert latent.sigma.tolist() == [0.25] * 3
    assert Latent(values(), FLUX1).sigma.tolist() == [0.0] * 3
    assert Latent(values(2), FLUX1, torch.tensor([0.0, 0.5])).sigma.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("sigma", [1.1, -0.5, float("nan"), [0.1, 0.2]])
def test_sigma_is_checked(sigma: float | list[float]) -> None:
    with pytest.raises(ValueError, match="sigma"):
        Latent(values(), FLUX1, sigma)


def test_the_constructor_checks_the_latent() -> None:
    with pytest.raises(ValueError, match="it looks raw"):
        Latent(2.8 * values(), FLUX1)
    with pytest.raises(ValueError, match="no batch axis"):
        Latent(values()[0], FLUX1)


def test_an_unusual_latent_can_be_trusted_but_not_a_misshapen_one() -> None:
    assert Latent(2.8 * values(), FLUX1, statistics=False).tensor.std() > 2
    with pytest.raises(ValueError, match="NaN"):
        Latent(values() * float("nan"), FLUX1, statistics=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SPACES)
def test_save_and_load_return_the_same(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    space = get_space(name)
    tensor = values(3, space.channels, 2).to(dtype).transpose(2, 3)  # not contiguous
    latent = Latent(tensor, space, [0.0, 0.1, 1.0])
    latent.save(tmp_path / "a.safetensors")
    loaded = Latent.load(tmp_path / "a.safetensors")
    assert loaded.tensor.dtype == dtype
    assert torch.equal(loaded.tensor, tensor)
    assert loaded.space is space
    assert torch.equal(loaded.sigma, latent.sigma)


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    Latent(values(), FLUX1, [0.0, 0.5, 1.0]).save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["latent"]
        metadata = file.metadata()
    assert (metadata["pixdec"], metadata["space"]) == ("latent", "flux1")
    assert json.loads(metadata["sigma"]) == [0.0, 0.5, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_settings_lie_beside_the_latent(tmp_path: Path) -> None:
    settings: dict[str, object] = {"prompt": 'Zürich\n"雪"', "seed": 7, "guidance": None}
    latent = Latent(values(), FLUX1, 0.25)
    latent.save(tmp_path / "told.safetensors", settings)
    latent.save(tmp_path / "silent.safetensors")
    assert latent_settings(tmp_path / "told.safetensors") == settings
    assert latent_settings(tmp_path / "silent.safetensors") == {}
    told, silent = (Latent.load(tmp_path / f"{name}.safetensors") for name in ("told", "silent"))
    assert torch.equal(told.tensor, silent.tensor)
    assert torch.equal(told.sigma, silent.sigma)


@pytest.mark.parametrize("text", ["seven", "[7]", "null"])
def test_settings_that_are_no_object(tmp_path: Path, text: str) -> None:
    save_file({"latent": values()}, tmp_path / "a.safetensors", {"settings": text})
    with pytest.raises(ValueError, match=rf"a\.safetensors: its metadata has settings '{re.escape(text)}'"):
        latent_settings(tmp_path / "a.safetensors")


def test_settings_of_what_is_no_latent(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("no latent")
    for name in ("a.safetensors", "absent.safetensors"):
        with pytest.raises(ValueError, match=f"{name}: (a text file|there is no such file)"):
            latent_settings(tmp_path / name)


def test_save_names_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*absent"):
        Latent(values(), FLUX1).save(tmp_path / "absent" / "a.safetensors")


def test_a_trusted_latent_is_judged_again_on_loading(tmp_path: Path) -> None:
    Latent(2.8 * values(), FLUX1, statistics=False).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: .*it looks raw"):
        Latent.load(tmp_path / "a.safetensors")
    assert Latent.load(tmp_path / "a.safetensors", statistics=False).tensor.std() > 2


def one_line(path: Path) -> str:
    """The error that loading gives."""
    with pytest.raises(ValueError) as caught:
        Latent.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "no such file" in one_line(tmp_path / "absent.safetensors")
    assert "no such file" in one_line(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 60, 2000])
def test_truncated(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    Latent(values(), FLUX1).save(path)
    assert path.stat().st_size > 2000
    path.write_bytes(path.read_bytes()[:kept])
    assert re.search("empty|cut short|download it again", one_line(path))


def test_foreign_content(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert "a PNG image" in one_line(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("tensors", "metadata", "line"),
    [
        ({"latent": values()}, None, "names no space; say which: Latent.load(path, space=...) or --space"),
        ({"weight": values()}, {"pixdec": "latent", "space": "flux1", "sigma": "[0,0,0]"}, "say 'latent'"),
        ({"latent": values()}, {"pixdec": "model", "space": "flux1", "sigma": "[0,0,0]"}, "say 'model'"),
        ({"a": values(), "b": values()}, None, "it holds 2 tensors, a, b"),
        ({"a": torch.ones(3)}, None, "no latent: it holds 1 tensors, a"),
        ({"latent": values()}, {"pixdec": "latent", "sigma": "[0,0,0]"}, "unknown latent space ''"),
        ({"latent": values()}, {"pixdec": "latent", "space": "sd1", "sigma": "[0,0,0]"}, "unknown latent space 'sd1'"),
        ({"latent": values()}, {"pixdec": "latent", "space": "sdxl", "sigma": "[0,0,0]"}, "which takes"),
        ({"latent": values()}, {"pixdec": "latent", "space": "flux1"}, "expected a JSON list"),
        ({"latent": values()}, {"pixdec": "latent", "space": "flux1", "sigma": "[0,"}, "expected a JSON list"),
        ({"latent": values()}, {"pixdec": "latent", "space": "flux1", "sigma": '{"a": 1}'}, "expected a JSON list"),
        ({"latent": values()}, {"pixdec": "latent", "space": "flux1", "sigma": "[0, 0]"}, "each of 3 latents"),
        ({"latent": values()}, {"pixdec": "latent", "space": "flux1", "sigma": "[0, 0, NaN]"}, r"in [0, 1]"),
    ],
)
def test_other_safetensors_files(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, line: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert line in one_line(tmp_path / "a.safetensors")


def comfy(path: Path, tensor: torch.Tensor, mark: bool = True) -> Path:
    """A file as ComfyUI's SaveLatent writes it."""
    tensors = {"latent_tensor": tensor.contiguous(), **({"latent_format_version_0": torch.tensor([])} if mark else {})}
    save_file(tensors, path, {"prompt": '{"3": {"class_type": "KSampler"}}'})
    return path


@pytest.mark.parametrize("name", ["flux1", "sd3", "sdxl", "qwen-image", "flux2"])
def test_a_latent_of_comfyui_is_what_its_vae_returns(tmp_path: Path, name: str) -> None:
    space = get_space(name)
    wanted = values(2, space.channels)
    held = wanted if name == "flux2" else space.denormalize(wanted)
    path = comfy(tmp_path / "x_00001_.latent", held.unsqueeze(2) if name == "qwen-image" else held)
    loaded = Latent.load(path, space=name)
    assert loaded.space is space
    assert torch.allclose(loaded.tensor, wanted, atol=1e-5)
    assert loaded.sigma.tolist() == [0, 0]
    assert latent_settings(path) == {}
    assert "names no space" in one_line(path)


def test_an_old_latent_of_comfyui_is_scaled(tmp_path: Path) -> None:
    raw = get_space("sdxl").denormalize(values(1, 4))
    loaded = Latent.load(comfy(tmp_path / "x.latent", raw * 0.18215, mark=False), space="sdxl")
    assert torch.allclose(loaded.tensor, values(1, 4), atol=1e-5)


def test_a_raw_flux2_latent_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="normalised by statistics kept in the autoencoder"):
        Latent.load(comfy(tmp_path / "x.latent", values(1, 32)), space="flux2")


@pytest.mark.parametrize("suffix", ["pt", "npy"])
def test_a_tensor_alone_is_a_latent_of_the_space_that_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    torch.save(values(), path) if suffix == "pt" else np.save(path, values().numpy().astype(">f4"))
    assert "names no space" in one_line(path)
    assert torch.equal(Latent.load(path, space="flux1").tensor, values())
    with pytest.raises(ValueError, match=r"x\.\w+: .*it looks like a latent of"):
        Latent.load(path, space="sdxl")


def test_a_space_that_contradicts_the_file(tmp_path: Path) -> None:
    Latent(values(), "flux1").save(tmp_path / "a.safetensors")
    assert Latent.load(tmp_path / "a.safetensors", space="flux1").space.name == "flux1"
    with pytest.raises(ValueError, match="a latent of flux1, and space='sd3' was said"):
        Latent.load(tmp_path / "a.safetensors", space="sd3")


def test_noise_is_drawn_by_seed() -> None:
    """Where `pixdec upscale` and `pixdec eval` get it: the same seed must go on giving the same images."""
    clean = Latent(torch.zeros(1, 128, 4, 6), get_space("flux2"))
    noise = torch.randn(1, 128, 4, 6, generator=torch.Generator().manual_seed(7 ^ 0x6C6174))
    noised = clean.noised(0.4, 7)
    assert torch.equal(noised.tensor, clean.space.add_noise(clean.tensor, 0.4, noise))
    assert torch.equal(noised.sigma, torch.tensor([0.4]))
    assert torch.equal(clean.noised(0.4, 7 + 2**32).tensor, noised.tensor), "the generator heeds 32 bits"
    assert clean.noised(0.0, 7) is clean


def test_noise_is_of_the_level_and_not_that_of_the_image() -> None:
    clean = Latent(torch.zeros(1, 128, 16, 16), get_space("flux2"))
    noisy = clean.noised(0.4, 0).tensor
    assert float(noisy.std()) == pytest.approx(0.4, abs=0.01)
    image_noise = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    both = torch.stack([noisy.flatten(), image_noise.flatten()])
    assert abs(float(both.corrcoef()[0, 1])) < 0.03
    assert clean.noised(0.4, -5).tensor.isfinite().all()
