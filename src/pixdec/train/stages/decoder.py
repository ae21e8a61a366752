"""Stage 2, the decoder: flow matching on pixels, conditioned on the noised latent of the image shrunk by the decoder's
scale.

High-resolution image x0 -> bicubic antialiased ÷ scale -> frozen encoder -> latent, noised to sigma -> velocity of the
network at x_t = (1−t)·x0 + t·eps, against eps − x0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.models.pid import PiD
from pixdec.sampling.flow import interpolate
from pixdec.train.draws import Draws, LevelSettings, noise_levels
from pixdec.train.losses import alignment, velocity_errors
from pixdec.train.stages.stage import Conditioner, ConditionSettings, Examples


@dataclass(frozen=True)
class DecoderSettings:
    """How a decoder learns.

    Attributes:
        levels: noise of the images.
        conditions: how latents are made, noised and dropped.
        learns: "everything", or the "adapter" with its gates alone, as for vision encoders' latents and v1.5.
        alignment: weight of v1.5's RGB alignment loss, for networks with the auxiliary head.
    """

    levels: LevelSettings = field(default_factory=lambda: LevelSettings(shift=6.0))
    conditions: ConditionSettings = field(default_factory=ConditionSettings)
    learns: Literal["everything", "adapter"] = "everything"
    alignment: float = 0.0


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
        self.network, self.settings, self.conditioner = network, settings, conditioner
        self.networks: Mapping[str, nn.Module] = {"decoder": network}

    def turn(self, step: int) -> tuple[str, ...]:
        """The decoder, always."""
        return ("decoder",)

    def losses(self, step: int, examples: Examples, draws: Draws) -> dict[str, Tensor]:
        """flow: the squared velocity error; high, clean: that of images with t > 0.5, and with sigma = 0;
        alignment; total."""
        settings, images = self.settings, examples.images
        conditions = self.conditioner(examples, draws)
        t = noise_levels(settings.levels, draws, *images.shape[-2:])
        noise = draws.normal(*images.shape[1:])
        x_t = interpolate(images, noise, t)
        velocity = self.network(x_t, t, conditions.text, conditions.latent, conditions.sigma)
        each = velocity_errors(velocity, images, noise)
        parts = {"flow": each, "high": each[t > 0.5], "clean": each[conditions.sigma == 0]}
        losses = {name: part.mean() for name, part in parts.items() if len(part)}
        total = losses["flow"]
        if settings.alignment:
            assert self.network.adapter is not None
            seen = self.network.adapter.low_resolution(conditions.latent)
            target = _to_size(conditions.low, seen)
            losses["alignment"] = alignment(seen, target, conditions.sigma, conditions.kept)
            total = total + settings.alignment * losses["alignment"]
        return {"total": total, **losses}


def _to_size(low: Tensor, like: Tensor) -> Tensor:
    """The low-resolution images at the auxiliary head's size: the same where 4 scale = patch."""
    if low.shape == like.shape:
        return low
    return F.interpolate(low, like.shape[2:], mode="bicubic", antialias=True, align_corners=False)
