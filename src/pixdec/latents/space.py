"""Latent spaces: what each autoencoder's latent looks like, and how to bring it into the form a network is fed.

The networks are fed *normalised* latents, as a diffusion model sees them. An autoencoder returns *raw* ones; pipelines
return either, some of them packed into tokens. Each conversion is one method of `LatentSpace`, and none is ever applied
unasked.

Shape legend: B batch, C channels of the normalised latent, h,w its grid, L tokens, f factor (pixels to a cell's side).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and standard deviation of raw latents: normalised = (raw − mean) / std.

    Both float32, of shape (C,), or (C, h, w) where they differ from cell to cell (RAE). Four spaces have them as
    published constants (`LatentSpace.constants`). FLUX.2 keeps them in its VAE's batch norm and DINOv2 in its RAE:
    there they are read from the autoencoder and passed to `normalize` and `denormalize` explicitly.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.ndim not in (1, 3):
            raise ValueError(
                f"statistics have mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)}; "
                "expected the same shape for both, (C,) or (C, h, w)"
            )
        if not (bool(self.mean.isfinite().all()) and bool(self.std.isfinite().all()) and bool((self.std > 0).all())):
            raise ValueError("statistics must be finite, with a standard deviation above 0 in every channel")
        object.__setattr__(self, "mean", self.mean.detach().float())
        object.__setattr__(self, "std", self.std.detach().float())

    @classmethod
    def from_variance(cls, mean: Tensor, variance: Tensor, *, eps: float) -> Statistics:
        """std = sqrt(variance + eps), as batch norm has it. eps: FLUX.2 1e-4, the RAE of DINOv2 1e-5."""
        return cls(mean.detach().float(), (variance.detach().float() + eps).sqrt())

    @classmethod
    def from_vae(cls, vae: nn.Module) -> Statistics:
        """Read them off an autoencoder of diffusers: `AutoencoderKLFlux2` (its batch norm) or `AutoencoderRAE`.

        Raises:
            ValueError: it holds neither a batch norm with running statistics nor an RAE's latent statistics.
        """
        norm = getattr(vae, "bn", None)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            return cls.from_variance(norm.running_mean, norm.running_var, eps=norm.eps)
        mean, std = getattr(vae, "_latents_mean", None), getattr(vae, "_latents_std", None)
        # An RAE that was given no statistics holds a single 0 and 1 instead, which would silently do nothing.
        if isinstance(mean, Tensor) and isinstance(std, Tensor) and mean.numel() > 1:
            return cls(mean.reshape(mean.shape[-3:]), std.reshape(std.shape[-3:]) + 1e-5)  # as the class itself does
        raise ValueError(
            f"{type(vae).__name__} carries no latent statistics; expected AutoencoderKLFlux2 or an AutoencoderRAE with "
            "latents_mean and latents_std, or build Statistics.from_variance(mean, variance, eps=...)"
        )

    def apply(self, raw: Tensor) -> Tensor:
        """(raw − mean) / std for raw of (B, C, h, w), computed in at least float32, in the dtype of `raw`."""
        mean, std = self._on(raw)
        return ((raw - mean) / std).to(raw.dtype)

    def invert(self, latent: Tensor) -> Tensor:
        """latent · std + mean, the inverse of `apply`."""
        mean, std = self._on(latent)
        return (latent * std + mean).to(latent.dtype)

    def _on(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        matches = self.mean.shape[0] == latent.shape[1] and self.mean.shape[1:] in ((), latent.shape[2:])
        if not matches:
            raise ValueError(
                f"statistics of shape {tuple(self.mean.shape)} do not fit a latent of shape {tuple(latent.shape)}; "
                "take those of the autoencoder, and the grid, that made the latent"
            )
        shape = self.mean.shape if self.mean.ndim == 3 else (-1, 1, 1)
        return self.mean.to(latent.device).view(shape), self.std.to(latent.device).view(shape)


@dataclass(frozen=True)
class LatentSpace:
    """One latent space: its shape, its kind of noise, and the conversions into the form the networks are fed.

    `channels` and `factor` are those of the *normalised* latent: (B, channels, H / factor, W / factor) for an image of
    H×W pixels. For FLUX.2 that is the form packed 2×2: 128 channels at 1/16.
    """

    name: str
    channels: int
    factor: int
    encoder: str  # the autoencoder; spaces that name the same one hold the same latents
    noise: Literal["flow", "vp"] = "flow"
    constants: Statistics | None = field(default=None, compare=False)  # None: see `normalize`
    patch: int = 1  # the raw latent is `patch` times finer each way and has `patch`² times fewer channels (FLUX.2: 2)
    token_patch: int | None = None  # pipelines pack this many cells each way into one token; None: they pack none
    layer_norm_eps: float | None = None  # normalised by a LayerNorm over channels instead of by statistics (SigLIP)
    vae_class: str | None = None  # diffusers' class of the autoencoder; None: latents are not a VAE's
    video: bool = False  # its autoencoder is one of videos: its tensors have a time axis
    vision: bool = False  # its cells are the tokens of a vision encoder
    transformer: str | None = None  # how the generator's class is called, where spaces share an autoencoder
    stop: tuple[int, int, float] | None = None  # a published early stop: after M of N steps; sigma there, for 512²
    is_image: bool = False  # the latent is a low-resolution image itself, in [-1,1]

    @property
    def raw_channels(self) -> int:
        """Channels of the raw latent, as the autoencoder returns it."""
        return self.channels // self.patch**2

    def holds_latents_of(self, other: LatentSpace) -> bool:
        """Whether a latent of `other` is also one of this space (FLUX.1 and Z-Image share one VAE)."""
        return self.encoder == other.encoder

    def normalize(self, raw: Tensor, statistics: Statistics | None = None) -> Tensor:
        """The autoencoder's raw latent → the normalised latent (B, C, h, w), in the dtype of `raw`.

        `raw` is (B, raw_channels, h·patch, w·patch); Qwen-Image's may keep its time axis of length 1.

        - FLUX.1, Z-Image, SD3, SDXL: (raw − shift) · scale with the constants of the VAE's config; Qwen-Image:
          (raw − mean_c) / std_c with 16 constants each.
        - FLUX.2: `patchify`, then (raw − mean) / sqrt(var + 1e-4) with the VAE's batch-norm statistics, which must be
          given: `Statistics.from_vae(pipe.vae)`.
        - DINOv2: raw is the grid of patch tokens after the final LayerNorm without affine; then as FLUX.2 with the
          statistics of the RAE (eps 1e-5).
        - SigLIP: raw is the grid of patch tokens *before* post_layernorm; then a LayerNorm over channels without
          affine, eps 1e-6.

        Raises:
            ValueError: wrong shape; statistics missing where they are needed, or given where they are constants.
        """
        raw = self.squeeze_time(raw) if raw.ndim == 5 else raw
        packed = self.patchify(raw)
        if self.layer_norm_eps is not None:
            self._no_statistics(statistics)
            tokens = packed.float().movedim(1, -1)  # (B, h, w, C)
            return F.layer_norm(tokens, (self.channels,), eps=self.layer_norm_eps).movedim(-1, 1).to(raw.dtype)
        return self._statistics(statistics).apply(packed)

    def denormalize(self, latent: Tensor, statistics: Statistics | None = None) -> Tensor:
        """The inverse of `normalize`: (B, C, h, w) → (B, raw_channels, h·patch, w·patch), what the VAE decodes.

        Raises:
            ValueError: as `normalize`; and for SigLIP, whose LayerNorm cannot be undone.
        """
        if self.layer_norm_eps is not None:
            raise ValueError(f"a {self.name} latent cannot be denormalised: its LayerNorm forgets each token's scale")
        self._expect_grid(latent, self.channels, "normalised")
        return self.unpatchify(self._statistics(statistics).invert(latent))

    def add_noise(self, latent: Tensor, sigma: float | Sequence[float] | Tensor, noise: Tensor) -> Tensor:
        """Noise a clean normalised latent to the level sigma in [0, 1], a number or one for each sample.

        flow: (1 − σ)·latent + σ·noise; vp (SDXL): sqrt(1 − σ²)·latent + σ·noise. `noise` has the latent's shape and
        unit variance. Computed in at least float32, returned in the latent's dtype.
        """
        if noise.shape != latent.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; expected the latent's, {tuple(latent.shape)}")
        levels = noise_levels(sigma, latent.shape[0], latent.device).view(-1, *[1] * (latent.ndim - 1))
        keep = 1 - levels if self.noise == "flow" else (1 - levels.square()).sqrt()
        return (keep * latent + levels * noise).to(latent.dtype)

    def unpack(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """A pipeline's token sequence → the latent (B, C, height, width); height and width in cells of that latent.

        Tokens run in rows. FLUX.1 and Qwen-Image pack 2×2 cells into one, (B, L, 64) with index c·4 + dy·2 + dx and
        L = height·width / 4; FLUX.2 (B, L, 128), DINOv2 and SigLIP have one token for each cell, L = height·width.
        """
        if self.token_patch is None:
            raise ValueError(f"{self.name} latents are never packed into tokens, got shape {tuple(tokens.shape)}")
        p = self.token_patch
        expected = (height // p * (width // p), self.channels * p * p)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected or height % p or width % p:
            even = f", both multiples of {p}" if p > 1 else ""
            raise ValueError(
                f"{self.name} tokens have shape {tuple(tokens.shape)}; expected (B, {expected[0]}, {expected[1]}) for "
                f"height {height} and width {width} in latent cells{even}"
            )
        grid = tokens.transpose(1, 2).reshape(-1, self.channels * p * p, height // p, width // p)
        return F.pixel_shuffle(grid, p)

    def patchify(self, raw: Tensor) -> Tensor:
        """FLUX.2: 32 channels → 128 at half the grid, channel = c·4 + dy·2 + dx. Other spaces: as it is.

        (B, raw_channels, h·patch, w·patch) → (B, C, h, w). Changes no value, so it serves raw and normalised latents.
        """
        self._expect_grid(raw, self.raw_channels, "raw" if self.patch == 1 else "unpacked")
        if raw.shape[2] % self.patch or raw.shape[3] % self.patch:
            raise ValueError(
                f"{self.name} latent grid {tuple(raw.shape[2:])}: both sides must be multiples of {self.patch}"
            )
        return F.pixel_unshuffle(raw, self.patch)

    def unpatchify(self, latent: Tensor) -> Tensor:
        """The inverse of `patchify`: (B, C, h, w) → (B, raw_channels, h·patch, w·patch)."""
        self._expect_grid(latent, self.channels, "normalised")
        return F.pixel_shuffle(latent, self.patch)

    def squeeze_time(self, latent: Tensor) -> Tensor:
        """(B, C, 1, h, w), a video autoencoder's latent of one image (Qwen-Image) → (B, C, h, w)."""
        if latent.ndim != 5 or latent.shape[1] != self.raw_channels or latent.shape[2] != 1:
            raise ValueError(
                f"{self.name} latent has shape {tuple(latent.shape)}; expected (B, {self.raw_channels}, 1, h, w): of a "
                "video take one frame, latent[:, :, i : i + 1]"
            )
        return latent.squeeze(2)

    def from_euler(self, latent: Tensor, sigma_e: float | Tensor) -> tuple[Tensor, float]:
        """What diffusers' Euler scheduler holds for SDXL, z + σ_e·ξ, → (the variance-preserving latent, its sigma).

        Divides the latent and σ_e (`scheduler.sigmas[M]`, from 0 to about 15) by sqrt(σ_e² + 1).
        """
        if self.noise != "vp":
            raise ValueError(
                f"{self.name} has flow noise, whose scheduler holds the latent as it is; only sdxl needs this"
            )
        level = float(sigma_e)
        if not (math.isfinite(level) and level >= 0):
            raise ValueError(f"Euler sigma {level}: expected a finite number of at least 0 (scheduler.sigmas[M])")
        k = math.sqrt(level**2 + 1)
        return latent / k, level / k

    def _statistics(self, given: Statistics | None) -> Statistics:
        if self.constants is not None:
            self._no_statistics(given)
            return self.constants
        if given is None:
            raise ValueError(
                f"{self.name} latents are normalised by statistics kept in the autoencoder ({self.encoder}); "
                "pass statistics=Statistics.from_vae(vae)"
            )
        return given

    def _no_statistics(self, given: Statistics | None) -> None:
        if given is not None:
            raise ValueError(f"{self.name} latents are normalised without statistics of the autoencoder; pass none")

    def _expect_grid(self, latent: Tensor, channels: int, form: str) -> None:
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise ValueError(
                f"{form} {self.name} latent has shape {tuple(latent.shape)}; expected (B, {channels}, h, w)"
            )


def noise_levels(sigma: float | Sequence[float] | Tensor, batch: int, device: torch.device) -> Tensor:
    """Sigma as float32 of shape (batch,): a number serves every sample, otherwise one for each.

    Raises:
        ValueError: the count does not fit, or a level lies outside [0, 1].
    """
    try:
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's and numpy's, by what is in a list
        raise ValueError(f"sigma={sigma!r}: expected one number, or one for each of {batch} latents") from error
    if levels.ndim > 1 or (levels.ndim == 1 and levels.shape[0] != batch):
        raise ValueError(
            f"sigma has shape {tuple(levels.shape)}; expected one number, or one for each of {batch} latents"
        )
    if not bool(((levels >= 0) & (levels <= 1)).all()):  # NaN fails both comparisons
        raise ValueError(
            f"sigma {levels.cpu().numpy()}: expected noise levels in [0, 1]; for SDXL's Euler scheduler convert latent "
            "and sigma with get_space('sdxl').from_euler(latent, sigma)"
        )
    return levels.detach().expand(batch).clone()


def _affine(channels: int, shift: float, scale: float) -> Statistics:
    """The form of diffusers' VAE configs: (raw − shift_factor) · scaling_factor."""
    return Statistics(torch.full((channels,), shift, device="cpu"), torch.full((channels,), 1 / scale, device="cpu"))


# On the CPU whatever the default device is while this module is imported (it may be meta).
_FLUX1 = _affine(16, shift=0.1159, scale=0.3611)

# fmt: off
# `latents_mean` and `latents_std` of the Wan 2.1 VAE, which Qwen-Image uses.
_WAN21 = Statistics(
    torch.tensor([-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                  0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921], device="cpu"),
    torch.tensor([2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                  3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160], device="cpu"),
)
# fmt: on

_KL = "AutoencoderKL"
_ALL = (
    LatentSpace("flux1", 16, 8, "FLUX.1 VAE", constants=_FLUX1, token_patch=2, vae_class=_KL, stop=(24, 28, 0.24)),
    LatentSpace(
        "flux2", 128, 16, "FLUX.2 VAE", patch=2, token_patch=1, vae_class="AutoencoderKLFlux2", stop=(46, 50, 0.32)
    ),
    LatentSpace("sd3", 16, 8, "SD3 VAE", constants=_affine(16, 0.0609, 1.5305), vae_class=_KL, stop=(24, 28, 0.33)),
    LatentSpace(
        "sdxl", 4, 8, "SDXL VAE", noise="vp", constants=_affine(4, 0.0, 0.13025), vae_class=_KL, stop=(26, 30, 0.33)
    ),
    LatentSpace(
        "qwen-image",
        16,
        8,
        "Wan 2.1 VAE",
        constants=_WAN21,
        token_patch=2,
        vae_class="AutoencoderKLQwenImage",
        video=True,
        stop=(44, 50, 0.18),
    ),
    LatentSpace(
        "z-image", 16, 8, "FLUX.1 VAE", constants=_FLUX1, vae_class=_KL, transformer="ZImage", stop=(46, 50, 0.21)
    ),
    LatentSpace("dinov2", 768, 16, "RAE on DINOv2-B with registers", token_patch=1, vision=True),
    LatentSpace("rgb", 3, 1, "none, it is an image", constants=_affine(3, 0.0, 1.0), is_image=True),
    LatentSpace("siglip", 1152, 16, "SigLIP-2 So400M/14", token_patch=1, layer_norm_eps=1e-6, vision=True),
)

SPACES: Mapping[str, LatentSpace] = MappingProxyType({space.name: space for space in _ALL})


def get_space(name: str | LatentSpace) -> LatentSpace:
    """The space of that name; `SPACES` has them all. A space is itself.

    Raises:
        ValueError: there is none of that name; lists the names.
    """
    if isinstance(name, LatentSpace):
        return name
    if name not in SPACES:
        raise ValueError(f"unknown latent space {name!r}; expected one of {', '.join(SPACES)}")
    return SPACES[name]
