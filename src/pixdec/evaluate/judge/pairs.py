"""The pairs of images to be judged, and the views of a pair that a judge is shown."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFilter

from pixdec.io.arguments import check_range
from pixdec.io.files import digest_of
from pixdec.io.images import image_size, images_below, read_image

CONTROLS = SAME, BLURRED = "control: same image", "control: blurred"
BLUR = 1 / 500  # of the longer side: the radius of the control, 4 pixels at 2048


@dataclass(frozen=True)
class Pair:
    """Our image and another method's of the same scene.

    Attributes:
        name: what both files are called, below their folders and without suffix.
        methods: the names of the two methods: ours, the other.
        paths: their files; of a control, twice ours.
    """

    name: str
    methods: tuple[str, str]
    paths: tuple[Path, Path]

    @property
    def title(self) -> str:
        return f"{self.name}  {' | '.join(self.methods)}"

    @cached_property
    def digests(self) -> tuple[str, str]:
        """SHA-256 of what is shown, ours and the other's."""
        ours = digest_of(self.paths[0])
        blurred = self.methods[1] == BLURRED
        other = hashlib.sha256(f"blurred {BLUR}".encode() + ours).digest() if blurred else digest_of(self.paths[1])
        return ours.hex(), other.hex()

    def size(self) -> tuple[int, int]:
        """(width, height), from the headers. ValueError: one cannot be read, or their sizes differ."""
        return _one_size(*map(image_size, self.paths))

    def images(self) -> tuple[Image.Image, Image.Image]:
        """Ours and the other. ValueError: as `size`, or one is damaged."""
        ours = read_image(self.paths[0])
        if self.methods[1] == BLURRED:
            return ours, ours.filter(ImageFilter.GaussianBlur(max(1.0, BLUR * max(ours.size))))
        other = read_image(self.paths[1])
        _one_size(ours.size, other.size)
        return ours, other


@dataclass(frozen=True)
class Failed:
    """What was not judged: an image, or all that was left when a run ended early; and the reason."""

    title: str
    reason: str


@dataclass(frozen=True)
class View:
    """What is shown of both images: the whole, its longer side at most `side` pixels, or a square crop of `side` at
    100 %, the `number`-th of its pair."""

    kind: Literal["whole", "crop"]
    side: int
    number: int = 0

    @property
    def name(self) -> str:
        """Such as "crop 1024"; crops share it."""
        return f"{self.kind} {self.side}"

    def shown_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the view of an image of that size."""
        if self.kind == "crop":
            return min(size[0], self.side), min(size[1], self.side)
        shrink = min(1.0, self.side / max(size))
        return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))

    def of(self, images: Sequence[Image.Image], seed: str) -> list[Image.Image]:
        """The view of images of one size. `seed`, the same for a pair in whatever order, places the crop."""
        width, height = size = self.shown_size(images[0].size)
        if self.kind == "whole":
            return [image if size == image.size else image.resize(size, Image.Resampling.LANCZOS) for image in images]
        draw = random.Random(f"{seed} {self.side} {self.number}")
        left, top = (draw.randint(0, max(0, length - self.side)) for length in images[0].size)
        return [image.crop((left, top, left + width, top + height)) for image in images]


@dataclass(frozen=True)
class Views:
    """Which views of a pair are judged: the whole at `max_side` pixels (0: not), and so many crops of `crop_side`.

    Crops are left out where one would show the whole again; an image is always shown once.
    """

    max_side: int = 1024
    crops: int = 3
    crop_side: int = 1024

    def __post_init__(self) -> None:
        check_range(self, ("max_side", "crops"), 0)
        check_range(self, ["crop_side"], 16)
        if not self.max_side and not self.crops:
            raise ValueError("crops=0: without a whole image (max_side=0) nothing would be shown")

    def of(self, pair: Pair) -> list[View]:
        """The views of a pair. ValueError if its size cannot be read."""
        longer = max(pair.size())
        whole = [View("whole", self.max_side)] if self.max_side else []
        fits = longer <= self.crop_side  # a crop would be the whole image
        if fits and whole and longer <= self.max_side:
            return whole
        return whole + [View("crop", self.crop_side, number) for number in range(min(self.crops, 1 if fits else 99))]


def find_pairs(ours: str | Path, others: Sequence[str | Path], *, controls: bool = False) -> list[Pair | Failed]:
    """Our images with those of each other folder that have the same name, in order; suffixes may differ.

    `controls` adds each of ours beside itself and beside itself blurred. An image that one of two folders lacks is
    `Failed`. Methods are called as their folders are; by their whole paths where two have one name.

    Raises:
        ValueError: a folder does not exist or holds no image; nothing to compare with.
    """
    folders = [Path(ours), *map(Path, others)]
    if len(folders) == 1 and not controls:
        raise ValueError(f"{ours}: nothing to compare it with; name another folder, or ask for the controls")
    found, short = [_images(folder) for folder in folders], [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"{ours}: the same folder twice; the control of the same image is asked for by controls")
    pairs: list[Pair | Failed] = []
    for name, files in zip(names[1:], found[1:], strict=True):
        for image in sorted(found[0].keys() | files.keys()):
            both = {names[0]: found[0].get(image, []), name: files.get(image, [])}
            wrong = [(where, len(each)) for where, each in both.items() if len(each) != 1]
            for where, count in wrong[:1]:
                what = f"{count} files of this name in {where}" if count else f"there is none in {where}"
                expected = f"expected one in {names[0]} and one in {name}"
                pairs.append(Failed(f"{image}  {names[0]} | {name}", f"{what}; {expected}"))
            if not wrong:
                pairs.append(Pair(image, (names[0], name), (both[names[0]][0], both[name][0])))
    for control in CONTROLS if controls else ():
        whole = [(image, files[0]) for image, files in sorted(found[0].items()) if len(files) == 1]
        pairs += [Pair(image, (names[0], control), (file, file)) for image, file in whole]
    return pairs


def _one_size(ours: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    if ours != other:
        sizes = " and ".join(f"{width}x{height}" for width, height in (ours, other))
        raise ValueError(f"{sizes} pixels; a pair has one size: resize or crop one of them first")
    return ours


def _images(folder: Path) -> dict[str, list[Path]]:
    """Name → files of it."""
    found = dict[str, list[Path]]()
    for path in images_below(folder):
        found.setdefault(path.with_suffix("").as_posix(), []).append(folder / path)
    return found
