"""The bundled decoder's network: few-step diffusion in pixels, on the grid of the low-resolution image.

B batch · h, w low-resolution image · s scale (4) · H = s·h, W = s·w · K width

The noisy image, folded s x s into channels, and the low-resolution image run through residual blocks of 3 x 3
convolutions on the (h, w) grid, each modulated by the noise levels; what comes out is unfolded and added to the bicubic
enlargement. Nothing depends on the image's size or on a place in it, so that tiles agree beyond the receptive field.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.layers.sinusoids import time_sinusoid
from pixdec.models.execution import PLAIN, Execution

SMALLEST_TIME = 0.05  # below it a velocity is not divided by t any further
_SIGNAL_VARIANCE = 0.25  # of images in [-1,1]
_SLOPE = 0.1
_LONGEST_PERIOD = 10_000.0


@dataclass(frozen=True)
class NanoSettings:
    """Attributes:
    width: channels on the low-resolution grid.
    blocks: how many residual blocks.
    detail: channels at full resolution, before the last convolution; at half of it there are twice as many.
    embedding: width of the noise levels' sinusoids.
    scale: side of the output / side of the low-resolution image.
    """

    width: int = 64
    blocks: int = 12
    detail: int = 16
    embedding: int = 64
    scale: int = 4

    @property
    def receptive_field(self) -> int:
        """How far, in pixels of the low-resolution image, a value of the input reaches in the output."""
        return 2 * self.blocks + 4


@dataclass(frozen=True)
class NanoCondition:
    """What all steps of a decode share: the low-resolution image (B,3,h,w), and its bicubic enlargement (B,3,H,W) in
    float32."""

    low: Tensor
    enlarged: Tensor

    def crop(self, top: int, left: int, height: int, width: int, patch: int) -> "NanoCondition":
        """What belongs to a rectangle of output pixels, all multiples of the scale."""
        rows, columns = (slice(a // patch, (a + b) // patch) for a, b in ((top, height), (left, width)))
        enlarged = self.enlarged[:, :, top : top + height, left : left + width]
        return NanoCondition(self.low[:, :, rows, columns], enlarged)


class Block(nn.Module):
    """x + conv(act((1 + scale)·conv(x) + shift)), scale and shift of the noise levels."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:  # (B,K,h,w), (B,K,1,1) twice
        inner = self.first(x).mul_(scale).add_(shift)  # in place: fresh memory costs more than the arithmetic
        return self.second(F.leaky_relu_(inner, _SLOPE)).add_(x)


class Nano(nn.Module):
    """`network(x_t, t, text, latent, sigma) -> velocity`; the latent is a low-resolution image, of the space `rgb`."""

    def __init__(self, settings: NanoSettings):
        super().__init__()
        self.settings = settings
        width, scale = settings.width, settings.scale
        self.fold = nn.Conv2d(3 * scale**2 + 3, width, 3, padding=1)
        self.levels = nn.Sequential(
            nn.Linear(2 * settings.embedding, 2 * width), nn.SiLU(), nn.Linear(2 * width, settings.blocks * 2 * width)
        )
        self.blocks = nn.ModuleList(Block(width) for _ in range(settings.blocks))
        self.halfway = nn.Conv2d(width, 2 * settings.detail * 4, 3, padding=1)
        self.unfold = nn.Conv2d(2 * settings.detail, settings.detail * 4, 3, padding=1)
        self.last = nn.Conv2d(settings.detail, 3, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions keep the variance (He et al. 2015), but the noisy image begins as a twentieth of what the first
        one gives, blocks near the identity, and the output near the bicubic enlargement."""
        if self.fold.weight.is_meta:  # nothing to fill, and drawing there imports the compiler: 80 MB
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            noisy = self.fold.in_channels - 3
            nn.init.normal_(self.fold.weight[:, :noisy], std=(0.05 / (9 * noisy)) ** 0.5)
            nn.init.normal_(self.fold.weight[:, noisy:], std=(1 / (9 * 3 * _SIGNAL_VARIANCE)) ** 0.5)
            self.last.weight.mul_(0.05)
            for module in self.modules():
                if isinstance(module, Block):
                    module.second.weight.mul_(0.2)
            for parameter in self.levels[-1].parameters():
                parameter.zero_()

    @property
    def patch(self) -> int:
        """Sides of images are multiples of so many pixels."""
        return self.settings.scale

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.fold.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fold.weight.device

    def condition(self, latent: Tensor, *, tokens: bool = True) -> NanoCondition:
        """The low-resolution image (B,3,h,w) -> what all steps of a decode share; `tokens` means nothing here."""
        low = latent.float()
        return NanoCondition(low, F.interpolate(low, scale_factor=float(self.settings.scale), mode="bicubic"))

    def forward(
        self, x_t: Tensor, t: Tensor, text: Tensor | None, latent: Tensor, sigma: Tensor, how: Execution = PLAIN
    ) -> Tensor:
        """x_t (B,3,H,W) at noise levels t (B,), the low-resolution image (B,3,h,w) at noise levels sigma (B,), no text
        -> the velocity (x_t − x0) / max(t, 0.05), (B,3,H,W) float32."""
        return self.velocity(x_t, t, text, self.condition(latent), sigma, how)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        text: Tensor | None,
        condition: NanoCondition,
        sigma: Tensor,
        how: Execution = PLAIN,
    ) -> Tensor:
        """As `forward`, from a condition that was computed before."""
        assert text is None
        x0 = without_halos(self.estimate(x_t, t, condition, sigma), condition.low)
        return (x_t - x0).div_(t.float().clamp(min=SMALLEST_TIME).view(-1, 1, 1, 1))

    def estimate(self, x_t: Tensor, t: Tensor, condition: NanoCondition, sigma: Tensor) -> Tensor:
        """The clean image x0 (B,3,H,W), float32."""
        weights, scale = self.fold.weight, self.settings.scale
        seen = torch.cat((F.pixel_unshuffle(x_t.to(weights.dtype), scale), condition.low.to(weights.dtype)), 1)
        x = self.fold(seen.contiguous(memory_format=torch.channels_last))  # (B,51,h,w) -> (B,K,h,w)
        for block, (gain, shift) in zip(self.blocks, self._modulations(t, sigma), strict=True):
            x = block(x, gain, shift)
        x = F.leaky_relu_(F.pixel_shuffle(self.halfway(x), 2), _SLOPE)  # (B,2·detail,2h,2w)
        x = F.leaky_relu_(F.pixel_shuffle(self.unfold(x), 2), _SLOPE)  # (B,detail,H,W)
        return self.last(x).float().addcmul(condition.enlarged, _trust(sigma))

    def _modulations(self, t: Tensor, sigma: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each block a gain and a shift (B,K,1,1)."""
        width = self.settings.embedding
        levels = torch.cat([time_sinusoid(level, width, _LONGEST_PERIOD) for level in (t, sigma)], 1)
        made = self.levels(levels.to(self.fold.weight.dtype))  # (B,blocks·2·K)
        parts = made.view(len(t), self.settings.blocks, 2, -1, 1, 1)
        return [(1 + parts[:, i, 0], parts[:, i, 1]) for i in range(self.settings.blocks)]


def range_around(low: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most of the 5 x 5 pixels around each of an image (B,3,h,w), and an eighth of their range
    beyond: (B,3,h,w) twice."""
    most, least = F.max_pool2d(low, 5, 1, 2), -F.max_pool2d(-low, 5, 1, 2)
    more = (most - least) / 8
    return least - more, most + more


def without_halos(x0: Tensor, low: Tensor) -> Tensor:
    """x0 (B,3,s·h,s·w), in place, held to the range around each pixel of the low-resolution image (B,3,h,w): what
    sharpens an edge overshoots beside it."""
    height, width = low.shape[2:]
    blocks = x0.view(*low.shape[:3], x0.shape[2] // height, width, x0.shape[3] // width)
    least, most = (each[:, :, :, None, :, None] for each in range_around(low))
    blocks.clamp_(least, most)
    return x0


def _trust(sigma: Tensor) -> Tensor:
    """How much of a pixel (1−σ)·z + σ·ξ is kept: the weight of least squared error for z of variance 1/4, (B,1,1,1)."""
    sigma = sigma.float().view(-1, 1, 1, 1)
    kept = 1 - sigma
    return kept / (kept.square() + sigma.square() / _SIGNAL_VARIANCE)
