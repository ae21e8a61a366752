"""Trains a small decoder: flow matching on pixels, conditioned on the latent of the image shrunk by the decoder's
scale.

    python -m pixdec.train.decoder --photos FOLDER --taef2 FOLDER --autoencoder RUN/state.pt --folder RUN

High-resolution crop x0 -> bicubic antialiased ÷ scale -> encoder (ours, and TAEF2's for one crop in four, so that
real FLUX.2 latents are met as well) -> latent, noised to sigma -> velocity of the network at x_t, against eps − x0
(specification §9).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pixdec.flow import expand, interpolate, velocity_of
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.taef2 import load_taef2
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings, pack
from pixdec.train.data.degrade import degrade
from pixdec.train.data.photos import CropSettings, Photos, ahead
from pixdec.train.loop import LoopSettings, Run, averaged_weights, generator_at, train_in
from pixdec.train.parallel import join

Encoder = Callable[[Tensor], Tensor]

EASE = 0.25  # keeps crops without detail from weighing without bound


def nano_settings() -> PiDSettings:
    """The bundled decoder's network: 5.5 M parameters besides its base decoder."""
    return PiDSettings(
        backbone=PixDiTSettings(
            patch=8,
            hidden=192,
            heads=6,
            depth=6,
            pixel_width=8,
            pixel_hidden=192,
            pixel_heads=6,
            pixel_depth=1,
            text_width=None,
            in_channels=6,
            rope_stride=1.0,
            pixel_positions="patch",
            window=8,
        ),
        adapter=AdapterSettings(
            latent_channels=128,
            latent_factor=16,
            scale=4,
            width=64,
            unpack=2,
            padding="replicate",
            gate="token",
            pixel_head=True,
        ),
        prediction="residual",
        base=TinyVAESettings(),
        residual_std=0.2,
    )


@dataclass(frozen=True)
class DecoderRecipe:
    """Everything that decides the result, but the photographs and the encoders.

    Noise levels t: with t/(1−t) = d·exp(m + s·n), n normal and d the residual's standard deviation (EDM's distribution
    in this frame), but a share `t_high` of each batch is uniform in [0.5, 1], where the first step of a decode works.
    Latent noise: sigma = 0 for a share `clean_latents`, else uniform in [0, `sigma_max`].
    `coarse` weighs the error of 8 x 8 means beside that of pixels, against drifts of colour.
    """

    network: PiDSettings = field(default_factory=nano_settings)
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=3300, batch=4, learning_rate=1e-3, warmup=200, weight_decay=0.01)
    )
    crops: CropSettings = field(default_factory=lambda: CropSettings(size=192, zoom=3.0, unscaled=0.25, synthetic=0.12))
    t_mean: float = -0.2
    t_std: float = 1.3
    t_high: float = 0.25
    coarse: float = 0.5
    clean_latents: float = 0.6
    sigma_max: float = 0.8


def noise_levels(recipe: DecoderRecipe, generator: torch.Generator) -> Tensor:
    """t (B,) for one batch, stratified so that every batch covers the whole distribution."""
    batch = recipe.loop.batch
    u = (torch.rand(1, generator=generator) + torch.arange(batch) / batch) % 1
    v = torch.rand(batch, generator=generator).clamp(1e-4, 1 - 1e-4)
    normal = math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-4, 1 - 1e-4) - 1)
    ratio = recipe.network.residual_std * torch.exp(recipe.t_mean + recipe.t_std * normal)
    high = torch.rand(batch, generator=generator) < recipe.t_high
    return torch.where(high, 0.5 + 0.499 * v, ratio / (1 + ratio))


def losses(
    network: PiD,
    encoders: Sequence[Encoder],
    images: Tensor,
    recipe: DecoderRecipe,
    generator: torch.Generator,
    places: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Weighted velocity error on images (B,3,H,W) in [-1,1]; the encoders take turns over the batch.

    `places` says where in the batch these images stand, if they are not all of it: random numbers are drawn for the
    whole batch, so that it does not matter how many processes share it.
    """
    adapter, batch = recipe.network.adapter, recipe.loop.batch
    assert adapter is not None
    places = list(range(batch) if places is None else places)
    with torch.no_grad():
        low = degrade(images, adapter.scale)
        latent = torch.cat(
            [pack(encoders[p % len(encoders)](each[None])).float() for p, each in zip(places, low, strict=True)]
        )
        sigma = recipe.sigma_max * torch.rand(batch, generator=generator)
        sigma *= torch.rand(batch, generator=generator) >= recipe.clean_latents
        sigma = sigma[places]
        latent = interpolate(latent, torch.randn(batch, *latent.shape[1:], generator=generator)[places], sigma)
    t = noise_levels(recipe, generator)[places]
    noise = torch.randn(batch, *images.shape[1:], generator=generator)[places]
    velocity = network(interpolate(images, noise, t), t, None, latent, sigma)
    error = (velocity - velocity_of(images, noise)) * expand(network.loss_weight(t).sqrt(), images)
    means = F.avg_pool2d(error, 8)
    each = error.square().mean((1, 2, 3)) + recipe.coarse * means.square().mean((1, 2, 3))
    each = each / (difficulty(images, low, recipe.network.residual_std) + EASE)
    parts = {"total": each, "high": each[t > 0.5], "clean": each[sigma == 0]}
    return {name: part.mean() for name, part in parts.items() if len(part)}


def difficulty(images: Tensor, low: Tensor, std: float) -> Tensor:
    """Mean square (B,) of what enlarging the low-resolution images lacks, in units of the residual's variance. Each
    crop's error is divided by it, for a page of text lacks twenty times what a photograph does and would drown it."""
    enlarged = F.interpolate(low, images.shape[2:], mode="bicubic", align_corners=False)
    return (images - enlarged).square().mean((1, 2, 3)) / std**2


def main(
    photos: Path,
    taef2: Path,
    autoencoder: Path,
    folder: Path,
    recipe: DecoderRecipe | None = None,
    save_every: int = 100,
) -> None:
    """Trains, or resumes, the run in `folder`; ends with its `state.pt` at the last step."""
    recipe = recipe or DecoderRecipe()
    assert recipe.network.base is not None
    tiny = TinyVAE(recipe.network.base)
    tiny.load_state_dict(averaged_weights(autoencoder))
    tiny.requires_grad_(False)
    network = PiD(recipe.network).initialise(recipe.loop.seed)
    assert network.base is not None
    network.base.load_state_dict(tiny.decoder.state_dict())
    network.base.requires_grad_(False)
    source, teacher = Photos(photos), load_taef2(taef2)
    state = Run(network, recipe.loop)

    share = join()
    places = share.places(recipe.loop.batch)
    batch = ahead(lambda step: source.batch(recipe.crops, recipe.loop.seed, step, recipe.loop.batch, places))

    def losses_at(step: int) -> dict[str, Tensor]:
        images = batch(step)
        generator = generator_at(recipe.loop.seed, step)
        return losses(network, [*[tiny.encoder] * 3, teacher.encode], images, recipe, generator, places)

    train_in(folder, state, losses_at, recipe.loop, save_every, share)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
