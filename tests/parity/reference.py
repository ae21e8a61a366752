"""Reads the reference tensors of the original PiD, which lie beside the repository and not in it."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from pixdec.models.pid import PiD
from pixdec.weights.load import network_from_reference

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
FOLDER = Path(os.environ.get("PIXDEC_REFERENCE", BESIDE))
needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no reference tensors in {FOLDER}; CONTRIBUTING.md says how to make them"
)
CASES = (
    "prior",
    "prior-ntk",
    "v1-flux1",
    "v1-sdxl",
    "v1-flux2",
    "v1-dinov2",
    "v1-siglip",
    "v1_5-flux1",
    "v1_5-flux2",
)


def network(case: str) -> PiD:
    config = json.loads((FOLDER / f"{case}.config.json").read_text())
    return network_from_reference(load_file(FOLDER / f"{case}.weights.safetensors"), config).eval()


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.tensors.safetensors")


def distance(ours: Tensor, reference: Tensor) -> float:
    """‖ours − reference‖ / ‖reference‖."""
    assert ours.shape == reference.shape
    return float((ours.double() - reference.double()).norm() / reference.double().norm())


def replay(noise: Tensor, fresh: Tensor):
    """A noise source that gives recorded noise in the order it was recorded."""
    queue = iter([noise, *fresh])
    return lambda shape: next(queue).view(*shape)


__all__ = ["CASES", "FOLDER", "distance", "needs_reference", "network", "replay", "tensors"]
