"""Which latent space a pipeline denoises in, and what its loop holds → the normalised latent.

The space is read off the VAE's class and constants, never off a pipeline's name. A pipeline without a VAE, which only a
decoder of ours can finish, must be told it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pixdec.latents import SPACES, LatentSpace, Statistics, get_space

if TYPE_CHECKING:
    from torch import Tensor

_CAUSAL = ("AutoencoderKLQwenImage", "AutoencoderKLWan")  # the Wan 2.1 VAE, under two names
_READABLE = ("AutoencoderKL", "AutoencoderKLFlux2", *_CAUSAL)
_AFFINE = [space.name for space in SPACES.values() if space.vae_class == "AutoencoderKL" and not space.transformer]
# Raw FLUX.2 latents have a standard deviation of about 1.8; statistics far from that are of another autoencoder.
_FLUX2_STD = (0.6, 5.4)


def space_of(pipe: Any, named: str | None = None) -> LatentSpace:
    """The latent space that a pipeline denoises in. named: for a pipeline whose VAE does not tell.

    Raises:
        ValueError: the VAE is of no space known here, or its constants contradict its kind or `named`.
    """
    vae = getattr(pipe, "vae", None)
    if _kind(vae) is None:
        if named is not None:
            return get_space(named)
        what = "there is no pipe.vae" if vae is None else f"a {type(vae).__name__} is none of {', '.join(_READABLE)}"
        raise ValueError(
            f"{type(pipe).__name__}: {what}, so its latent space cannot be told; if it is one of "
            f"{', '.join(SPACES)}, name it: space='flux1'"
        )
    space = space_of_vae(vae)
    if named is not None:
        if not get_space(named).holds_latents_of(space):
            raise ValueError(f"space={named!r}, but pipe.vae is that of {space.name}; leave the space out")
        return get_space(named)
    # FLUX.1 and Z-Image share one VAE, so the name only matters for where "auto" stops.
    kind = type(getattr(pipe, "transformer", None)).__name__
    twins = (twin for twin in SPACES.values() if twin.holds_latents_of(space))
    return next((twin for twin in twins if twin.transformer and kind.startswith(twin.transformer)), space)


def space_of_vae(vae: Any) -> LatentSpace:
    """The latent space of a VAE.

    Raises:
        ValueError: it is of no space known here.
    """
    kind = _kind(vae)
    if kind is None:
        raise ValueError(f"a {type(vae).__name__} does not tell its latent space: it is none of {', '.join(_READABLE)}")
    return _of_causal(vae, kind) if kind in _CAUSAL else _of_flux2(vae) if kind.endswith("Flux2") else _of_kl(vae)


def _kind(vae: Any) -> str | None:
    return next((base.__name__ for base in type(vae).__mro__ if base.__name__ in _READABLE), None)


def check_one_image(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse, before anything runs, a pipeline that would make a video.

    Raises:
        ValueError: it takes a number of frames, and that is not 1.
    """
    frames = inspect.signature(pipe.__call__).parameters.get("num_frames")
    if frames is not None and (count := arguments.get("num_frames", frames.default)) not in (None, 1):
        raise ValueError(
            f"{type(pipe).__name__} makes a video of {count} frames, and the decoders here make images; ask for "
            "num_frames=1"
        )


def normalized(held: Tensor, space: LatentSpace, size: tuple[int, int] | None) -> Tensor:
    """What a loop holds → (B, C, h, w), values untouched: what a pipeline denoises is normalised already.

    held: the grid (B, C, h, w), one frame (B, C, 1, h, w), or tokens (B, L, D), which need the image's `size`
    (height, width).

    Raises:
        ValueError: another shape, more than one frame, or tokens of an image whose size was not told.
    """
    if held.ndim == 5:
        return space.squeeze_time(held)
    if held.ndim == 3 and space.token_patch is not None:
        if size is None:
            raise ValueError(f"the pipeline never told its image's size, so its {space.name} tokens cannot be unpacked")
        # As the pipelines do it: an image is cut to whole tokens.
        height, width = (side // (space.factor * space.token_patch) * space.token_patch for side in size)
        return space.unpack(held, height, width)
    if held.ndim != 4 or held.shape[1] != space.channels:
        tokens = " or tokens" if space.token_patch else ""
        raise ValueError(
            f"the pipeline holds latents of shape {tuple(held.shape)}; for {space.name} expected (B, {space.channels}, "
            f"h, w){tokens}"
        )
    return held


def _of_kl(vae: Any) -> LatentSpace:
    """By channels, scale and shift: SD 1's latents look like SDXL's, SD3's like FLUX.1's, apart from them."""
    config = vae.config
    own = (config["latent_channels"], config["scaling_factor"], config.get("shift_factor") or 0.0)
    if config.get("latents_mean") is not None:
        raise ValueError(
            "pipe.vae normalises by latents_mean and latents_std, as no space of an AutoencoderKL here does"
        )
    known = {name: _constants(get_space(name)) for name in _AFFINE}
    for name, (channels, scale, shift) in known.items():
        if own[0] == channels and _near(own[1], scale) and _near(own[2], shift):
            _check_factor(2 ** (len(config["block_out_channels"]) - 1), 8, name)
            return get_space(name)
    listed = ", ".join(f"{name} ({c}, {scale:.5g}, {shift:.5g})" for name, (c, scale, shift) in known.items())
    hint = "; that is the VAE of Stable Diffusion 1 and 2" if own[0] == 4 and _near(own[1], 0.18215) else ""
    raise ValueError(
        f"pipe.vae has (latent_channels, scaling_factor, shift_factor) = {own}{hint}; those known here are {listed}"
    )


def _of_flux2(vae: Any) -> LatentSpace:
    space = get_space("flux2")
    config = vae.config
    if vae.bn.running_mean.is_meta:  # offloaded layer by layer: there is nothing to look at
        return space
    statistics = Statistics.from_vae(vae)
    expected = (space.raw_channels, space.channels)
    if (config["latent_channels"], statistics.mean.shape[0]) != expected:
        raise ValueError(
            f"pipe.vae has {config['latent_channels']} latent channels and statistics of {statistics.mean.shape[0]}; "
            f"FLUX.2's has {expected[0]} and {expected[1]}"
        )
    _check_factor(2 ** (len(config["block_out_channels"]) - 1) * space.patch, space.factor, space.name)
    typical = float(statistics.std.log().mean().exp())
    if not bool(statistics.mean.any()) and bool((statistics.std - 1).abs().max() < 1e-3):
        raise ValueError(
            "pipe.vae has the batch-norm statistics of a fresh module (mean 0, variance 1), not FLUX.2's; load it with "
            "AutoencoderKLFlux2.from_pretrained"
        )
    if not _FLUX2_STD[0] <= typical <= _FLUX2_STD[1]:
        raise ValueError(
            f"pipe.vae has batch-norm statistics with a standard deviation of {typical:.2g}, FLUX.2's have about 1.8; "
            "it is another autoencoder's"
        )
    return space


def _of_causal(vae: Any, kind: str) -> LatentSpace:
    space = get_space("qwen-image")
    config = vae.config
    if config["z_dim"] != space.channels:
        raise ValueError(
            f"pipe.vae is a {kind} with z_dim={config['z_dim']}; that of {space.name} has {space.channels}"
        )
    constants = space.constants
    assert constants is not None
    for name, ours in (("latents_mean", constants.mean), ("latents_std", constants.std)):
        theirs: Sequence[float] = config[name]
        if len(theirs) != space.channels or not torch.allclose(
            torch.tensor(theirs, dtype=torch.float32, device="cpu"), ours, atol=1e-3
        ):
            raise ValueError(
                f"pipe.vae is a {kind} whose {name} are not those of {space.name}; it is another autoencoder"
            )
    _check_factor(2 ** len(config["temperal_downsample"]), space.factor, space.name)
    return space


def _check_factor(own: int, expected: int, name: str) -> None:
    if own != expected:
        raise ValueError(f"pipe.vae makes latents at 1/{own} of the image's side, those of {name} are at 1/{expected}")


def _constants(space: LatentSpace) -> tuple[int, float, float]:
    """(channels, scaling_factor, shift_factor), as a config of diffusers has them."""
    assert space.constants is not None
    return space.channels, 1 / float(space.constants.std[0]), float(space.constants.mean[0])


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * max(abs(b), 1e-6)
