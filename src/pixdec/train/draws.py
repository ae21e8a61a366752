"""Random numbers of training: those of an image depend on (seed, step, place) alone, place its number in the batch of
all processes together. So a run that resumes draws what it would have drawn, and so does another number of processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixdec.io.arguments import check_range
from pixdec.sampling.flow import resolution_shift

EDGE = 1e-4  # a normal deviate is cut off at about 3.7 deviations


class Draws:
    """The random numbers of one step for the images at `places` of a batch of `batch`.

    Everything is drawn on the CPU, so that it is the same on every device, and moved to `device`.
    """

    def __init__(self, seed: int, step: int, places: Sequence[int], batch: int, device: torch.device | None = None):
        self.places, self.batch, self.device = list(places), batch, device or torch.device("cpu")
        self.generators = [_generator(seed, step, place) for place in self.places]
        self._common = _generator(seed, step, batch)

    def __len__(self) -> int:
        return len(self.places)

    def uniform(self) -> Tensor:
        """(B,) in [0,1)."""
        return torch.cat([torch.rand(1, generator=each) for each in self.generators]).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), standard normal."""
        return torch.stack([torch.randn(shape, generator=each) for each in self.generators]).to(self.device)

    def common(self) -> float:
        """One number in [0,1) for the whole batch, the same on all processes."""
        return float(torch.rand(1, generator=self._common))

    def spread(self) -> Tensor:
        """(B,) in [0,1), each place in its own stratum: a batch covers the interval evenly."""
        places = torch.tensor(self.places, dtype=torch.float64)
        return ((self.common() + places / self.batch) % 1).float().to(self.device)


def _generator(seed: int, step: int, place: int) -> torch.Generator:
    # PyTorch's CPU generator reads 32 bits of a seed.
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step, place)).generate_state(1)[0]))


@dataclass(frozen=True)
class LevelSettings:
    """How noise levels t of images are drawn: t/(1−t) = s·exp(mean + std·n), n standard normal (Esser et al. 2024,
    section 3.1, and their eq. 23 for the shift s), evenly spread over each batch.

    Attributes:
        shift: s; "v1" or "v1.5": by the image's size, `pixdec.sampling.flow.resolution_shift`.
        high: a share that is uniform in [0.5, 0.999] instead, where the first step of a few-step decode works.
        least, most: t is clamped to these.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float | str = 1.0
    high: float = 0.0
    least: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.shift, str):
            resolution_shift(1024, 1024, self.shift)
        elif self.shift <= 0:
            raise ValueError(f"shift={self.shift}: expected a positive number, 'v1' or 'v1.5'")
        if not 0 <= self.least < self.most <= 1:
            raise ValueError(f"least={self.least}, most={self.most}: expected rising levels within 0 to 1")
        check_range(self, ["high"], 0, 1)


def noise_levels(settings: LevelSettings, draws: Draws, height: int, width: int) -> Tensor:
    """t (B,) in (0,1) for images of height x width."""
    u = draws.spread().clamp(EDGE, 1 - EDGE)
    normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
    shift = settings.shift
    factor = resolution_shift(height, width, shift) if isinstance(shift, str) else shift
    t = torch.sigmoid(settings.mean + math.log(factor) + settings.std * normal)
    high, place = draws.uniform() < settings.high, draws.uniform()
    return torch.where(high, 0.5 + 0.499 * place, t).clamp(settings.least, settings.most)
