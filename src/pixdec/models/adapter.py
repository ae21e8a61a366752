"""The latent adapter: a latent becomes tokens on the patch grid, and sigma-aware gates let them into the backbone.

B batch · C latent channels · h, w latent grid · p patch side · L patch tokens · k adapter width · D hidden width
Source: PiD (arXiv 2605.23902), sections 3.2 and 3.3, and its released checkpoints, versions 1 and 1.5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GATE_BIAS = 2.0
GATE_ALPHA = 5.0


@dataclass(frozen=True)
class AdapterSettings:
    """Sizes of the adapter; the defaults are those of version 1 on a 16-channel latent.

    `latent_factor` is the image side divided by the latent's, `scale` the output side divided by the image's.
    `unpack` > 1 first spreads channels over a finer grid (2: 128 -> 32 channels). `gate`: one opening for each token
    ("token") or for each token and channel ("channel"). `pixel_head` also conditions the pixel blocks; `aux_rgb` adds
    the training-only head that predicts the low-resolution image.
    """

    latent_channels: int = 16
    latent_factor: int = 8
    scale: int = 4
    width: int = 512
    blocks: int = 4
    interval: int = 2
    unpack: int = 1
    padding: Literal["zeros", "replicate"] = "zeros"
    gate: Literal["channel", "token"] = "channel"
    pixel_head: bool = False
    aux_rgb: bool = False


class AdapterBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), group norm of four groups."""

    def __init__(self, width: int, padding: Literal["zeros", "replicate"]):
        super().__init__()
        self.norm1 = nn.GroupNorm(4, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, padding_mode=padding)
        self.norm2 = nn.GroupNorm(4, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, padding_mode=padding)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class LatentAdapter(nn.Module):
    """Latent (B,C,h,w) -> one set of tokens (B,L,D) for each injection point. Depends on neither t nor sigma."""

    def __init__(self, settings: AdapterSettings, *, patch: int, hidden: int, depth: int):
        super().__init__()
        self.settings = settings
        width, padding = settings.width, settings.padding
        side = settings.latent_factor * settings.scale  # output pixels under one latent cell, before unpacking
        self.spread, rest = divmod(side, patch * settings.unpack)
        self.fold = 1
        if self.spread == 0:
            self.spread, (self.fold, rest) = 1, divmod(patch * settings.unpack, side)
        if rest:
            raise ValueError(
                f"scale {settings.scale} x latent factor {settings.latent_factor} = {side} output pixels a latent cell "
                f"does not fit patches of {patch} (unpack {settings.unpack}); "
                "choose a patch that divides it or is a multiple of it"
            )
        channels = settings.latent_channels // settings.unpack**2 * self.fold**2
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1, padding_mode=padding)
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1, padding_mode=padding)
        self.blocks = nn.ModuleList(AdapterBlock(width, padding) for _ in range(settings.blocks))
        self.heads = nn.ModuleList(nn.Linear(width, hidden) for _ in range(0, depth, settings.interval))
        self.pixel_head = nn.Linear(width, hidden) if settings.pixel_head else None
        self.aux_rgb = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * 16))
            if settings.aux_rgb
            else None
        )

    def features(self, latent: Tensor) -> Tensor:
        """Latent (B,C,h,w) -> features (B,k,Hs,Ws) on the patch grid."""
        x = latent.to(self.conv_in.weight.dtype)
        x = F.pixel_shuffle(x, self.settings.unpack)
        x = F.interpolate(x, scale_factor=self.spread, mode="nearest") if self.spread > 1 else x
        x = F.pixel_unshuffle(x, self.fold)
        x = self.conv_mid(F.silu(self.conv_in(x)))
        for block in self.blocks:
            x = block(x)
        return x

    def tokens(self, features: Tensor) -> list[Tensor]:
        """Features (B,k,Hs,Ws) -> tokens (B,L,D): one for each patch-block injection point, then that of the pixel
        blocks if any."""
        points = len(self.heads) + (self.pixel_head is not None)
        return [self.token(features, point) for point in range(points)]

    def token(self, features: Tensor, point: int) -> Tensor:
        """The tokens (B,L,D) of one injection point; -1 is the last."""
        heads = [*self.heads, *([self.pixel_head] if self.pixel_head is not None else [])]
        return heads[point](features.flatten(2).transpose(1, 2))

    def forward(self, latent: Tensor) -> list[Tensor]:
        """Latent (B,C,h,w) -> the tokens of all injection points."""
        return self.tokens(self.features(latent))

    def low_resolution(self, latent: Tensor) -> Tensor:
        """The auxiliary head's image (B,3,4·Hs,4·Ws); training only."""
        assert self.aux_rgb is not None
        return F.pixel_shuffle(self.aux_rgb(self.features(latent).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 4)


@dataclass(frozen=True)
class Injected:
    """What a gate may let in: tokens (B,L,D), and their part of how far it opens, (B,L,D) or (B,L,1)."""

    tokens: Tensor
    content: Tensor


class SigmaGate(nn.Module):
    """x + sigmoid(Linear([x, l]) − exp(log_alpha)·σ)·l: the noisier the latent, the less of it is let in.

    `log_alpha` and the sigmoid stay in float32 whatever the dtype of the weights.
    """

    def __init__(self, hidden: int, kind: Literal["channel", "token"]):
        super().__init__()
        self.content = nn.Linear(2 * hidden, hidden if kind == "channel" else 1)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(GATE_ALPHA)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.log_alpha.detach()
        super()._apply(fn, recurse)
        if self.log_alpha.dtype != torch.float32:  # .to(bfloat16) and the like reach here
            precise = kept if self.log_alpha.is_meta or not kept.is_meta else self.log_alpha
            self.log_alpha.data = precise.to(device=self.log_alpha.device, dtype=torch.float32)
        return self

    def prepare(self, tokens: Tensor) -> Injected:
        """Tokens (B,L,D) with their own part of the opening, which neither x nor sigma changes."""
        _, theirs = self.content.weight.chunk(2, 1)  # Linear([x, l]) without writing the two beside each other
        return Injected(tokens, F.linear(tokens, theirs, self.content.bias))

    def forward(self, x: Tensor, injected: Injected, sigma: Tensor) -> Tensor:
        """x (B,L,D), sigma (B,) in [0,1] -> (B,L,D)."""
        return torch.addcmul(x, self.opening(x, injected, sigma).to(x.dtype), injected.tokens)

    def opening(self, x: Tensor, injected: Injected, sigma: Tensor) -> Tensor:
        """How far the gate is open, (B,L,D) or (B,L,1), in [0,1], float32."""
        ours, _ = self.content.weight.chunk(2, 1)
        content = F.linear(x, ours) + injected.content
        return torch.sigmoid(content.float() - self.log_alpha.exp() * sigma.float()[:, None, None])
