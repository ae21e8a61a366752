"""diffusers' `AutoencoderRAE` beside ours: its latents for our decoder, ours for its decode, and its statistics.

`AutoencoderRAE.encode` takes images in [0,1] and returns scaling_factor · (z − latents_mean) / (latents_std + 1e-5) of
the patch tokens z that leave the final LayerNorm without affine; with a scaling factor of 1, its default, that is the
normalised latent of the space "dinov2". It has no counterpart for "siglip": its SigLIP-2 has a position table for
images of 256 pixels, which So400M/14 at 224 does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixdec.integrations.vision.preprocessing import check_grid, recipe_of
from pixdec.latents import Latent, Statistics, get_space
from pixdec.weights.checkpoint import listed, open_checkpoint

_SPACE = "dinov2"
_EPS = 1e-5  # the RAE's own, beside the variance; AutoencoderRAE adds as much to the standard deviation it is given


def read_statistics(path: str | Path) -> Statistics:
    """The RAE's latent statistics from a file: (z − mean) / sqrt(var + 1e-5).

    path: a torch or safetensors file of the tensors `mean` and `var`, (C,h,w), as the RAE publishes them (`stat.pt`;
    that of the 512-pixel RAE fits its decoders); or the weights of an `AutoencoderRAE`, or the folder with them, which
    hold `_latents_mean` and `_latents_std`.

    Raises ValueError if the file is missing, damaged, or holds neither pair.
    """
    file = open_checkpoint(path)
    tensors = {key: tensor.float() for key, tensor in file.tensors.items() if key in _STATISTICS}
    if "mean" in tensors and "var" in tensors:
        return Statistics.from_variance(_unbatched(tensors["mean"]), _unbatched(tensors["var"]), eps=_EPS)
    mean, std = tensors.get("_latents_mean"), tensors.get("_latents_std")
    if mean is not None and std is not None and mean.numel() > 1:  # a single 0 and 1: an RAE without statistics
        return Statistics(_unbatched(mean), _unbatched(std) + _EPS)
    raise ValueError(
        f"{file.path}: no latent statistics in it; expected mean and var, or the _latents_mean and _latents_std of an "
        f"AutoencoderRAE, found {listed(file.tensors)}"
    )


_STATISTICS = ("mean", "var", "_latents_mean", "_latents_std")


def latents_from_rae(latents: Tensor, rae: nn.Module, sigma: float | Sequence[float] | Tensor = 0.0) -> Latent:
    """A latent of an `AutoencoderRAE`, or of a generator trained in it -> ours, for a decoder of "dinov2".

    latents: (B,768,32,32), as `rae.encode` returns and `rae.decode` takes them; sigma: their noise level.

    Raises ValueError if the RAE is of another encoder or has no statistics, the grid is not 32x32, or the latents are
    noisy and scaled, where sigma would mean another noise level.
    """
    scale = _scaling_factor(rae)
    if scale != 1 and bool((torch.as_tensor(sigma, device="cpu") != 0).any()):
        raise ValueError(
            f"noisy latents of an RAE with scaling_factor={scale:g}: their noise is not that of sigma in the space; "
            "run the generator to its end, or yield its latents in the space itself"
        )
    latent = Latent(latents if scale == 1 else latents / scale, get_space(_SPACE), sigma)
    check_grid(latent.tensor, latent.space)
    return latent


def latents_to_rae(latent: Latent, rae: nn.Module) -> Tensor:
    """Our latent of "dinov2" -> (B,768,32,32) as `rae.decode` takes it, in the RAE's dtype and on its device.

    `rae.decode(latents_to_rae(latent, rae)).sample` is the RAE's own picture, (B,3,512,512) in about [0,1].

    Raises ValueError for a latent of another space or grid, or an RAE as in `latents_from_rae`.
    """
    scale = _scaling_factor(rae)
    if latent.space.name != _SPACE:
        raise ValueError(f"a latent of {latent.space.name}: AutoencoderRAE decodes those of {_SPACE} only")
    check_grid(latent.tensor, latent.space)
    decoder: Any = rae.decoder
    return (latent.tensor if scale == 1 else latent.tensor * scale).to(next(decoder.parameters()))


def _scaling_factor(rae: nn.Module) -> float:
    """Check that the RAE's latents are those of the space, but for this factor."""
    config: Any = getattr(rae, "config", None)
    encoder, width = getattr(config, "encoder_type", None), getattr(config, "encoder_hidden_size", None)
    space, recipe = get_space(_SPACE), recipe_of(_SPACE)
    if encoder != _SPACE or width != space.channels:
        found = f"of {encoder}, {width} channels" if encoder else type(rae).__name__
        raise ValueError(f"an RAE {found}: expected an AutoencoderRAE of DINOv2-B, {space.channels} channels")
    side = config.encoder_input_size // config.encoder_patch_size
    if side != recipe.grid:
        raise ValueError(
            f"an RAE with a grid of {side}x{side}; expected {recipe.grid}x{recipe.grid}: the one of 512 pixels "
            f"(encoder_input_size={recipe.input_side})"
        )
    if not config.reshape_to_2d:
        raise ValueError("an RAE with reshape_to_2d=False, whose latents have no grid; load it with reshape_to_2d=True")
    Statistics.from_vae(rae)  # an RAE without statistics returns raw latents
    return float(config.scaling_factor)


def _unbatched(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0) if tensor.ndim == 4 else tensor
