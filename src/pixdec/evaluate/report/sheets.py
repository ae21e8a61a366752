"""The same piece of a photograph by each method: crops at 100 % for the report, and sheets of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixdec.evaluate.metrics.fidelity import Floats, luma
from pixdec.io.images import save_image

SIDE = 256  # pixels of a piece; less where the photograph is smaller
STRIDE = 16  # pixels between the pieces that are looked at
COLUMNS = 5
LABEL = 20  # pixels of the strip above each piece
GAP = 4


def save_sheet(pieces: Mapping[str, Image.Image], path: Path, *, settings: Mapping[str, object]) -> None:
    """Pieces of one size, in rows of five, each under its name.

    The folder is made. Raises OSError if the file cannot be written.
    """
    width, height = next(iter(pieces.values())).size
    columns = min(COLUMNS, len(pieces))
    rows = -(-len(pieces) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (LABEL + height + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (name, piece) in enumerate(pieces.items()):
        left, top = index % columns * (width + GAP), index // columns * (LABEL + height + GAP)
        draw.text((left + 2, top + LABEL // 2), fitted(name, width - 4, font), "black", font, anchor="lm")
        sheet.paste(piece, (left, top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(sheet, path, settings=settings)


def most_detailed(image: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the piece whose luma has the largest mean gradient; the first of equals."""
    y = luma(image)
    width, height = min(SIDE, image.width), min(SIDE, image.height)
    down, across = np.zeros_like(y), np.zeros_like(y)
    down[:-1], across[:, :-1] = np.diff(y, axis=0), np.diff(y, axis=1)
    sums: Floats = np.pad(np.hypot(down, across).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # of all above and left
    tops = np.arange(0, image.height - height + 1, STRIDE)
    lefts = np.arange(0, image.width - width + 1, STRIDE)
    corners = [sums[np.ix_(rows, columns)] for rows in (tops, tops + height) for columns in (lefts, lefts + width)]
    best = int(np.argmax(corners[3] - corners[2] - corners[1] + corners[0]))
    top, left = int(tops[best // len(lefts)]), int(lefts[best % len(lefts)])
    return left, top, left + width, top + height


def fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or as much of its end as is `width` pixels wide: the end of a path tells more than its beginning."""
    if font.getlength(text) <= width:
        return text
    ends = (f"...{text[start:]}" for start in range(1, len(text)))
    return next((end for end in ends if font.getlength(end) <= width), "")
