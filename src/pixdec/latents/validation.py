"""Recognise a latent that is not what the network is fed: raw, packed, with a time axis, of another space, broken.

Shapes settle most cases. Where a raw latent has the shape of a normalised one, channel statistics decide, and they
refuse only on strong evidence, because a refused good latent is worse than no opinion:

- A normalised latent has a standard deviation (over the grid, within a channel) of about 1, and never much above:
  photographs measured in FLUX.2's space lie between 0.5 and 0.86, flat or synthetic pictures lower, pure noise at
  exactly 1, and every mixture of picture and noise between. Nothing legitimate lies far above 1; low says nothing.
- Raw latents are larger by a factor known from each VAE: FLUX.1 2.8, FLUX.2 about 1.8, SDXL 7.7, Qwen-Image 1.1 to 3.3
  by channel. A latent is refused when it lies nearer to raw than to normalised on a logarithmic scale.
- SD3's raw latents are *smaller* (0.65), as low-contrast pictures and half-denoised latents are too. That is no strong
  evidence, so a clean SD3 latent in the range of raw ones (0.3 to 0.66) gets a warning and is accepted.
- DINOv2's raw tokens leave a LayerNorm: each has mean 0 and standard deviation 1 over its channels to three digits,
  which no normalised one has. SigLIP is the other way round: it is the normalised tokens that leave the LayerNorm.
- FLUX.2 latents packed as (dy, dx, c) instead of (c, dy, dx) show in the correlation of channels that should be the
  four neighbours of one 2×2 square.

Grids of fewer than 8×8 cells are never judged by their statistics.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from pixdec.latents.space import SPACES, LatentSpace, get_space

_MIN_CELLS = 64
_FLUX2_RAW_STD = 1.8  # the VAE's batch-norm statistics are not at hand here; this is their typical size


def check_latent(
    tensor: object, space: LatentSpace | str, *, sigma: float | Tensor | None = None, statistics: bool = True
) -> None:
    """Refuse what is not a normalised latent (B, C, h, w) of `space`.

    Args:
        sigma: the latent's noise level if known: the warning about SD3 is only given for latents known to be clean.
        statistics: False skips the judgement by channel statistics, for the latent that is unusual and right after all.

    Raises:
        ValueError: one line that says what it looks like and which call converts it.
    """
    space = get_space(space)
    latent = check_form(tensor, space)
    if statistics:
        check_statistics(latent, space, sigma)


def check_form(tensor: object, space: LatentSpace) -> Tensor:
    """The part of `check_latent` that needs no judgement: a floating-point tensor, not empty, finite, well shaped."""
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"a latent must be a torch.Tensor (B, {space.channels}, h, w), got {type(tensor).__name__}; "
            "call torch.as_tensor(latent)"
        )
    prefix = _prefix(tensor, space)
    if tensor.numel() == 0:
        raise ValueError(f"{prefix}: it is empty")
    if not tensor.is_floating_point():
        raise ValueError(f"{prefix}: its values are {tensor.dtype}, expected floating point; call latent.float()")
    broken = int((~tensor.isfinite()).sum())
    if broken:
        raise ValueError(
            f"{prefix}: {broken} of its {tensor.numel()} values are NaN or infinite; make it again, in bfloat16 or "
            "float32 if it was made in float16"
        )
    finding = _wrong_shape(tensor, space)
    if finding is not None:
        raise ValueError(f"{prefix}: {finding}")
    return tensor


def check_statistics(latent: Tensor, space: LatentSpace, sigma: float | Tensor | None = None) -> None:
    """The part of `check_latent` that weighs evidence, for a latent of the right form."""
    if latent.shape[2] * latent.shape[3] < _MIN_CELLS:
        return
    finding = _wrong_values(latent.detach().float(), space, clean=_is_clean(sigma))
    if finding is not None:
        trust = "if it is right as it is, trust it with Latent(latent, space, sigma, statistics=False)"
        raise ValueError(f"{_prefix(latent, space)}: {finding}; {trust}")


def _prefix(latent: Tensor, space: LatentSpace) -> str:
    return f"latent of shape {tuple(latent.shape)} for {space.name}, which takes (B, {space.channels}, h, w)"


def _wrong_shape(latent: Tensor, space: LatentSpace) -> str | None:
    """What a tensor of the wrong shape looks like and what to call, or None if the shape is right."""
    shape, call = tuple(latent.shape), f"get_space({space.name!r})"
    if latent.ndim == 4:
        return None if shape[1] == space.channels else _wrong_channels(latent, space)
    if latent.ndim == 5 and shape[1] in (space.raw_channels, space.channels):
        if shape[2] > 1:
            return f"it looks like a video of {shape[2]} latent frames; decode one of them, latent[:, :, i]"
        if _looks_raw(latent.squeeze(2), space):
            return f"it looks raw, with a time axis; call {call}.normalize(latent)"
        return f"it has a time axis; call latent.squeeze(2), and {call}.normalize(latent) if it comes raw from the VAE"
    if latent.ndim == 3 and shape[0] == space.channels:
        return "it has no batch axis; call latent.unsqueeze(0)"
    if latent.ndim == 3:
        makers = [s for s in SPACES.values() if s.token_patch and shape[2] == s.channels * s.token_patch**2]
        if space in makers:
            return f"it looks like a pipeline's tokens; call {call}.unpack(latent, height, width), both in latent cells"
        if makers:
            return f"it looks like tokens of {_names(makers)}; a latent of another space cannot be converted"
    return "no latent of a space known here has this shape"


def _wrong_channels(latent: Tensor, space: LatentSpace) -> str:
    shape, call = tuple(latent.shape), f"get_space({space.name!r})"
    if shape[1] == space.raw_channels:  # only FLUX.2 gets here: everywhere else raw and normalised channels agree
        raw = f"{call}.normalize(latent, Statistics.from_vae(vae))"
        if _looks_raw(latent, space):
            return f"it looks like the raw latent of its VAE, as FLUX.2 klein pipelines return it; call {raw}"
        return f"it looks normalised but not packed 2×2; call {call}.patchify(latent), or {raw} if it is the VAE's own"
    if shape[3] == space.channels:
        return "it looks channels-last; call latent.permute(0, 3, 1, 2)"
    if space.token_patch == 2 and shape[1] == space.channels * 4:
        return "it looks packed 2×2; call torch.nn.functional.pixel_shuffle(latent, 2)"
    if shape[1] == 3:
        return "it looks like an image, not a latent; encode it first with ImageEncoder.encode(images)"
    others = [s for s in SPACES.values() if shape[1] in (s.channels, s.raw_channels)]
    if others and space.is_image:
        latent_of = f"Latent(latent, {others[0].name!r})"
        return (
            f"it looks like a latent of {_names(others)}; decode it to an image first: "
            f"pixdec.encoder.first_decode({latent_of}, vae), by a VAE or TAE of diffusers or 'pixdec-tiny'"
        )
    if others:
        return f"it looks like a latent of {_names(others)}; take a decoder of that space, spaces cannot be converted"
    return "no latent of a space known here has this many channels"


def _wrong_values(latent: Tensor, space: LatentSpace, *, clean: bool) -> str | None:
    """What the values of a latent of the right shape (float32) betray, or None."""
    call = f"get_space({space.name!r})"
    if space.is_image:
        return _wrong_pixels(latent, clean=clean)
    if space.vision:
        return _wrong_tokens(latent, space)
    if _looks_raw(latent, space):
        spread = f"it looks raw (standard deviation {_pooled_std(latent):.1f}, normalised ones have about 1)"
        if space.noise == "vp":
            euler = f"{call}.from_euler(latent, sigma)"
            return f"{spread}: call {call}.normalize(latent) if it is the VAE's, {euler} if the Euler scheduler's"
        statistics = "" if space.constants is not None else ", Statistics.from_vae(vae)"
        argument = "latent" if space.patch == 1 else f"{call}.unpatchify(latent)"
        return f"{spread}: call {call}.normalize({argument}{statistics})"
    if space.patch == 2 and _packed_in_other_order(latent):
        return (
            "its channels look packed as (dy, dx, c) instead of (c, dy, dx): call "
            f"latent.unflatten(1, (4, {space.raw_channels})).transpose(1, 2).flatten(1, 2)"
        )
    return _wrong_sd3_values(_pooled_std(latent), call, clean=clean) if _is_smaller_when_raw(space) else None


def _wrong_sd3_values(std: float, call: str, *, clean: bool) -> str | None:
    if std > 1.66:  # as much above normalised as the least of FLUX.1's raw latents
        return f"its standard deviation is {std:.1f}, as of a raw flux1 or qwen-image latent (normalised sd3: about 1)"
    if clean and 0.3 <= std <= 0.66:
        warnings.warn(
            f"sd3 latent with standard deviation {std:.2f}: raw ones have up to 0.65, normalised ones about 1, "
            f"pictures of low contrast less; if it comes raw from the VAE, call {call}.normalize(latent)",
            stacklevel=4,
        )
    return None


def _looks_raw(latent: Tensor, space: LatentSpace) -> bool:
    """Whether channel spreads lie nearer to the raw ones than to normalised ones.

    With L_c the log of channel c's standard deviation over grid and batch, and R_c the same of raw latents, the
    position is Σ L_c·R_c / Σ R_c²: 0 for a normalised latent (all 1), 1 for a raw one, by least squares. For channels
    of equal spread, half-way is a geometric mean of the square root of the raw spread: FLUX.1 1.66, FLUX.2 1.34, SDXL
    2.8. A raw picture of very low contrast stays below and passes: it cannot be told from a normalised one.

    Where raw channels differ from each other (Qwen-Image) their pattern does not depend on contrast: a quarter of the
    way is then enough if the slope of L_c over R_c, also 0 for normalised and 1 for raw, agrees.
    """
    if space.is_image or space.vision or latent[0, 0].numel() < _MIN_CELLS:
        return False
    raw = _raw_std(space).to(latent.device).log().expand(latent.shape[1])  # (C,)
    if _is_smaller_when_raw(space):  # which a flat picture is too
        return False
    # A dead channel would drag the mean of logarithms to minus infinity.
    spread = latent.detach().float().var((2, 3), correction=0).mean(0).sqrt().clamp_min(0.05).log()  # (C,)
    position = float((spread * raw).sum() / raw.square().sum())
    pattern = raw - raw.mean()
    slope = float((spread * pattern).sum() / pattern.square().sum().clamp_min(1e-6))
    return position > 0.5 or (position > 0.25 and slope > 0.7)


def _raw_std(space: LatentSpace) -> Tensor:
    return (
        space.constants.std
        if space.constants is not None
        else torch.tensor([_FLUX2_RAW_STD], dtype=torch.float32, device="cpu")
    )


def _is_smaller_when_raw(space: LatentSpace) -> bool:
    """SD3."""
    return bool((_raw_std(space) < 1).all())


def _pooled_std(latent: Tensor) -> float:
    """Standard deviation over the grid, root mean square over channels and batch; a channel's mean does not count."""
    return math.sqrt(float(latent.var((2, 3), correction=0).mean()))


def _packed_in_other_order(latent: Tensor) -> bool:
    """Mean correlation within the four channels of a 2×2 square, for the right order and for (dy, dx, c).

    Measured on photographs: 0.25 to 0.7 in the right order, below 0.05 in the other, and 0 for noise in both.
    """
    b, c, h, w = latent.shape
    right = _group_correlation(latent.reshape(b, c // 4, 4, h, w))
    other = _group_correlation(latent.reshape(b, 4, c // 4, h, w).transpose(1, 2))
    return other > 0.2 and other > right + 0.15


def _group_correlation(groups: Tensor) -> float:
    """Mean pairwise correlation of the four members of each group, groups of (B, G, 4, h, w), over the grid."""
    centered = groups - groups.mean((3, 4), keepdim=True)
    single = float(centered.square().mean())
    if single == 0:
        return 0.0
    # The variance of a mean of four with pairwise correlation r is (1 + 3r)/4 of one member's.
    return (4 * float(centered.mean(2).square().mean()) / single - 1) / 3


def _wrong_tokens(latent: Tensor, space: LatentSpace) -> str | None:
    """Vision-encoder spaces: mean and spread of each token over its channels tell what left a LayerNorm."""
    std, mean = torch.std_mean(latent, dim=1, correction=0)  # (B, h, w)
    off_mean, off_std = float(mean.square().mean().sqrt()), float((std - 1).square().mean().sqrt())
    call = f"get_space({space.name!r}).normalize(latent"
    raw_is_even, even = space.layer_norm_eps is None, space.layer_norm_eps is not None
    if raw_is_even and off_mean < 0.01 and off_std < 0.01:
        return (
            "it looks raw (every token has mean 0 and standard deviation 1 over its channels, as the LayerNorm leaves "
            f"it); call {call}, Statistics.from_vae(rae))"
        )
    if raw_is_even and float(std.mean()) > 2:
        return (
            f"its tokens have standard deviation {float(std.mean()):.1f} over their channels, normalised ones about 1; "
            f"leave the final LayerNorm on, without affine, and call {call}, Statistics.from_vae(rae))"
        )
    if even and (off_mean > 0.25 or float(std.mean()) > 1.35):
        return (
            f"it looks raw (tokens have mean ±{off_mean:.2f} and standard deviation {float(std.mean()):.2f} over their "
            f"channels, normalised ones 0 and about 1); call {call})"
        )
    return None


def _wrong_pixels(latent: Tensor, *, clean: bool) -> str | None:
    """Images that are not in [-1,1]; what a VAE or a resampling puts beyond is let pass."""
    low, high = float(latent.min()), float(latent.max())
    if high > 8:
        return f"its values reach {high:.0f}, as of 8-bit pixels; call latent / 127.5 - 1"
    if clean and (low < -2 or high > 2):
        return f"its values run from {low:.1f} to {high:.1f}, a clean image's lie in [-1, 1]"
    return None


def _is_clean(sigma: float | Tensor | None) -> bool:
    return sigma is not None and float(sigma.max() if isinstance(sigma, Tensor) else sigma) <= 0.1


def _names(spaces: list[LatentSpace]) -> str:
    return " or ".join(space.name for space in spaces)
