"""The transfer of L2P (arXiv 2605.12013): a pixel model whose middle is a latent generator's learns to read and draw
pixels at its ends.

v = eps − x0 at x_t = (1−t)·x0 + t·eps; the noise level t is one of `grid`, evenly spaced and then shifted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixdec.io.arguments import check_range
from pixdec.l2p.model import PixelModel, shallow_only
from pixdec.sampling.flow import interpolate
from pixdec.train.draws import Draws
from pixdec.train.losses import velocity_errors
from pixdec.train.stages.stage import Examples

EmbedEach = Callable[[Sequence[str]], list[Tensor]]  # prompts -> (T,E) each


@dataclass(frozen=True)
class PixelObjective:
    """How a pixel model learns; the defaults are the released 1K recipe's.

    Attributes:
        shallow: main blocks at either end that learn, besides all that is no main block; None for everything.
        shift: of noise levels: 3 as released, 3 to 5 for 4K.
        grid: how many noise levels there are.
        fixed_noise: the noise of an image follows from its seed, the same at every visit; else it is fresh.
        drop_caption: share of prompts that give their place to the empty one. The release drops none.
        average: export the average of the weights (EDM2's) in place of the last ones.
    """

    shallow: int | None = 5
    shift: float = 3.0
    grid: int = 500
    fixed_noise: bool = True
    drop_caption: float = 0.0
    average: bool = False

    def __post_init__(self) -> None:
        if self.shift <= 0 or self.grid < 1:
            raise ValueError(f"shift={self.shift}, grid={self.grid}: expected numbers above 0")
        check_range(self, ["drop_caption"], 0, 1)


class PixelStage:
    """`model` learns; `embed` is for examples without embeddings, and for the empty prompt."""

    def __init__(self, model: PixelModel, settings: PixelObjective, embed: EmbedEach | None = None):
        self.names = shallow_only(model, settings.shallow)
        self.network, self.settings, self.embed = model, settings, embed
        self.networks: Mapping[str, nn.Module] = {"pixels": model}

    def turn(self, step: int) -> tuple[str, ...]:
        """The model, always."""
        return ("pixels",)

    def losses(self, step: int, examples: Examples, draws: Draws) -> dict[str, Tensor]:
        """flow: the mean squared velocity error, unweighted."""
        settings, images = self.settings, examples.images
        dropped = draws.uniform() < settings.drop_caption
        t = level(settings, (draws.uniform() * settings.grid).long().clamp_max(settings.grid - 1))
        if settings.fixed_noise and examples.seeds:
            noise = torch.cat([noise_of(seed, images.shape[1:]) for seed in examples.seeds]).to(images.device)
        else:
            noise = draws.normal(*images.shape[1:])
        flow = velocity_errors(
            self.network(interpolate(images, noise, t), t, self._text(examples, dropped.tolist())), images, noise
        ).mean()
        return {"total": flow, "flow": flow}

    @torch.no_grad()
    def _text(self, examples: Examples, dropped: Sequence[bool]) -> list[Tensor]:
        """(T,E) of every prompt, or of the empty one."""
        known = examples.embeddings
        found = list(known) if known is not None else self._embedded(examples.captions)
        if not any(dropped):
            return found
        empty = self._embedded([""])[0]
        return [empty if gone else each for each, gone in zip(found, dropped, strict=True)]

    def _embedded(self, captions: Sequence[str]) -> list[Tensor]:
        if self.embed is None:
            raise ValueError("the shards hold no embeddings, and no text encoder is named; see --gemma")
        return self.embed(captions)


def level(settings: PixelObjective, index: Tensor) -> Tensor:
    """t of a place in the grid (B,), from noise on: shift·u/(1+(shift−1)·u), u = 1 − index/grid; float32."""
    u = 1 - index.double().cpu() / settings.grid
    return (settings.shift * u / (1 + (settings.shift - 1) * u)).float().to(index.device)


def noise_of(seed: int, shape: Sequence[int]) -> Tensor:
    """(1,3,H,W), as the CPU draws it from a seed."""
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
