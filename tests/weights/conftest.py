"""Tiny networks with random weights under their original keys, and the shapes of the released ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.keymap import to_original

RELEASED = Path(__file__).resolve().parents[2] / "../shared/reference/released-checkpoints.json"
BACKBONE = PixDiTSettings(
    patch=16,
    hidden=48,
    heads=3,
    depth=4,
    pixel_width=4,
    pixel_hidden=32,
    pixel_heads=2,
    pixel_depth=2,
    text_width=24,
    text_length=10,
)
V1 = AdapterSettings(width=32)
V1_5 = replace(V1, width=40, padding="replicate", gate="token", pixel_head=True, aux_rgb=True)


def _settings(version: str, channels: int = 16, factor: int = 8, scale: int = 4) -> PiDSettings:
    """A tiny network of a version for latents of so many channels; version "prior" takes none."""
    if version == "prior":
        return PiDSettings(replace(BACKBONE, reference=(2048, 2048)), adapter=None)
    adapter = replace(V1 if version == "v1" else V1_5, latent_channels=channels, latent_factor=factor, scale=scale)
    if version == "v1.5":
        adapter = replace(adapter, unpack=2 if channels == 128 else 1)
    side = 1024 if version == "v1" else 2048
    return PiDSettings(replace(BACKBONE, reference=(side, side)), adapter)


def _original(settings: PiDSettings, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Random weights under the original keys; no two tensors are the same."""
    torch.manual_seed(0)
    network = PiD(settings)
    return {to_original(key): torch.randn(value.shape).to(dtype) for key, value in network.state_dict().items()}


@pytest.fixture(scope="session")
def settings_of() -> Callable[..., PiDSettings]:
    """Settings of a tiny network: (version, channels=16, factor=8, scale=4)."""
    return _settings


@pytest.fixture(scope="session")
def original() -> Callable[..., dict[str, Tensor]]:
    """Random weights under the original keys: (settings, dtype=bfloat16)."""
    return _original


@pytest.fixture(scope="session")
def released() -> dict[str, Any]:
    """Configuration, parameter count and shapes of the released models, by folder."""
    if not RELEASED.is_file():
        pytest.skip("the shared folder with the released models' shapes is not here")
    return json.loads(RELEASED.read_text())


@pytest.fixture(scope="session")
def flux1() -> dict[str, Tensor]:
    """State dict of a tiny v1 decoder of 16-channel latents: bfloat16, original keys. Copy before changing it."""
    return _original(_settings("v1"))
