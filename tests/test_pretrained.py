"""`save_pretrained`, and `from_pretrained` from a folder or a repository of the hub."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from battery import randomised
from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.latents import Latent
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import load_decoder, save_decoder

BACKBONE = PixDiTSettings(
    hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=None, text_length=0
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> PixelDecoder:
    path = tmp_path_factory.mktemp("own") / "mine.safetensors"
    network = randomised(PiD(PiDSettings(BACKBONE, AdapterSettings(width=8, blocks=1))).initialize())
    save_decoder(network, path, name="mine", space="flux1", version="v1", licence="MIT", times=(0.9, 0.4, 0.0))
    return PixelDecoder.from_pretrained(path, device="cpu")


def test_a_saved_folder_is_the_same_decoder(decoder: PixelDecoder, tmp_path: Path) -> None:
    decoder.save_pretrained(tmp_path / "new/folder")
    again = PixelDecoder.from_pretrained(tmp_path / "new/folder", device="cpu")
    for fact in ("name", "spaces", "kind", "times", "version", "licence", "scale"):
        assert getattr(again.model, fact) == getattr(decoder.model, fact)
    latent = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.decode(latent, output="pt"), decoder.decode(latent, output="pt"))
    decoder.save_pretrained(tmp_path / "new/folder", name="theirs")
    assert PixelDecoder.from_pretrained(tmp_path / "new/folder", device="cpu").model.name == "theirs"


def test_a_repository_of_the_hub_is_fetched_as_asked(
    decoder: PixelDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder.save_pretrained(tmp_path)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **k: asked.update(k, name=name) or tmp_path)
    given = {"revision": "v2", "local_files_only": True, "token": "hf_x"}
    found = PixelDecoder.from_pretrained("someone/my-decoder", device="cpu", **given)
    assert found.model.name == "mine"
    assert asked == {
        **given,
        "name": "someone/my-decoder",
        "allow_patterns": ["*.safetensors", "*.safetensors.index.json"],
        "ignore_patterns": ["*/*"],
    }


def test_a_revision_of_a_local_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"revision='v2': .* is a local path, which has none"):
        PixelDecoder.from_pretrained(tmp_path, revision="v2")


def test_the_repository_of_the_released_models_needs_a_model() -> None:
    with pytest.raises(ValueError, match="nvidia/PiD: neither a file, a known model nor"):
        load_decoder("nvidia/PiD")


def test_the_bundled_pair_needs_nothing_else_and_a_generators_latent_needs_its_vae(tmp_path: Path) -> None:
    encoder, bundled = ImageEncoder.from_pretrained(), PixelDecoder.from_pretrained(device="cpu")
    latent = encoder.encode(0.3 * torch.rand(1, 3, 32, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = bundled.decode(latent, steps=1, output="pt")
    assert image.shape == (1, 3, 128, 256)
    expected = bundled.decode(Latent(encoder.decode(latent.tensor).float(), "rgb"), steps=1, output="pt")
    assert torch.allclose(image, expected, atol=1e-3)
    latent.save(tmp_path / "l.safetensors")
    assert torch.equal(bundled.decode(Latent.load(tmp_path / "l.safetensors"), steps=1, output="pt"), image)
    with pytest.warns(UserWarning, match="without a space, taken for a latent of ImageEncoder"):
        assert torch.equal(bundled.decode(latent.tensor, steps=1, output="pt"), image)
    with pytest.raises(ValueError, match=r"a latent of flux2.*--vae: a diffusers AutoencoderKLFlux2.*'pixdec-tiny'"):
        bundled.decode(Latent(latent.tensor, "flux2"))
    with pytest.raises(ValueError, match="it says that someone/vae encoded it"):  # a file names nothing to be loaded
        bundled.decode(Latent(latent.tensor, "flux2", encoder="someone/vae"))
    with pytest.raises(ValueError, match=r"a latent of flux1.*first_decode\(latent, vae\)"):
        bundled.decode(Latent(torch.randn(1, 16, 2, 2), "flux1"))
