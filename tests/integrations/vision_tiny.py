"""Small random models of the vision-encoder spaces: real classes, one layer deep, as wide as the spaces are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from battery import randomised
from pixdec.decoder import PixelDecoder
from pixdec.latents import Statistics, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import save_decoder

GRID = {"dinov2": 32, "siglip": 16}
SCALE = {"dinov2": 4, "siglip": 8}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(batch: int, side: int, seed: int = 0) -> Tensor:
    """Smooth pictures with detail, (B,3,side,side) in [-1,1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return (2 * smooth - 1 + 0.2 * torch.randn(batch, 3, side, side, generator=generator)).clamp(-1, 1)


def shaken(model: Any) -> Any:
    """No parameter at its start: registers, biases and the affine part of the norms count too."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def dinov2_config(**other: Any) -> Any:
    settings = {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 14, "image_size": 518, **other}
    return transformers.Dinov2WithRegistersConfig(num_hidden_layers=1, mlp_ratio=1, **settings)


def siglip_config(**other: Any) -> Any:
    settings = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 14, "image_size": 224, **other}
    return transformers.SiglipVisionConfig(num_hidden_layers=1, intermediate_size=32, **settings)


@functools.cache
def dinov2() -> Any:
    return shaken(transformers.Dinov2WithRegistersModel(dinov2_config()))


@functools.cache
def siglip() -> Any:
    return shaken(transformers.SiglipVisionModel(siglip_config()))


@functools.cache
def whole_siglip() -> Any:
    """The two-tower model, as the hub has it."""
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    vision = siglip_config().to_dict()
    text_config = {**text, "vocab_size": 32, "projection_size": 1152}
    return shaken(transformers.SiglipModel(transformers.SiglipConfig(text_config=text_config, vision_config=vision)))


@functools.cache
def mean_and_variance() -> tuple[Tensor, Tensor]:
    """As RAE statistics are shaped; tokens normalised by them are of order 1."""
    return 0.3 * noise(768, 32, 32, seed=3), 0.5 + noise(768, 32, 32, seed=4).abs()


def statistics() -> Statistics:
    return Statistics.from_variance(*mean_and_variance(), eps=1e-5)


class Captions:
    """Embeddings that tell captions apart, and remember what they were asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, captions: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        self.asked.append(list(captions))
        each = [noise(6, 12, seed=sum(map(ord, caption))) for caption in captions]
        return torch.stack(each).to(device, dtype)


def decoder(folder: Path, space: str, *, patch: int = 16, scale: int | None = None) -> PixelDecoder:
    """A tiny PiD with the settings of v1-dinov2 or v1-siglip: factor 16, scale 4 or 8, a gate for each channel.

    The released networks have patches of 16 pixels. Larger ones make an image of 2048x2048 affordable, and a smaller
    scale the tests for which the size does not matter.
    """
    scale = scale or SCALE[space]
    backbone = PixDiTSettings(
        patch=patch,
        hidden=24,
        heads=2,
        depth=2,
        pixel_width=4,
        pixel_hidden=16,
        pixel_heads=2,
        pixel_depth=1,
        text_width=12,
        text_length=6,
    )
    adapter = AdapterSettings(
        latent_channels=get_space(space).channels, latent_factor=16, scale=scale, width=8, blocks=1
    )
    network = randomised(PiD(PiDSettings(backbone, adapter)).initialize())
    path = folder / f"{space}.safetensors"
    save_decoder(network, path, name=f"small-{space}", space=space, version="v1", licence="Apache-2.0")
    made = PixelDecoder.from_pretrained(path, device="cpu")
    made.captions = Captions()
    return made
