"""Stage 1, the prior: rectified flow on images with captions, without a latent."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pixdec.models.pid import PiD
from pixdec.sampling.flow import interpolate
from pixdec.train.draws import Draws, LevelSettings, noise_levels
from pixdec.train.losses import flow_matching
from pixdec.train.representation import Representation, RepresentationSettings
from pixdec.train.stages.stage import Embed, Examples, embedded


@dataclass(frozen=True)
class PriorSettings:
    """`levels`: noise of the images. `drop_caption`: share of captions that give their place to the empty one.
    `representation`: REPA, off if its weight is 0."""

    levels: LevelSettings = field(default_factory=lambda: LevelSettings(shift=6.0))
    drop_caption: float = 0.1
    representation: RepresentationSettings = field(default_factory=RepresentationSettings)


class PriorStage:
    """`network` without an adapter learns v = eps − x0 at x_t = (1−t)·x0 + t·eps."""

    def __init__(
        self, network: PiD, settings: PriorSettings, embed: Embed | None, representation: Representation | None = None
    ):
        if network.adapter is not None:
            raise ValueError("a prior has no latent adapter; train this network as a decoder")
        if (representation is None) != (settings.representation.weight == 0):
            raise ValueError(
                f"representation.weight={settings.representation.weight}: a weight and an encoder go together; "
                "name the encoder, or set the weight to 0"
            )
        self.network, self.settings, self.embed, self.representation = network, settings, embed, representation
        self.networks: Mapping[str, nn.Module] = {"prior": network}
        if representation is not None:
            self.networks = {"prior": network, "projector": representation.projector}

    def turn(self, step: int) -> tuple[str, ...]:
        """All that learns does so in every step."""
        return tuple(self.networks)

    def losses(self, step: int, examples: Examples, draws: Draws) -> dict[str, Tensor]:
        """flow: mean ‖v̂ − (eps − x0)‖²; total adds REPA's term."""
        images = examples.images
        with torch.no_grad():
            text = embedded(self.embed, examples, draws.uniform() < self.settings.drop_caption)
        t = noise_levels(self.settings.levels, draws, *images.shape[-2:])
        noise = draws.normal(*images.shape[1:])
        x_t = interpolate(images, noise, t)
        if self.representation is None:
            flow = flow_matching(self.network(x_t, t, text, None, None), images, noise)
            return {"total": flow, "flow": flow}
        with self.representation.watching(self.network) as seen:
            flow = flow_matching(self.network(x_t, t, text, None, None), images, noise)
        aligned = self.representation.loss(seen, images)
        return {"total": flow + self.settings.representation.weight * aligned, "flow": flow, "representation": aligned}
