"""A network's tensors in every form that files keep them in: prefixes, split modulation, float8, broken values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixdec.models.pid import PiD, PiDSettings
from pixdec.weights.describe import describe
from pixdec.weights.keymap import to_ours
from pixdec.weights.load import convert, load_decoder

State = dict[str, Tensor]
SPLIT = "adaLN_modulation.0"


@pytest.fixture(scope="module")
def settings(settings_of: Callable[..., PiDSettings]) -> PiDSettings:
    return settings_of("v1.5", 128, 16)


@pytest.fixture(scope="module")
def state(settings: PiDSettings, original: Callable[..., State]) -> State:
    return original(settings)


def saved(folder: Path, state: State, prefix: str = "") -> Path:
    path = folder / "a.safetensors"
    save_file({prefix + key: value.contiguous() for key, value in state.items()}, path)
    return path


def holds(network: PiD, state: State) -> bool:
    ours = {to_ours(key): value for key, value in state.items()}
    return all(torch.equal(value.to(ours[key].dtype), ours[key]) for key, value in network.state_dict().items())


def split(state: State, settings: PiDSettings) -> State:
    """As ComfyUI keeps it: the modulation of pixel blocks in two."""
    made = dict(state)
    backbone = settings.backbone
    for key in [key for key in state if key.startswith("pixel_blocks.") and SPLIT in key]:
        value = made.pop(key)
        each = value.reshape(backbone.patch**2, 6 * backbone.pixel_width, *value.shape[1:]).chunk(2, 1)
        for half, part in zip(("adaLN_modulation_msa", "adaLN_modulation_mlp"), each, strict=True):
            made[key.replace(SPLIT, half)] = part.reshape(-1, *value.shape[1:]).contiguous()
    assert len(made) == len(state) + 4
    return made


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "module.", "module.net.", "model."])
def test_prefixes_of_other_programs(tmp_path: Path, state: State, prefix: str) -> None:
    path = saved(tmp_path, state, prefix)
    assert holds(load_decoder(path).network, state)
    convert(path, tmp_path / "b.safetensors")
    assert holds(load_decoder(tmp_path / "b.safetensors").network, state)


def test_split_modulation_is_put_together(tmp_path: Path, state: State, settings: PiDSettings) -> None:
    path = saved(tmp_path, split(state, settings), "model.diffusion_model.")
    assert describe(path).problem is None
    assert holds(load_decoder(path).network, state)


def test_half_of_a_modulation_is_refused(tmp_path: Path, state: State, settings: PiDSettings) -> None:
    halves = split(state, settings)
    key = "pixel_blocks.0.adaLN_modulation_mlp.weight"
    value = halves.pop(key)
    with pytest.raises(ValueError, match=r"unexpected: pixel_blocks\.0\.adaLN_modulation_msa\.weight"):
        load_decoder(saved(tmp_path, halves))
    with pytest.raises(ValueError, match="expected a multiple of 12 rows"):
        load_decoder(saved(tmp_path, {**halves, key: value[:-1]}))


def float8(state: State, scaled: str | None, channels: bool = False) -> tuple[State, State]:
    """Matrices in float8, with scales beside them of that name; and what is meant by it."""
    made, meant = dict(state), dict(state)
    for key in [key for key, value in state.items() if value.ndim == 2 and key.endswith("weight")]:
        low = state[key].to(torch.float8_e4m3fn)
        scale = torch.linspace(0.5, 2, low.shape[0]) if channels else torch.tensor(0.37)
        made[key] = low
        meant[key] = low.to(torch.bfloat16)
        if scaled is not None:
            made[key.removesuffix("weight") + scaled] = scale
            meant[key] = (low.float() * (scale[:, None] if channels else scale)).to(torch.bfloat16)
    return made, meant


@pytest.mark.parametrize(
    ("scaled", "channels"), [(None, False), ("scale_weight", False), ("weight_scale", False), ("weight_scale", True)]
)
def test_float8_is_dequantized(tmp_path: Path, state: State, scaled: str | None, channels: bool) -> None:
    made, meant = float8(state, scaled, channels)
    path = saved(tmp_path, made)
    assert "float8_e4m3fn" in describe(path).dtypes
    assert describe(path).problem is None
    network = load_decoder(path).network
    assert holds(network, meant)
    assert network.backbone.patch_embed.weight.dtype == torch.bfloat16
    convert(path, tmp_path / "b.safetensors")
    assert not any("float8" in str(value.dtype) for value in load_file(tmp_path / "b.safetensors").values())
    assert holds(load_decoder(tmp_path / "b.safetensors").network, meant)


def test_what_lies_beside_float8_is_not_unexpected(tmp_path: Path, state: State) -> None:
    made, meant = float8(state, "scale_weight")
    extra: dict[str, Any] = {"scaled_fp8": torch.zeros(0), "s_embedder.proj.scale_input": torch.ones(())}
    assert holds(load_decoder(saved(tmp_path, {**made, **extra})).network, meant)
    with pytest.raises(ValueError, match=r"s_embedder\.proj\.weight is \[48, .*float8, and its scale \[5\]"):
        load_decoder(saved(tmp_path, {**made, "s_embedder.proj.scale_weight": torch.ones(5)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_values_are_named(tmp_path: Path, state: State, value: float) -> None:
    key = "patch_blocks.1.attn.qkv_x.weight"
    broken = state[key].clone()
    broken[0, 0] = value
    with pytest.raises(ValueError, match=rf"a\.safetensors: 1 of its tensors hold NaN or infinite values: {key}"):
        load_decoder(saved(tmp_path, {**state, key: broken}))


def test_large_values_are_not_broken(tmp_path: Path, state: State) -> None:
    key = "patch_blocks.1.attn.qkv_x.weight"
    state = {name: value.half() for name, value in state.items()} | {key: torch.full_like(state[key], 3e4).half()}
    assert holds(load_decoder(saved(tmp_path, state), dtype=torch.float16).network, state)
