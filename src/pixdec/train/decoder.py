"""Stage 2, the decoder: flow matching on pixels, conditioned on the noised latent of the image shrunk by the decoder's
scale (specification §9).

High-resolution image x0 -> bicubic antialiased ÷ scale -> frozen encoder -> latent, noised to sigma -> velocity of the
network at x_t = (1−t)·x0 + t·eps, against eps − x0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.models.pid import PiD
from pixdec.sampling.flow import interpolate, velocity_of
from pixdec.train.draws import Draws, LevelSettings, noise_levels
from pixdec.train.losses import alignment, velocity_errors
from pixdec.train.stages import Conditioner, ConditionSettings, Examples


@dataclass(frozen=True)
class DecoderSettings:
    """How a decoder learns.

    Attributes:
        levels: noise of the images.
        conditions: how latents are made, noised and dropped.
        learns: "everything", or the "adapter" with its gates alone, as for vision encoders' latents and v1.5.
        alignment: weight of v1.5's RGB alignment loss, for networks with the auxiliary head.
        coarse: weight of the error of 8 x 8 means beside that of pixels, against drifts of colour.
        even: divides each image's error by how much detail it has (`difficulty`).
        base: weight of the base decoder's own error, mean log(MSE) against the low-resolution image; 0 leaves it as it
            is. For a network that begins without one that fits its latents.
    """

    levels: LevelSettings = field(default_factory=lambda: LevelSettings(shift=6.0))
    conditions: ConditionSettings = field(default_factory=ConditionSettings)
    learns: Literal["everything", "adapter"] = "everything"
    alignment: float = 0.0
    coarse: float = 0.0
    even: bool = False
    base: float = 0.0


class DecoderStage:
    """`network` learns to decode what `conditioner` makes."""

    def __init__(self, network: PiD, settings: DecoderSettings, conditioner: Conditioner):
        adapter = network.adapter
        if adapter is None:
            raise ValueError("this network has no latent adapter; train it as a prior, or give it one")
        if settings.alignment and adapter.aux_rgb is None:
            raise ValueError(f"alignment={settings.alignment}: this network has no auxiliary head; set aux_rgb, or 0")
        if adapter.settings.scale != settings.conditions.degrade.scale:
            raise ValueError(
                f"conditions.degrade.scale={settings.conditions.degrade.scale}: this network decodes "
                f"{adapter.settings.scale}x; set it to that"
            )
        network.requires_grad_(settings.learns == "everything")
        for part in (adapter, network.gates, network.pixel_gate):
            if part is not None:
                part.requires_grad_(True)
        if settings.base and network.base is None:
            raise ValueError(f"base={settings.base}: this network has no base decoder; set it to 0")
        if network.base is not None:
            network.base.requires_grad_(settings.base > 0)
        self.network, self.settings, self.conditioner = network, settings, conditioner
        self.networks: Mapping[str, nn.Module] = {"decoder": network}

    def turn(self, step: int) -> tuple[str, ...]:
        """The decoder, always."""
        return ("decoder",)

    def losses(self, step: int, examples: Examples, draws: Draws) -> dict[str, Tensor]:
        """flow: the weighted squared velocity error; high, clean: that of images with t > 0.5, and with sigma = 0;
        alignment; total."""
        settings, images = self.settings, examples.images
        conditions = self.conditioner(examples, draws)
        t = noise_levels(settings.levels, draws, *images.shape[-2:])
        noise = draws.normal(*images.shape[1:])
        x_t = interpolate(images, noise, t)
        velocity = self.network(x_t, t, conditions.text, conditions.latent, conditions.sigma)
        error = velocity - velocity_of(images, noise)
        even = difficulty(images, conditions.low, self.network.settings.residual_std) if settings.even else None
        each = velocity_errors(error, self.network.loss_weight(t), coarse=settings.coarse, difficulty=even)
        parts = {"flow": each, "high": each[t > 0.5], "clean": each[conditions.sigma == 0]}
        losses = {name: part.mean() for name, part in parts.items() if len(part)}
        total = losses["flow"]
        if settings.alignment:
            assert self.network.adapter is not None
            seen = self.network.adapter.low_resolution(conditions.latent)
            target = _to_size(conditions.low, seen)
            losses["alignment"] = alignment(seen, target, conditions.sigma, conditions.kept)
            total = total + settings.alignment * losses["alignment"]
        if settings.base:
            losses["base"] = log_error(self.network.preview(conditions.latent), conditions.low, conditions.sigma == 0)
            total = total + settings.base * losses["base"]
        return {"total": total, **losses}


def difficulty(images: Tensor, low: Tensor, std: float) -> Tensor:
    """Mean square (B,) of what enlarging the low-resolution images lacks, in units of the residual's variance. Each
    crop's error is divided by it, for a page of text lacks twenty times what a photograph does and would drown it."""
    enlarged = F.interpolate(low, images.shape[2:], mode="bicubic", align_corners=False)
    return (images - enlarged).square().mean((1, 2, 3)) / std**2


def log_error(images: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean over the batch of log(MSE), which is what PSNR averages, 0 for images that are not `counted` (B,)."""
    each = ((images - targets).square().mean((1, 2, 3)) + 4e-4).log() * counted
    return each.mean()


def _to_size(low: Tensor, like: Tensor) -> Tensor:
    """The low-resolution images at the auxiliary head's size: the same where 4 scale = patch."""
    if low.shape == like.shape:
        return low
    return F.interpolate(low, like.shape[2:], mode="bicubic", antialias=True, align_corners=False)
