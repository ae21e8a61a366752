"""Pages of rendered text and line art, so that edges and letters survive: photographs alone have few of either."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GLYPHS = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-!?()&%/+='"


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, laid out by its own simple engine: the same pages on every machine."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built with FreeType"
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _color(rng: np.random.Generator, *, light: bool) -> tuple[int, int, int]:
    value = rng.integers(150, 256, 3) if light else rng.integers(0, 110, 3)
    if rng.random() < 0.5:  # half of all pages are grey
        value[:] = value[0]
    return int(value[0]), int(value[1]), int(value[2])


def _words(rng: np.random.Generator, count: int) -> str:
    letters = np.array(list(GLYPHS))
    return " ".join("".join(rng.choice(letters, rng.integers(1, 10))) for _ in range(count))


def draw_page(rng: np.random.Generator, size: int) -> Image.Image:
    """A square of lines of text, curves and boxes in two or three colours, drawn at twice the size and halved."""
    dark_paper = rng.random() < 0.25
    paper, ink = _color(rng, light=not dark_paper), _color(rng, light=dark_paper)
    full = 2 * size
    page = Image.new("RGB", (full, full), paper)
    draw = ImageDraw.Draw(page)
    for _ in range(rng.integers(0, 8)):
        points = [tuple(float(v) for v in rng.uniform(-0.1 * full, 1.1 * full, 2)) for _ in range(rng.integers(2, 5))]
        width, color = int(rng.integers(1, 12)), _color(rng, light=bool(rng.random() < 0.5))
        shape = rng.integers(0, 3)
        if shape == 0:
            draw.line(points, fill=color, width=width, joint="curve")
        else:
            (x0, y0), (x1, y1) = points[0], points[1]
            box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            fill = color if rng.random() < 0.3 else None
            (draw.ellipse if shape == 1 else draw.rectangle)(box, outline=color, fill=fill, width=width)
    if rng.random() < 0.8:
        top = float(rng.uniform(-20, 20))
        height = int(np.exp(rng.uniform(np.log(16), np.log(120))))
        font = _font(height)
        while top < full:
            draw.text((float(rng.uniform(-40, 20)), top), _words(rng, 12), font=font, fill=ink)
            top += height * float(rng.uniform(1.1, 1.6))
    return page.resize((size, size), Image.Resampling.BOX)
