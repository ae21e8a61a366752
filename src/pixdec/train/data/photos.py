"""Crops to train on: photographs of a folder, and pages of rendered text and line art drawn on the fly.

Every crop is a pure function of (seed, index): a run that resumes at step n sees exactly what it would have seen.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixdec.io.images import read_image
from pixdec.train.data.synthetic import draw_page

T = TypeVar("T")

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class CropSettings:
    """What a crop is: `size` pixels a side, shrunk from the source by a factor in [1, `zoom`] (log-uniform) except for
    a share `unscaled`, lest every crop has been through a resampler, and drawn rather than photographed with
    probability `synthetic`. Of `candidates` photographed crops the one with the most detail is kept, for much of a
    photograph is sky."""

    size: int
    zoom: float = 2.0
    unscaled: float = 0.5
    synthetic: float = 0.15
    candidates: int = 2


class Photos:
    """The pictures of a folder, decoded once and held in memory as 8-bit RGB (about 3 bytes a pixel)."""

    def __init__(self, folder: str | Path):
        paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in PICTURES)
        if not paths:
            raise ValueError(f"{folder}: no pictures here; expected {', '.join(sorted(PICTURES))} files")
        self.pictures: Sequence[Image.Image] = [read_image(path) for path in paths]
        areas = np.array([p.width * p.height for p in self.pictures], dtype=float)
        self.weights = areas / areas.sum()  # each photographed pixel is as likely as any other

    def crop(self, settings: CropSettings, seed: int, index: int) -> Image.Image:
        """Crop number `index` of the endless sequence `seed`, RGB, `size` x `size`."""
        rng = np.random.default_rng((seed, index))
        if rng.random() < settings.synthetic:
            return draw_page(rng, settings.size)
        crops = [self._photographed(settings, rng) for _ in range(settings.candidates)]
        crop = max(crops, key=_detail)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def _photographed(self, settings: CropSettings, rng: np.random.Generator) -> Image.Image:
        picture = self.pictures[rng.choice(len(self.pictures), p=self.weights)]
        largest = min(picture.width, picture.height) / settings.size
        if largest < 1:
            raise ValueError(
                f"a picture of {picture.width}x{picture.height} is smaller than the crop of {settings.size}"
            )
        zoom = float(np.exp(rng.uniform(0, np.log(min(settings.zoom, largest)))))
        if rng.random() < settings.unscaled:
            zoom = 1.0
        side = settings.size * zoom
        left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
        if zoom == 1:
            left, top = round(left), round(top)
        box = (left, top, left + side, top + side)
        return picture.resize((settings.size, settings.size), Image.Resampling.BICUBIC, box=box)

    def batch(
        self, settings: CropSettings, seed: int, step: int, size: int, places: Sequence[int] | None = None
    ) -> Tensor:
        """The batch of one step, or its images at `places`: (size or number of places,3,S,S) float32 in [-1,1]."""
        places = range(size) if places is None else places
        crops = [np.asarray(self.crop(settings, seed, step * size + i)) for i in places]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _detail(crop: Image.Image) -> float:
    """Mean absolute difference of neighbouring pixels."""
    grey = np.asarray(crop.convert("L"), dtype=np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def ahead(make: Callable[[int], T]) -> Callable[[int], T]:
    """`make(step)` for steps in turn; while the caller works on one result, another thread makes the next."""
    pool, pending = ThreadPoolExecutor(1), dict[int, Future[T]]()

    def take(step: int) -> T:
        future = pending.pop(step, None) or pool.submit(make, step)
        result = future.result()
        pending[step + 1] = pool.submit(make, step + 1)
        return result

    return take
