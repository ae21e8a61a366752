"""Crops to train on: photographs of a folder, and pages of rendered text and line art drawn on the fly.

Every crop is a pure function of (seed, index): a run that resumes at step n sees exactly what it would have seen.
"""

import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixdec.io.files import reason_of
from pixdec.io.images import read_image
from pixdec.train.data.buckets import Bucket
from pixdec.train.data.fit import FitSettings, fit
from pixdec.train.data.folder import folder_index
from pixdec.train.data.synthetic import draw_page

T = TypeVar("T")

CACHE_BYTES = 2**30  # of decoded pictures that are kept


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
    """The pictures below a folder, decoded when they are drawn; the last ones are kept, as 8-bit RGB, up to `cache`
    bytes.

    Pictures smaller than `least` pixels a side are left out, and what else `folder_index` leaves out. One that turns
    out to be broken later is a warning, and another is drawn for it.

    Raises:
        ValueError: no pictures, or none that can be used.
    """

    def __init__(self, folder: str | Path, least: int = 1, *, cache: int = CACHE_BYTES):
        (shard,) = folder_index(folder, together=sys.maxsize).shards
        large = shard.sizes.min(axis=1) >= least
        self.paths = [path for path, kept in zip(shard.files, large, strict=True) if kept]
        if not self.paths:
            raise ValueError(f"{folder}: none of {len(large)} pictures has {least} pixels a side")
        areas = shard.sizes[large].prod(axis=1).astype(float)
        self.weights = areas / areas.sum()  # each photographed pixel is as likely as any other
        self._cache, self._room = OrderedDict[int, Image.Image](), cache
        self._broken, self._lock = set[int](), threading.Lock()

    def crop(self, settings: CropSettings, seed: int, index: int) -> Image.Image:
        """Crop number `index` of the endless sequence `seed`, RGB, `size` x `size`.

        Raises:
            ValueError: a picture that is smaller, or none that can be read.
        """
        rng = np.random.default_rng((seed, index))
        if rng.random() < settings.synthetic:
            return draw_page(rng, settings.size)
        crops = [self._photographed(settings, rng) for _ in range(settings.candidates)]
        crop = max(crops, key=_detail)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def _photographed(self, settings: CropSettings, rng: np.random.Generator) -> Image.Image:
        while True:
            number = int(rng.choice(len(self.paths), p=self.weights))
            if (picture := self._picture(number)) is not None:
                break
        square, how = Bucket(settings.size, settings.size), FitSettings(settings.zoom, settings.unscaled, flip=0.0)
        try:
            return fit(picture, square, how, rng)
        except ValueError as error:
            raise ValueError(f"{self.paths[number]}: {error}") from error

    def _picture(self, number: int) -> Image.Image | None:
        """A picture, decoded; None for one that is broken, of which the first time is told."""
        with self._lock:
            if number in self._broken:
                return None
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        try:
            picture = read_image(self.paths[number])
        except (ValueError, OSError) as error:
            with self._lock:
                self._broken.add(number)
                if len(self._broken) == len(self.paths):
                    raise ValueError(f"no picture can be read; the last: {error}") from error
            warnings.warn(f"{reason_of(error)}; others stand in for it", stacklevel=2)
            return None
        with self._lock:
            self._cache[number] = picture
            while len(self._cache) > 1 and sum(3 * p.width * p.height for p in self._cache.values()) > self._room:
                self._cache.popitem(last=False)
        return picture

    def batch(
        self, settings: CropSettings, seed: int, step: int, size: int, places: Sequence[int] | None = None
    ) -> Tensor:
        """The batch of one step, or its images at `places`: (size or number of places,3,S,S) float32 in [-1,1]."""
        places = range(size) if places is None else places
        crops = [np.asarray(self.crop(settings, seed, step * size + i)) for i in places]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _detail(crop: Image.Image) -> float:
    """Mean absolute difference of neighbouring pixels."""
    gray = np.asarray(crop.convert("L"), dtype=np.float32)
    return float(np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean())


def ahead(make: Callable[[int], T]) -> Callable[[int], T]:
    """`make(step)` for steps in turn; while the caller works on one result, another thread makes the next."""
    pool, pending = ThreadPoolExecutor(1), dict[int, Future[T]]()

    def take(step: int) -> T:
        future = pending.pop(step, None) or pool.submit(make, step)
        result = future.result()
        pending[step + 1] = pool.submit(make, step + 1)
        return result

    return take
