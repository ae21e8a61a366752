"""Reference tensors of the original L2P, which lie beside the repository, and the weights and inputs they belong to."""

import json
import math
import os
import zlib
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pixdec.l2p import PixelModel, network_from_reference

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
FOLDER = Path(os.environ.get("PIXDEC_REFERENCE", BESIDE)) / "l2p"
needs_reference = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference tensors of L2P in {FOLDER}")


@cache
def facts() -> dict:
    return json.loads((FOLDER / "l2p.json").read_text())


@cache
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "l2p.safetensors")


def _mixed(h: Tensor) -> Tensor:
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def unit(name: str, *shape: int) -> Tensor:
    """Uniform numbers of mean 0 and variance 1 that follow from a name."""
    h = _mixed(_mixed(torch.arange(math.prod(shape))) ^ zlib.crc32(name.encode()))
    return ((h.double() / 2**31 - 1) * 3**0.5).float().reshape(shape)


def byte_image(name: str, height: int, width: int) -> Tensor:
    """(1,3,H,W) in [-1,1], of 8-bit values."""
    values = ((unit(name, height, width, 3) / 3**0.5 + 1) * 127.5).round().clamp(0, 255)
    return (values * 2 / 255 - 1).permute(2, 0, 1)[None]


def weights(shapes: dict[str, list[int]], case: str) -> dict[str, Tensor]:
    found = {}
    for key, shape in shapes.items():
        u = unit(f"{case}/{key}", *shape)
        if key.endswith("pad_token"):
            found[key] = u
        elif len(shape) == 1:
            found[key] = 1 + 0.2 * u if key.endswith("weight") else 0.1 * u
        else:
            gain = 1.2 if key.startswith("local_decoder.") else 1.0
            found[key] = u * (gain / math.sqrt(math.prod(shape[1:])))
    return found


@cache
def model(patch: int) -> PixelModel:
    return network_from_reference(weights(facts()["keys"][f"p{patch}"], "tiny"), facts()["config"], patch)


def text(length: int) -> Tensor:
    return unit(f"tiny/text{length}", length, facts()["config"]["cap_feat_dim"])


def distance(ours: Tensor, name: str) -> float:
    """‖ours − reference‖ / ‖reference‖ of a stored tensor, which may be every s-th pixel."""
    stride, reference = facts()["tensors"][name].get("stride") or 1, tensors()[name]
    ours = ours[..., ::stride, ::stride] if stride > 1 else ours
    assert ours.shape == reference.shape
    return float((ours.double() - reference.double()).norm() / reference.double().norm())
