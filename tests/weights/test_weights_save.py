"""Our own files: written whole, read back strictly, converted and described."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings
from pixdec.weights import catalog
from pixdec.weights.catalog import get_card
from pixdec.weights.describe import describe
from pixdec.weights.load import convert, load_autoencoder, load_decoder, save_autoencoder, save_decoder
from pixdec.weights.network_settings import settings_from_json, settings_to_json

State = dict[str, Tensor]
SettingsOf = Callable[..., PiDSettings]
Original = Callable[..., State]

TINY = TinyVAESettings(encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), decoder_depths=(0, 1, 0))
NANO = PiDSettings(
    PixDiTSettings(
        patch=8, hidden=16, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, pixel_depth=1,
        text_width=None, reference=None,
    ),
    AdapterSettings(latent_channels=128, latent_factor=16, width=8, blocks=1, unpack=2, gate="token", pixel_head=True),
)  # fmt: skip
TIMES = (0.9, 0.5, 0.0)
FACTS: dict[str, Any] = {"name": "mine", "space": "flux2", "version": "nano", "licence": "Apache-2.0", "times": TIMES}


@pytest.fixture(scope="module")
def nano() -> PiD:
    return PiD(NANO).initialize(1)


@pytest.fixture
def saved(tmp_path: Path, nano: PiD) -> Path:
    save_decoder(nano, tmp_path / "mine.safetensors", **FACTS)
    return tmp_path / "mine.safetensors"


def rewrite(path: Path, **changes: str | None) -> None:
    """Changes the metadata of a file; None removes an entry."""
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata() | changes
    save_file(load_file(path), path, {key: value for key, value in metadata.items() if value is not None})


def refusal(path: Path, load: Callable[[Path], object] = load_decoder) -> str:
    with pytest.raises(ValueError, match=str(path)) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_decoder_comes_back_as_it_was_saved(saved: Path, nano: PiD) -> None:
    loaded = load_decoder(saved)
    assert loaded.network.settings == NANO
    weights = loaded.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in nano.state_dict().items())
    assert (loaded.name, loaded.spaces, loaded.scale, loaded.kind) == ("mine", ("flux2",), 4, "student")
    assert (loaded.version, loaded.times, loaded.needs_text, loaded.licence) == ("nano", TIMES, False, "Apache-2.0")
    assert loaded.sizes is None
    x, t, latent = torch.randn(1, 3, 64, 64), torch.tensor([0.5]), torch.randn(1, 128, 1, 1)
    with torch.no_grad():
        expected = nano(x, t, None, latent, torch.zeros(1))
    assert torch.equal(loaded.network(x, t, None, latent, torch.zeros(1)), expected)


def test_half_precision_is_for_storage(tmp_path: Path, nano: PiD) -> None:
    path = tmp_path / "half.safetensors"
    save_decoder(nano, path, **FACTS, dtype=torch.float16)
    stored = load_file(path)
    assert {key for key, value in stored.items() if value.dtype != torch.float16} == {
        key for key in stored if key.endswith("log_alpha")
    }
    network = load_decoder(path).network
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())
    assert all(torch.equal(value, stored[key].float()) for key, value in network.state_dict().items())


def test_a_failed_write_leaves_nothing(saved: Path, nano: PiD, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pixdec.weights.load.write_safetensors", full)
    with pytest.raises(OSError, match=f"cannot write {saved}: No space left"):
        save_decoder(nano, saved, **FACTS)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"space": "flux1"}, "its adapter takes 128 channels at 1/16, but flux1 latents have 16 at 1/8"),
        ({"space": "nowhere"}, "unknown latent space 'nowhere'"),
        ({"space": ""}, "a prior, and nothing else, has no adapter and no space"),
        ({"kind": "prior"}, "a prior, and nothing else, has no adapter and no space"),
        ({"kind": "teacher"}, "others have none"),
        ({"times": ()}, "a student has noise levels that fall from at most 1 to 0"),
        ({"times": (0.5, 0.6, 0.0)}, "a student has noise levels"),
        ({"times": (0.9, 0.5)}, "a student has noise levels"),
        ({"times": (1.5, 0.0)}, "a student has noise levels"),
    ],
)
def test_facts_that_contradict_each_other_are_not_saved(
    tmp_path: Path, nano: PiD, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        save_decoder(nano, tmp_path / "a.safetensors", **{**FACTS, **facts})
    assert not any(tmp_path.iterdir())


SETTINGS = json.loads(settings_to_json(NANO))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": None}, "its metadata lack settings"),
        ({"times": None, "space": None}, "its metadata lack space, times"),
        ({"kind": "genius"}, "kind 'genius'; expected one of student, teacher, prior"),
        ({"times": "[0.9, null]"}, "times '[0.9, null]'; expected a JSON list"),
        ({"times": "0.9"}, "expected a JSON list"),
        ({"space": "sdxl"}, "but sdxl latents have 4 at 1/8"),
        ({"pixdec": "upscaler"}, "no decoder but upscaler"),
        ({"settings": "{"}, "its settings are not JSON"),
        ({"settings": "[]"}, "settings=[]: expected PiDSettings"),
        ({"settings": json.dumps({**SETTINGS, "extra": 1})}, "unknown field 'extra'; was the file written by a newer"),
        ({"settings": json.dumps({**SETTINGS, "prediction": "noise"})}, "settings.prediction='noise': expected"),
        (
            {"settings": json.dumps({**SETTINGS, "backbone": {**SETTINGS["backbone"], "depth": True}})},
            "settings.backbone.depth=True: expected int",
        ),
        (
            {"settings": json.dumps({**SETTINGS, "backbone": {**SETTINGS["backbone"], "reference": [64]}})},
            "settings.backbone.reference=[64]: expected tuple",
        ),
        (
            {"settings": json.dumps({**SETTINGS, "backbone": {**SETTINGS["backbone"], "heads": 0}})},
            "settings.backbone: no network can have",
        ),
        (
            {"settings": json.dumps({**SETTINGS, "backbone": {**SETTINGS["backbone"], "depth": 3}})},
            "17 missing: adapter.heads.1.bias, adapter.heads.1.weight, backbone.patch_blocks.2.image.k_norm.weight and",
        ),
        (
            {"settings": json.dumps({**SETTINGS, "adapter": {**SETTINGS["adapter"], "width": -8}})},
            "no network can have its settings",
        ),
    ],
)
def test_metadata_are_read_strictly(saved: Path, changes: dict[str, str | None], message: str) -> None:
    rewrite(saved, **changes)
    assert message in refusal(saved)


def test_settings_survive_json(settings_of: SettingsOf) -> None:
    for settings in (NANO, settings_of("v1"), settings_of("v1.5", 128, 16), settings_of("prior"), PiDSettings()):
        assert settings_from_json(settings_to_json(settings), PiDSettings) == settings
    assert settings_from_json("{}", PiDSettings) == PiDSettings()
    assert settings_from_json(settings_to_json(TINY), TinyVAESettings) == TINY


def test_an_autoencoder_comes_back_as_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = TinyVAE(TINY).to(memory_format=torch.channels_last)
    path = tmp_path / "pixdec-tiny.safetensors"
    save_autoencoder(network, path, name="pixdec-tiny", licence="Apache-2.0", dtype=torch.float16)
    monkeypatch.setattr(catalog, "BUNDLED", tmp_path)
    for loaded in (load_autoencoder(path), load_autoencoder()):
        assert loaded.settings == TINY
        weights = loaded.state_dict()
        assert all(torch.equal(value.half().float(), weights[key]) for key, value in network.state_dict().items())
        assert not loaded.training
    assert load_autoencoder(path, dtype=torch.bfloat16).decoder.conv_in.weight.dtype == torch.bfloat16
    found = describe(path)
    assert (found.kind, found.name, found.space, found.problem) == ("autoencoder", "pixdec-tiny", "flux2", None)
    assert found.settings == TINY
    assert "no decoder but an autoencoder, which ImageEncoder" in refusal(path)
    rewrite(path, settings=settings_to_json(replace(TINY, decoder_depths=(0, 0, 0))))
    assert "unexpected: decoder.level2.0.conv1.bias" in refusal(path, load_autoencoder)
    assert "unexpected: decoder.level2.0.conv1.bias" in (describe(path).problem or "")


def test_a_decoder_is_no_autoencoder(saved: Path) -> None:
    assert "no tiny autoencoder" in refusal(saved, load_autoencoder)


def test_convert_a_released_file(tmp_path: Path, flux1: State) -> None:
    folder = tmp_path / get_card("pid-flux1-2k").folder
    folder.mkdir()
    torch.save({f"net.{key}": value for key, value in flux1.items()}, folder / "model_ema_bf16.pth")
    source, target = folder / "model_ema_bf16.pth", tmp_path / "out.safetensors"
    before = load_decoder(source)
    assert convert(source, target).space == "flux1"
    after = load_decoder(target)
    assert replace(after, network=before.network) == before
    assert after.network.settings == before.network.settings
    weights = before.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in after.network.state_dict().items())
    assert {value.dtype for key, value in load_file(target).items() if "log_alpha" not in key} == {torch.bfloat16}
    content = target.read_bytes()
    convert(target, target)
    assert target.read_bytes() == content
    with pytest.raises(ValueError, match=r"end the name with \.safetensors"):
        convert(source, tmp_path / "out.pth")
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, target.name}


def test_convert_does_not_guess_and_is_strict(tmp_path: Path, flux1: State) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "out.safetensors"
    torch.save(flux1, source)
    with pytest.raises(ValueError, match=f"{source}: decoders for flux1, sd3 or qwen-image"):
        convert(source, target)
    assert convert(source, target, space="sd3").space == "sd3"
    assert load_decoder(target).spaces == ("sd3",)
    target.unlink()
    torch.save({key: value for key, value in flux1.items() if key != "final_layer.linear.bias"}, source)
    with pytest.raises(ValueError, match=r"1 missing: final_layer\.linear\.bias"):
        convert(source, target, space="sd3")
    assert not target.exists()


def test_describe_decoders(
    tmp_path: Path, saved: Path, flux1: State, settings_of: SettingsOf, original: Original
) -> None:
    found = describe(saved)
    assert (found.kind, found.role, found.name, found.version) == ("decoder", "student", "mine", "nano")
    assert (found.space, found.scale, found.licence, found.problem) == ("flux2", 4, "Apache-2.0", None)
    assert found.settings == NANO
    assert found.size == saved.stat().st_size

    path = tmp_path / "a.pth"
    torch.save({f"net.{key}": value for key, value in flux1.items()} | {"fake_score.x": torch.zeros(9)}, path)
    found = describe(path)
    assert (found.kind, found.version, found.space) == ("decoder", "v1", "ambiguous: flux1, sd3 or qwen-image")
    assert (found.tensors, found.parameters) == (len(flux1), sum(value.numel() for value in flux1.values()))
    assert (found.dtypes, found.problem, found.settings) == (("bfloat16",), None, None)

    torch.save({key: value for key, value in flux1.items() if key != "y_embedder.norm.weight"}, path)
    found = describe(path)
    assert (found.kind, found.space) == ("decoder", "ambiguous: flux1, sd3 or qwen-image")
    assert "1 missing: y_embedder.norm.weight" in (found.problem or "")

    torch.save(original(settings_of("prior")), path)
    found = describe(path)
    assert (found.kind, found.role, found.space, found.problem) == ("decoder", "prior", None, None)


def test_describe_other_files(tmp_path: Path) -> None:
    Latent(torch.randn(1, 16, 4, 4), get_space("sd3")).save(tmp_path / "latent.safetensors")
    found = describe(tmp_path / "latent.safetensors")
    assert (found.kind, found.space, found.tensors, found.parameters) == ("latent", "sd3", 1, 256)
    assert "no decoder but a latent" in refusal(tmp_path / "latent.safetensors")
    save_file({"unet.weight": torch.zeros(3, dtype=torch.int8)}, tmp_path / "other.safetensors")
    found = describe(tmp_path / "other.safetensors")
    assert (found.kind, found.tensors, found.dtypes) == ("unknown", 1, ("int8",))
    assert "not those of a PiD" in (found.problem or "")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="the file is empty"):
        describe(tmp_path / "empty")
