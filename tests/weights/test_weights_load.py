"""load_decoder and network_from_reference: the right network from every kind of file, or one clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixdec.models.adapter import SigmaGate
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights import load
from pixdec.weights.catalog import STUDENT_TIMES, get_card
from pixdec.weights.keymap import to_original, to_ours
from pixdec.weights.load import load_decoder, network_from_reference, save_decoder

FLUX1_FOLDER = get_card("pid-flux1-2k").folder
REFERENCE = Path(__file__).resolve().parents[2] / "../shared/reference"
State = dict[str, Tensor]
SettingsOf = Callable[..., PiDSettings]
Original = Callable[..., State]


def prefixed(state: State, prefix: str = "net.") -> State:
    return {prefix + key: value for key, value in state.items()}


def released_file(folder: Path, state: State, name: str = FLUX1_FOLDER) -> Path:
    """A file as it is released: in its folder, with `net.` before each key."""
    path = folder / name / "model_ema_bf16.pth"
    path.parent.mkdir()
    torch.save(prefixed(state), path)
    return path


def holds(network: PiD, state: State) -> bool:
    ours = {to_ours(key): value.float() for key, value in state.items()}
    weights = {key: value.float() for key, value in network.state_dict().items()}
    return ours.keys() == weights.keys() and all(torch.equal(value, weights[key]) for key, value in ours.items())


def refusal(path: Path | str, **arguments: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_decoder(path, **arguments)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_released_file_is_known_by_its_folder(tmp_path: Path, flux1: State, settings_of: SettingsOf) -> None:
    path = released_file(tmp_path, flux1)
    for where in (path, path.parent, str(path)):
        loaded = load_decoder(where)
        assert holds(loaded.network, flux1)
        assert loaded.network.settings == settings_of("v1")
        assert (loaded.name, loaded.spaces) == ("pid-flux1-2k", ("flux1", "z-image"))
        assert (loaded.scale, loaded.kind, loaded.version) == (4, "student", "v1")
        assert (loaded.times, loaded.needs_text, loaded.licence) == (STUDENT_TIMES, True, "NSCLv1")
        assert loaded.size_warning(2048, 2048) is None
        assert "pid-flux1-2k" in (loaded.size_warning(512, 512) or "")
        assert not loaded.network.training
        assert not any(p.requires_grad for p in loaded.network.parameters())


def test_a_released_name_may_be_the_files_own(tmp_path: Path, flux1: State) -> None:
    save_file(flux1, tmp_path / f"{get_card('pid-sd3-4k').folder}.safetensors")
    assert load_decoder(tmp_path).spaces == ("sd3",)
    released_file(tmp_path, flux1).rename(tmp_path / FLUX1_FOLDER / f"{get_card('pid-sd3-4k').folder}.pth")
    assert "named as two models" in refusal(tmp_path / FLUX1_FOLDER)


@pytest.mark.parametrize(
    ("kind", "space", "scale", "version"),
    [
        (("v1", 4), "sdxl", 4, "v1"),
        (("v1", 128, 16), "flux2", 4, "v1"),
        (("v1", 768, 16), "dinov2", 4, "v1"),
        (("v1", 1152, 16, 8), "siglip", 8, "v1"),
        (("v1.5", 128, 16), "flux2", 4, "v1.5"),
    ],
)
def test_a_space_that_only_one_shape_has_needs_no_word(
    tmp_path: Path,
    kind: tuple[Any, ...],
    space: str,
    scale: int,
    version: str,
    settings_of: SettingsOf,
    original: Original,
) -> None:
    settings = settings_of(*kind)
    save_file(original(settings), tmp_path / "a.safetensors")
    loaded = load_decoder(tmp_path / "a.safetensors")
    assert loaded.network.settings == settings
    assert (loaded.spaces, loaded.scale, loaded.version, loaded.licence) == ((space,), scale, version, "unknown")
    assert loaded.size_warning(64, 64) is None


@pytest.mark.parametrize("version", ["v1", "v1.5"])
def test_a_space_that_several_have_is_never_guessed(
    tmp_path: Path, version: str, settings_of: SettingsOf, original: Original
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(original(settings_of(version)), path)
    assert "flux1, sd3 or qwen-image have tensors of the same shapes; say which with space=" in refusal(path)
    assert load_decoder(path, space="sd3").spaces == ("sd3",)
    assert load_decoder(path, space="qwen-image").spaces == ("qwen-image",)
    assert load_decoder(path, space="z-image").spaces == ("flux1", "z-image")
    assert "space='sdxl' says sdxl, but its tensors fit flux1 or sd3 or qwen-image" in refusal(path, space="sdxl")
    assert "unknown latent space 'flux'" in refusal(path, space="flux")


def test_contradictions_are_refused(tmp_path: Path, flux1: State, settings_of: SettingsOf, original: Original) -> None:
    path = released_file(tmp_path, flux1)
    assert load_decoder(path, space="z-image").spaces == ("flux1", "z-image")
    assert f"space='sd3' says sd3, but the name {FLUX1_FOLDER} says flux1" in refusal(path, space="sd3")
    wrong = released_file(tmp_path, original(settings_of("v1.5")), get_card("pid-sd3-2k").folder)
    assert "says v1, but its tensors are those of v1.5" in refusal(wrong)
    wrong = released_file(tmp_path, flux1, get_card("pid-sdxl-4k").folder)
    assert "says sdxl, but its tensors fit flux1 or sd3 or qwen-image" in refusal(wrong)
    wrong = released_file(tmp_path, flux1, get_card("pixeldit-4k").folder)
    assert "says no space, but its tensors fit" in refusal(wrong)
    ours = tmp_path / FLUX1_FOLDER / "ours.safetensors"
    save_decoder(load_decoder(path).network, ours, name="mine", space="sd3", version="v1", licence="MIT")
    assert f"the name {FLUX1_FOLDER} says flux1, but its metadata says sd3" in refusal(ours)
    ours = ours.rename(tmp_path / "ours.safetensors")
    assert "space='flux1' says flux1, but its metadata says sd3" in refusal(ours, space="flux1")
    assert load_decoder(ours).spaces == ("sd3",)


def test_priors_and_teachers(tmp_path: Path, settings_of: SettingsOf, original: Original) -> None:
    state = original(settings_of("prior"))
    path = released_file(tmp_path, state, get_card("pixeldit-4k").folder)
    prior = load_decoder(path)
    assert holds(prior.network, state)
    assert prior.network.settings == settings_of("prior")
    assert (prior.kind, prior.spaces, prior.times, prior.scale) == ("prior", (), (), 1)
    assert "space='flux1' says flux1, but the name PixelDiT_finetune_2kto4k says no space" in refusal(
        path, space="flux1"
    )
    path = path.rename(tmp_path / "prior.pth")
    assert load_decoder(path).kind == "prior"
    assert "space='flux1' says flux1, but its tensors fit no space, it is a prior" in refusal(path, space="flux1")
    state = original(settings_of("v1.5", 128, 16))
    teacher = load_decoder(released_file(tmp_path, state, get_card("pid-v1.5-flux2-4k-teacher").folder))
    assert (teacher.kind, teacher.spaces, teacher.times) == ("teacher", ("flux2",), ())


def test_a_training_checkpoint_gives_its_average(tmp_path: Path, flux1: State) -> None:
    path = tmp_path / "train.pth"
    noise = {key: torch.zeros_like(value) for key, value in flux1.items()}
    torch.save({**prefixed(noise), **prefixed(flux1, "net_ema."), **prefixed(noise, "fake_score.")}, path)
    assert holds(load_decoder(path, space="flux1").network, flux1)
    torch.save({"state_dict": {**prefixed(flux1, "core."), "core.pos_embed": torch.zeros(1)}}, path)
    assert holds(load_decoder(path, space="flux1").network, flux1)
    compiled = {key.replace("attn.", "attn._orig_mod."): value for key, value in prefixed(flux1, "_orig_mod.").items()}
    torch.save(compiled, path)
    assert holds(load_decoder(path, space="flux1").network, flux1)


def test_our_own_keys_without_metadata_are_read_too(tmp_path: Path, flux1: State) -> None:
    save_file({to_ours(key): value for key, value in flux1.items()}, tmp_path / "a.safetensors")
    assert holds(load_decoder(tmp_path / "a.safetensors", space="flux1").network, flux1)


@pytest.mark.parametrize(
    "key",
    [
        "s_embedder.proj.weight",
        "t_embedder.mlp.2.weight",
        "y_pos_embedding",
        "patch_blocks.0.attn.q_norm_x.weight",
        "patch_blocks.3.mlp_y.w2.weight",
        "pixel_blocks.0.compress_to_attn.weight",
        "pixel_blocks.1.attn.proj.bias",
        "final_layer.linear.weight",
        "lq_proj.latent_proj.0.weight",
        "lq_proj.latent_proj.2.weight",
        "lq_proj.output_heads.1.bias",
        "lq_proj.gate_modules.1.log_alpha",
        "lq_proj.pit_head.weight",
        "pit_lq_gate.content_proj.weight",
    ],
)
def test_a_missing_or_misshaped_tensor_is_named(
    tmp_path: Path, key: str, settings_of: SettingsOf, original: Original
) -> None:
    state = prefixed(original(settings_of("v1.5")))
    path = tmp_path / "a.pth"
    torch.save({name: value for name, value in state.items() if name != f"net.{key}"}, path)
    message = refusal(path, space="flux1")
    assert "missing" in message
    assert key in message
    if key not in ("y_pos_embedding", "lq_proj.latent_proj.0.weight"):  # whose other sizes are other networks
        value = state[f"net.{key}"]
        torch.save({**state, f"net.{key}": torch.zeros(*value.shape, 3, dtype=value.dtype)}, path)
        message = refusal(path, space="flux1")
        assert "mis-shaped" in message
        assert key in message


def test_an_unexpected_tensor_is_named(tmp_path: Path, flux1: State) -> None:
    path = tmp_path / "a.pth"
    extra = {f"net.extra.{i}": torch.zeros(1) for i in range(5)}
    torch.save({**prefixed(flux1), **extra, "vae.x": torch.zeros(1)}, path)
    message = refusal(path, space="flux1")
    assert "6 unexpected: net.extra.0, net.extra.1, net.extra.2 and 3 more" in message
    torch.save({**flux1, "patch_blocks.1.norm_x1.bias": torch.zeros(48)}, path)
    assert "1 unexpected: patch_blocks.1.norm_x1.bias" in refusal(path, space="flux1")
    torch.save({**flux1, "t_embedder.mlp.0.bias": torch.zeros(48, dtype=torch.int32)}, path)
    assert "1 not floating-point: t_embedder.mlp.0.bias is torch.int32" in refusal(path, space="flux1")


def test_files_that_hold_no_decoder(tmp_path: Path, settings_of: SettingsOf, original: Original) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert "no decoder: its tensors (weight) are not those of a PiD" in refusal(tmp_path / "a.safetensors")
    save_file(original(settings_of("v1", 5)), tmp_path / "b.safetensors")
    assert "takes latents of 5 channels, which no known space has" in refusal(tmp_path / "b.safetensors")
    assert "there is no such file" in refusal(tmp_path / "missing.pth")
    assert "neither a file, a known model nor a repository" in refusal("pid-flux9")


def test_short_names_are_models_and_paths_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flux1: State
) -> None:
    released_file(tmp_path, flux1)
    monkeypatch.chdir(tmp_path)
    assert load_decoder(FLUX1_FOLDER).name == "pid-flux1-2k"  # the folder that lies here
    (tmp_path / "pid-flux1-2k").mkdir()
    fetched = []
    monkeypatch.setattr(load, "fetch", lambda card, _: fetched.append(card.name) or tmp_path / FLUX1_FOLDER)
    assert holds(load_decoder("pid-flux1-2k").network, flux1)
    assert holds(load_decoder(f"nvidia/PiD/{FLUX1_FOLDER}").network, flux1)
    assert fetched == ["pid-flux1-2k"] * 2


@pytest.mark.parametrize(
    ("stored", "asked", "given"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtypes(
    tmp_path: Path,
    stored: torch.dtype,
    asked: torch.dtype | None,
    given: torch.dtype,
    settings_of: SettingsOf,
    original: Original,
) -> None:
    state = original(settings_of("v1", 4), stored)
    torch.save(state, tmp_path / "a.pth")
    network = load_decoder(tmp_path / "a.pth", dtype=asked).network
    for name, parameter in network.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith("log_alpha") else given)
    if given != torch.bfloat16:
        assert holds(network, state)
    assert all(m.log_alpha.dtype == torch.float32 for m in network.half().modules() if isinstance(m, SigmaGate))


def test_dtypes_that_weights_cannot_have(tmp_path: Path, flux1: State) -> None:
    assert "dtype=torch.int8" in refusal(released_file(tmp_path, flux1), dtype=torch.int8)


# In a process of its own, whose allocator has no freed memory at hand that a copy could hide in.
MEASURE = """
import re, sys
from pathlib import Path
from pixdec.weights.load import load_decoder

def memory(what):
    return 1024 * int(re.findall(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[0])

before = memory("VmRSS")
network = load_decoder(sys.argv[1]).network
assert all(float(parameter.sum()) > 0 for parameter in network.parameters())
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_loading_costs_no_more_memory_than_the_file(tmp_path: Path, kind: str) -> None:
    """Peak resident memory, with every weight touched, grows by less than 1.2 times the file."""
    backbone = PixDiTSettings(
        hidden=512, heads=8, depth=4, pixel_hidden=64, pixel_heads=2, pixel_depth=1, text_width=64
    )
    with torch.device("meta"):
        weights = PiD(PiDSettings(backbone, adapter=None)).state_dict()
    state = {to_original(key): torch.ones(value.shape, dtype=torch.bfloat16) for key, value in weights.items()}
    path = tmp_path / f"a.{kind}"
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    assert path.stat().st_size > 80e6  # beside which what the first call imports counts for little
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 0.9 * path.stat().st_size < int(done.stdout) < 1.2 * path.stat().st_size


def test_mapped_weights_can_be_changed_without_changing_the_file(tmp_path: Path, flux1: State) -> None:
    path = released_file(tmp_path, flux1)
    before = path.read_bytes()
    for parameter in load_decoder(path).network.parameters():
        parameter.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("case", ["v1-flux1", "v1_5-flux2", "v1-siglip", "prior-ntk"])
def test_reference_files(case: str) -> None:
    if not REFERENCE.is_dir():
        pytest.skip("the shared folder with reference networks is not here")
    config = json.loads((REFERENCE / f"{case}.config.json").read_text())
    path = REFERENCE / f"{case}.weights.safetensors"
    state = load_file(path)
    network = network_from_reference(state, config)
    assert holds(network, state)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())
    if case != "prior-ntk":  # whose reference size, 1024, leaves no trace in the tensors
        loaded = load_decoder(path, space="flux1" if case == "v1-flux1" else None)
        assert loaded.network.settings == network.settings
        assert holds(loaded.network, state)


def test_network_from_reference_is_strict_and_copies(flux1: State, released: dict[str, Any]) -> None:
    config = released[FLUX1_FOLDER]["config"] | {
        "num_groups": 3, "hidden_size": 48, "pixel_hidden_size": 4, "pixel_attn_hidden_size": 32, "pixel_num_groups": 2,
        "patch_depth": 4, "txt_embed_dim": 24, "txt_max_length": 10, "lq_hidden_dim": 32,
    }  # fmt: skip
    state = {key: value.float() for key, value in flux1.items()}
    network = network_from_reference(prefixed(state), config)
    assert holds(network, state)
    with torch.no_grad():
        network.backbone.patch_embed.weight.zero_()
    assert bool(state["s_embedder.proj.weight"].any())
    for key in ("s_embedder.proj.weight", "final_layer.linear.bias"):
        with pytest.raises(ValueError, match=f"1 missing: {key}"):
            network_from_reference({name: value for name, value in state.items() if name != key}, config)
        with pytest.raises(ValueError, match=rf"1 mis-shaped: {key} is \[7\] instead of"):
            network_from_reference({**state, key: torch.zeros(7)}, config)
    with pytest.raises(ValueError, match="1 unexpected: more"):
        network_from_reference({**state, "more": torch.zeros(1)}, config)
    on_meta = {key: value.to("meta") for key, value in state.items()}
    assert all(p.is_meta for p in network_from_reference(on_meta, config).parameters())
