"""What an evaluation decodes: sources, of photographs here, each as the sample that all methods get."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixdec.evaluate.methods import Lineup, Sample
from pixdec.io.images import image_size, images_below, read_image, to_tensor
from pixdec.train.data.degrade import degrade


@dataclass(frozen=True)
class Photograph:
    """A file, and its name in tables: its path below the folder that was named."""

    path: Path
    name: str


def find_photographs(data: str | Path, out: str | Path) -> list[Photograph]:
    """All images in and below a folder, sorted by name, or the one file `data`; hidden ones, and what lies below the
    output folder `out`, are left out.

    Raises:
        ValueError: there is no such file or folder, it holds no image, or it is the output folder.
    """
    data, out = Path(data), Path(out)
    if data.is_file():
        return [Photograph(data, data.name)]
    if data.resolve() == out.resolve():
        raise ValueError(f"{out}: the results would lie among the photographs; choose another output folder")
    return [Photograph(data / path, path.as_posix()) for path in images_below(data, "photographs", out)]


@dataclass(frozen=True)
class Source:
    """One image of an evaluation, before anything is read.

    Attributes:
        name: in tables.
        has: what there is to measure against: "original", "low", "text".
        identify: all that determines the sample besides the lineup (JSON), and whether it is cropped. ValueError or
            OSError if it cannot be used.
        load: the sample.
        stop: the generator's step that its latent is of; None of a photograph.
        clean: without noise, so that methods that take none can decode it.
    """

    name: str
    has: frozenset[str]
    identify: Callable[[], tuple[dict[str, object], bool]]
    load: Callable[[], Sample]
    stop: int | None = None
    clean: bool = True


@dataclass(frozen=True)
class Preparation:
    """What is done to photographs before they are shrunk and encoded. sigma, seed: the noise in the latents. crop: at
    most so many pixels a side, the middle; 0 takes all."""

    sigma: float = 0.0
    seed: int = 0
    crop: int = 0


def photograph_sources(
    photographs: Sequence[Photograph], lineup: Lineup, how: Preparation | None = None
) -> list[Source]:
    """The photographs as sources. A text file beside one, NAME.txt, says what is written on it."""
    how = how or Preparation()
    return [_source(photograph, lineup, how) for photograph in photographs]


def _source(photograph: Photograph, lineup: Lineup, how: Preparation) -> Source:
    path, beside = photograph.path, photograph.path.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8") if beside.is_file() else None

    def identify() -> tuple[dict[str, object], bool]:
        width, height = image_size(path)
        if min(width, height) < lineup.multiple:
            least = f"expected sides of at least {lineup.multiple}, scale times factor"
            raise ValueError(f"{path}: {width}x{height} pixels; {least}")
        larger = 0 < how.crop < max(width, height)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        settings = {"photograph": digest, "sigma": how.sigma, "seed": how.seed}
        cropped = bool(larger or width % lineup.multiple or height % lineup.multiple)
        return {**settings, **({"crop": how.crop} if larger else {})}, cropped

    def load() -> Sample:
        original = crop_middle(read_image(path), lineup.multiple, how.crop)
        low = degrade(to_tensor(original), lineup.scale)
        latent = lineup.encoder.encode(low).noised(how.sigma, how.seed)
        return Sample(latent, low, original, text)

    return Source(photograph.name, frozenset({"original", "low"} | ({"text"} if text else set())), identify, load)


def crop_middle(image: Image.Image, multiple: int, most: int = 0) -> Image.Image:
    """Without what exceeds multiples of `multiple` pixels, and `most` pixels if that is not 0, half of it on each
    side."""
    width, height = (min(side, most or side) // multiple * multiple for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))
