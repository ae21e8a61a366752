"""Key map and inferred settings, against the released models and tiny networks of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pixdec.models.pid import PiD
from pixdec.weights.catalog import CARDS, card_of
from pixdec.weights.keymap import settings_from_original, to_original, to_ours
from pixdec.weights.network_settings import possible_spaces, scale_of, settings_from_shapes, version_of

RELEASED = [card.folder for card in CARDS if card.repository is not None and card.kind != "teacher"]


def on_meta(settings: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = PiD(settings)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def test_every_released_model_is_checked(released: dict[str, Any]) -> None:
    assert set(released) == set(RELEASED)
    assert len(released) == 11


@pytest.mark.parametrize("folder", RELEASED)
def test_our_network_holds_exactly_the_released_tensors(released: dict[str, Any], folder: str) -> None:
    model = released[folder]
    theirs = {key: tuple(shape) for key, shape in model["shapes"].items()}
    with torch.device("meta"):
        network = PiD(settings_from_original(model["config"]))
    ours = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert {to_ours(key): shape for key, shape in theirs.items()} == ours
    assert {to_original(key): shape for key, shape in ours.items()} == theirs
    assert all(to_original(to_ours(key)) == key for key in theirs)
    assert sum(p.numel() for p in network.parameters()) == model["parameters"]


@pytest.mark.parametrize("folder", RELEASED)
def test_settings_are_read_off_the_released_tensors(released: dict[str, Any], folder: str) -> None:
    card = card_of(folder)
    assert card is not None
    shapes = {key: tuple(shape) for key, shape in released[folder]["shapes"].items()}
    assert settings_from_shapes(shapes, card.space, card.scale) == settings_from_original(released[folder]["config"])
    assert version_of(shapes) == card.version
    if card.space:
        assert card.space in possible_spaces(shapes)
        assert scale_of(card.space) == card.scale


@pytest.mark.parametrize(
    ("kind", "space"),
    [
        (("v1",), "sd3"),
        (
            (
                "v1",
                4,
            ),
            "sdxl",
        ),
        (
            (
                "v1",
                1152,
                16,
                8,
            ),
            "siglip",
        ),
        (("v1.5",), "qwen-image"),
        (
            (
                "v1.5",
                128,
                16,
            ),
            "flux2",
        ),
        (("prior",), ""),
    ],
)
def test_settings_are_read_off_tiny_networks(
    settings_of: Callable[..., Any], kind: tuple[Any, ...], space: str
) -> None:
    settings = settings_of(*kind)
    shapes = {to_original(key): shape for key, shape in on_meta(settings).items()}
    assert settings_from_shapes(shapes, space, scale_of(space)) == settings


def test_three_spaces_cannot_be_told_apart(settings_of: Callable[..., Any], original: Callable[..., Any]) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in original(settings_of("v1")).items()}
    assert set(possible_spaces(shapes)) == {"flux1", "sd3", "qwen-image"}
    shapes = {key: tuple(tensor.shape) for key, tensor in original(settings_of("v1.5", 128, 16)).items()}
    assert possible_spaces(shapes) == ("flux2",)


@pytest.mark.parametrize(
    "key",
    [
        "blocks.0.weight",
        "patch_blocks.x.norm_x1.weight",
        "patch_blocks.0.norm_z1.weight",
        "lq_proj.latent_proj.1.block.0.weight",  # would be adapter block -2
        "s_embedder.projection.weight",
        "base.conv_in.weight",  # a small network's base decoder: nothing the original has
        "",
    ],
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: not a tensor of a PiD network"):
        to_ours(key)
    with pytest.raises(ValueError, match="not a tensor of a PiD network"):
        to_original(key)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_mode": "yarn"},
        {"lq_gate_type": "plain"},
        {"lq_conv_padding_mode": "reflect"},
        {"use_text_rope": False},
        {"patch_size": "16"},
        {"in_channels": 4},
    ],
)
def test_original_settings_that_we_do_not_have_are_refused(released: dict[str, Any], change: dict[str, object]) -> None:
    config = {**released["PiD_res2k_sr4x_official_flux_distill_4step"]["config"], **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        settings_from_original(config)
