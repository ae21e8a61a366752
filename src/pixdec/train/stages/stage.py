"""What the three stages have in common: what they are conditioned on, what the loop asks of them.

B batch · H, W image pixels · C latent channels · h, w latent grid · T text tokens · E their width
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pixdec.io.arguments import check_range
from pixdec.sampling.flow import expand, interpolate
from pixdec.train.data.degrade import DegradeSettings, degraded
from pixdec.train.data.sample import Examples
from pixdec.train.draws import Draws

Encode = Callable[[Tensor], Tensor]  # images (B,3,h·factor,w·factor) in [-1,1] -> normalised latents (B,C,h,w)
Embed = Callable[[Sequence[str]], Tensor]  # captions -> (B,T,E)


@dataclass(frozen=True)
class ConditionSettings:
    """How the condition of an image is made.

    Attributes:
        degrade: how the low-resolution image comes from the high one; its scale is the decoder's.
        clean: share of latents with sigma = 0; that of the others is uniform in [0, `sigma_max`].
        drop_caption: share of captions that give their place to the empty one.
        drop_latent: share of latents that give their place to zeros at sigma = 1, where the gates are most closed.
    """

    degrade: DegradeSettings = field(default_factory=DegradeSettings)
    clean: float = 0.0
    sigma_max: float = 0.8
    drop_caption: float = 0.1
    drop_latent: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, ("clean", "sigma_max", "drop_caption", "drop_latent"), 0, 1)


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a decoder is told of an image: noisy latent (B,C,h,w) with its sigma (B,), text (B,T,E) or None; besides,
    the low-resolution image (B,3,H/scale,W/scale) and which latents were kept (B,), 0 or 1."""

    latent: Tensor
    sigma: Tensor
    text: Tensor | None
    low: Tensor
    kept: Tensor


@dataclass(frozen=True, eq=False)
class Conditioner:
    """Makes conditions. The encoders take turns over the places of a batch; `embed` None is for networks without
    text."""

    settings: ConditionSettings
    encoders: Sequence[Encode]
    embed: Embed | None = None

    def __call__(self, examples: Examples, draws: Draws) -> Conditions:
        """Conditions of examples, on their device, without gradient. Noise of the latent: z_σ = (1−σ)·z + σ·eps."""
        settings = self.settings
        with torch.no_grad():
            each = zip(examples.images, draws.generators, strict=True)
            low = torch.cat([degraded(image[None], settings.degrade, generator) for image, generator in each])
            latent = examples.latents if examples.latents is not None else self._encode(low, draws.places)
            latent = latent.float()
            noisy = draws.uniform() >= settings.clean
            sigma = settings.sigma_max * draws.uniform() * noisy
            latent = interpolate(latent, draws.normal(*latent.shape[1:]), sigma)
            kept = draws.uniform() >= settings.drop_latent
            latent, sigma = latent * expand(kept, latent), torch.where(kept, sigma, 1.0)
            text = embedded(self.embed, examples, draws.uniform() < settings.drop_caption)
            return Conditions(latent, sigma, text, low, kept.float())

    def _encode(self, low: Tensor, places: Sequence[int]) -> Tensor:
        if len(self.encoders) == 1:
            return self.encoders[0](low)
        turns = [place % len(self.encoders) for place in places]
        return torch.cat([self.encoders[turn](each[None]).float() for turn, each in zip(turns, low, strict=True)])


def embedded(embed: Embed | None, examples: Examples, dropped: Tensor) -> Tensor | None:
    """Embeddings (B,T,E) of the captions, of the empty one where `dropped` (B,) says so; None without `embed`."""
    if embed is None:
        return None
    device = examples.images.device
    captions = ["" if gone else caption for gone, caption in zip(dropped.tolist(), examples.captions, strict=True)]
    if examples.embeddings is None:
        return embed(captions).to(device)
    known = torch.stack(list(examples.embeddings))
    return torch.where(dropped[:, None, None], embed([""]).to(known), known) if bool(dropped.any()) else known


class Stage(Protocol):
    """What the loop trains.

    Attributes:
        networks: what learns, by name, each with an optimizer of its own; the first is averaged, shown and exported.
    """

    networks: Mapping[str, nn.Module]

    @property
    def network(self) -> Any:
        """The network that is made."""
        ...

    def turn(self, step: int) -> tuple[str, ...]:
        """Which of the networks learn in step `step`."""
        ...

    def losses(self, step: int, examples: Examples, draws: Draws) -> dict[str, Tensor]:
        """Named scalars of examples; "total" is what the networks of this turn minimise."""
        ...
