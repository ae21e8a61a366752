"""The photographs of an evaluation: which there are, and each as the sample that all methods get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixdec.evaluate.methods import Lineup, Sample
from pixdec.io.files import files_below
from pixdec.io.images import READABLE, image_size, read_image, to_tensor
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
    if not data.is_dir():
        raise ValueError(f"{data}: there is no such folder of photographs")
    below = out.resolve() if data.resolve() in out.resolve().parents else None  # what earlier runs wrote
    if data.resolve() == out.resolve():
        raise ValueError(f"{out}: the results would lie among the photographs; choose another output folder")
    photographs = [
        Photograph(data / path, path.as_posix())
        for path in files_below(data, READABLE)
        if below not in (data / path).resolve().parents
    ]
    if not photographs:
        raise ValueError(f"{data}: no photographs in this folder; looked for {', '.join(sorted(READABLE))}")
    return photographs


def sheet_names(photographs: Sequence[Photograph]) -> dict[str, str]:
    """Photograph's name -> its sheet's: folder/kodim01.png -> folder/kodim01.webp; where two would share one, the
    suffix stays in it (kodim01.png.webp)."""
    plain = {photograph.name: str(Path(photograph.name).with_suffix(".webp")) for photograph in photographs}
    shared = Counter(name.casefold() for name in plain.values())
    return {name: f"{name}.webp" if shared[sheet.casefold()] > 1 else sheet for name, sheet in plain.items()}


def is_cropped(path: Path, multiple: int) -> bool:
    """Whether a side of the image is no multiple; from its header. ValueError if it cannot be read, or is smaller."""
    width, height = image_size(path)
    if min(width, height) < multiple:
        raise ValueError(f"{path}: {width}x{height} pixels; expected sides of at least {multiple}, scale times factor")
    return bool(width % multiple or height % multiple)


def prepare(path: Path, lineup: Lineup, *, sigma: float, seed: int) -> Sample:
    """A photograph as all methods get it: cropped in the middle to multiples of scale · factor, shrunk by the scale
    (bicubic, antialiased, rounded to 8 bits), encoded once, and the latent noised to `sigma`.

    Raises:
        ValueError: the file is missing or damaged, or the encoder refuses the image.
    """
    original = crop_middle(read_image(path), lineup.multiple)
    low = degrade(to_tensor(original), lineup.scale)
    return Sample(original, low, lineup.encoder.encode(low).noised(sigma, seed))


def crop_middle(image: Image.Image, multiple: int) -> Image.Image:
    """Without what exceeds multiples of `multiple` pixels, half of it on each side."""
    width, height = image.width - image.width % multiple, image.height - image.height % multiple
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


__all__ = ["Photograph", "find_photographs", "is_cropped", "prepare", "sheet_names"]
