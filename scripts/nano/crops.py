"""What a step of the bundled decoder's training sees: crops of pictures and of the teacher's images."""

import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pixdec.models.nano import range_around
from scripts.nano.data import SCALE, busy

VARIANTS = (3, 2, 1, 1)  # how often each low-resolution image is drawn: plain, TAEF2, noised TAEF2, the tiny one


class Data:
    """Crops from the files of `scripts.nano.data`, all held in memory as bytes."""

    def __init__(self, folder: Path, crop: int):
        self.crop, self.teacher = crop, None
        self.photos, self.pages = list[dict[str, Tensor]](), list[dict[str, Tensor]]()
        for path in sorted(folder.glob("*.safetensors")):
            if path.stem == "teacher":
                self.teacher = load_file(path)
            elif path.stem == "taught":
                taught = _unpacked(load_file(path))
                self.teacher = {key: torch.stack([each[key] for each in taught]) for key in ("low", "high")}
            elif path.stem == "crops":
                self.photos += _unpacked(load_file(path))
            else:
                (self.pages if path.stem.startswith("page-") else self.photos).append(load_file(path))
        if self.teacher is not None:
            self.teacher["high"] = _corrected(self.teacher["low"][:, 0], self.teacher["high"])
        self.areas = [each["low"].shape[1] * each["low"].shape[2] for each in self.photos]

    def draw(self, rng: random.Random, *, teacher: float, pages: float) -> tuple[Tensor, Tensor, bool]:
        """One (3,4c,4c) and its (3,c,c), in [-1,1], and whether it is of a page."""
        is_page = False
        if self.teacher is not None and rng.random() < teacher:
            i = rng.randrange(len(self.teacher["low"]))
            low, high = self._crop({key: images[i] for key, images in self.teacher.items()}, rng)
        else:
            is_page = bool(self.pages) and rng.random() < pages
            picked = rng.choice(self.pages) if is_page else rng.choices(self.photos, self.areas)[0]
            low, high = max((self._crop(picked, rng) for _ in range(2)), key=lambda pair: busy(pair[0]))
        if rng.random() < 0.25:
            low = _spoilt(low, rng)
        turns, mirrored = rng.randrange(4), rng.random() < 0.5
        pair = [torch.rot90(each.permute(2, 0, 1), turns, (1, 2)) for each in (high, low)]
        high, low = ((each.flip(2) if mirrored else each).float() / 127.5 - 1 for each in pair)
        return high, low, is_page

    def _crop(self, picture: dict[str, Tensor], rng: random.Random) -> tuple[Tensor, Tensor]:
        c, (variants, height, width, _) = self.crop, picture["low"].shape
        y, x = rng.randrange(height - c + 1), rng.randrange(width - c + 1)
        variant = rng.choices(range(variants), VARIANTS[:variants])[0]
        low = picture["low"][variant, y : y + c, x : x + c]
        return low, picture["high"][SCALE * y : SCALE * (y + c), SCALE * x : SCALE * (x + c)]


def _unpacked(crops: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The pictures of `scripts.nano.data.pack`."""

    def image(key: str) -> Tensor:
        return torch.from_numpy(np.array(Image.open(io.BytesIO(crops[key].numpy().tobytes())).convert("RGB")))

    count = sum(key.startswith("high-") for key in crops)
    variants = (len(crops) - count) // count
    return [
        {"high": image(f"high-{i}"), "low": torch.stack([image(f"low-{i}-{j}") for j in range(variants)])}
        for i in range(count)
    ]


def _corrected(low: Tensor, high: Tensor) -> Tensor:
    """The teacher's images (N,H,W,3) without its faults, by the low-resolution ones (N,h,w,3): Real-ESRGAN shifts
    colors, so the means of 4 x 4 of their pixels are put right; and it draws halos along edges, so values stay within
    the range around."""
    made = list[Tensor]()
    for small, large in zip(low, high, strict=True):
        small, large = (each.permute(2, 0, 1)[None].float() for each in (small, large))
        missing = F.avg_pool2d(small, 4) - F.avg_pool2d(large, 4 * SCALE)
        large = large + F.interpolate(missing, large.shape[2:], mode="bilinear")
        least, most = (F.interpolate(each, large.shape[2:], mode="bilinear") for each in range_around(small))
        made.append(large.clamp(least, most)[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8))
    return torch.stack(made)


def _spoilt(low: Tensor, rng: random.Random) -> Tensor:
    """JPEG or WebP, or ringing, or blur, or noise: mildly."""
    kind = rng.randrange(4)
    if kind < 2:
        encoded = io.BytesIO()
        form = "JPEG" if kind == 0 else "WEBP"
        Image.fromarray(low.numpy()).save(encoded, form, quality=rng.randrange(55, 96))
        return torch.from_numpy(np.array(Image.open(encoded).convert("RGB")))
    values = low.permute(2, 0, 1)[None].float()
    if kind == 2:
        blurred = F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), 3, 1)
        values = values + rng.uniform(-0.6, 0.35) * (values - blurred)  # below 0 blurs, above sharpens
    else:
        values = values + rng.uniform(0.5, 4) * torch.randn(values.shape)
    return values[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
