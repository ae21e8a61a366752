"""REPA: the prior's hidden states learn to foretell the features of a frozen vision encoder (Yu et al. 2024, arXiv
2410.06940, eq. 8). An option of the first stage.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.models.pid import PiD
from pixdec.train.features import Seen, watching

Features = Callable[[Tensor], Tensor]  # images (B,3,H,W) in [-1,1] -> (B,F,rows,columns)


@dataclass(frozen=True)
class RepresentationSettings:
    """`weight` of the term, 0 leaves it out; `block`, the patch block whose tokens are compared; `hidden`, width of the
    projector, `width`, that of the encoder's features."""

    weight: float = 0.0
    block: int = 7
    hidden: int = 2048
    width: int = 768


class Representation:
    """The encoder, and the projector from tokens to its features: three Linears with SiLU between."""

    def __init__(self, settings: RepresentationSettings, network: PiD, features: Features):
        self.settings, self.features, self.patch = settings, features, network.settings.backbone.patch
        hidden = settings.hidden
        self.projector = nn.Sequential(
            nn.Linear(network.settings.backbone.hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, settings.width),
        )

    def watching(self, network: PiD) -> AbstractContextManager[Seen]:
        """Keeps the tokens of the calls inside."""
        return watching(network, self.settings.block)

    def loss(self, seen: Seen, images: Tensor) -> Tensor:
        """−mean cos(projected tokens, features of the clean images), features brought to the tokens' grid."""
        tokens = self.projector(seen.tokens())
        rows, columns = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        with torch.no_grad():
            target = self.features(images)
            if target.shape[1] != self.settings.width:
                raise ValueError(
                    f"the encoder's features are {target.shape[1]} wide: set representation.width, "
                    f"now {self.settings.width}, to that"
                )
            target = F.interpolate(target.float(), (rows, columns), mode="bilinear", antialias=True)
        return -F.cosine_similarity(tokens.float(), target.flatten(2).transpose(1, 2), dim=-1).mean()
