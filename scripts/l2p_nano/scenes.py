"""Simple scenes with exact captions: drawn, and read again from pixels by rule.

A caption states all that a scene has: shapes, colors, places or counts, and the background.
"""

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 64
_FINE = 4  # drawn so much larger
COLORS = {
    "red": (220, 40, 40), "green": (40, 165, 60), "blue": (45, 80, 225), "yellow": (240, 215, 40),
    "purple": (145, 45, 190), "orange": (245, 135, 30),
}  # fmt: skip
GROUNDS = {"white": (245, 245, 245), "black": (15, 15, 15), "gray": (165, 165, 165)}
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
LETTERS = ("A", "C", "E", "H", "T", "X")
NUMBERS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "above")
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
PLACES = {
    " ".join(filter(None, (row, column))) or "center": (16 + 16 * x, 16 + 16 * y)
    for (y, row), (x, column) in product(enumerate(_ROWS), enumerate(_COLUMNS))
}
WORDS = tuple(
    dict.fromkeys(
        ["a", "an", "at", "the", "on", "letter", "in", "left", "of", "above", "top", "bottom", "right", "center"]
        + [*COLORS, *GROUNDS, *NUMBERS, *SHAPES, *(f"{shape}s" if shape != "cross" else "crosses" for shape in SHAPES)]
        + [letter.lower() for letter in LETTERS]
    )
)


@dataclass(frozen=True)
class Scene:
    """What a caption says: `things` are (color, shape or letter); `place` of a single one, `relation` of two."""

    caption: str
    ground: str
    things: tuple[tuple[str, str], ...]
    place: str = ""
    relation: str = ""

    @property
    def kind(self) -> str:
        return "place" if self.place else "pair" if self.relation else "letter" if len(self.things) == 1 else "count"


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _one(color: str) -> str:
    return f"an {color}" if color == "orange" else f"a {color}"


@cache
def all_scenes() -> Mapping[str, Sequence[Scene]]:
    """Every scene that can be said, by kind."""
    found: dict[str, list[Scene]] = {"place": [], "count": [], "pair": [], "letter": []}
    for ground, color in product(GROUNDS, COLORS):
        for shape in SHAPES:
            for place in PLACES:
                where = f"at the {place}"
                found["place"].append(
                    Scene(f"{_one(color)} {shape} {where} on {ground}", ground, ((color, shape),), place=place)
                )
            for word, number in NUMBERS.items():
                found["count"].append(
                    Scene(f"{word} {color} {_plural(shape)} on {ground}", ground, ((color, shape),) * number)
                )
            for other, second, relation in product(COLORS, SHAPES, RELATIONS):
                if other != color:
                    said = f"{_one(color)} {shape} {relation} {_one(other)} {second} on {ground}"
                    found["pair"].append(Scene(said, ground, ((color, shape), (other, second)), relation=relation))
        for letter in LETTERS:
            found["letter"].append(Scene(f"the letter {letter} in {color} on {ground}", ground, ((color, letter),)))
    return found


def held_out(scene: Scene) -> bool:
    """One in ten, of which no image is ever trained on."""
    return zlib.crc32(scene.caption.replace("an ", "a ").encode()) % 10 == 0


SHARES = {"place": 0.45, "count": 0.2, "pair": 0.2, "letter": 0.15}


def drawn_scenes(seed: int, *, held: bool = False) -> Iterator[Scene]:
    """Endless: kinds by their shares, scenes of a kind evenly."""
    rng = random.Random(seed)
    lists = {kind: [each for each in scenes if held_out(each) == held] for kind, scenes in all_scenes().items()}
    while True:
        yield rng.choice(lists[rng.choices(list(SHARES), list(SHARES.values()))[0]])


def render(scene: Scene, seed: int) -> Image.Image:
    """A picture of the scene. Sizes, and what of the places the caption leaves open, vary with the seed. Centers lie
    on corners of the 16 pixels of a token, so that few thousand steps teach the shapes."""
    rng = random.Random(seed)
    picture = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), GROUNDS[scene.ground])
    for (color, what), (x, y), radius in zip(scene.things, *_layout(scene, rng), strict=True):
        _draw(picture, what, COLORS[color], x, y, radius)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _layout(scene: Scene, rng: random.Random) -> tuple[Sequence[tuple[float, float]], list[float]]:
    """Centers and radii, in pixels."""
    count = len(scene.things)
    if scene.place:
        return [PLACES[scene.place]], [rng.choice((10.5, 13))]
    if scene.relation:
        across = rng.choice((16, 32, 48))
        ends = [(16, across), (48, across)]
        return [(y, x) for x, y in ends] if scene.relation == "above" else ends, [12.0] * count
    if scene.kind == "letter":
        return [(32, 32)], [rng.choice((20, 23))]
    return rng.sample([(x, y) for x in (16, 48) for y in (16, 48)], count), [rng.choice((10, 12))] * count


def _draw(picture: Image.Image, what: str, color: tuple[int, int, int], x: float, y: float, radius: float) -> None:
    pen, f = ImageDraw.Draw(picture), _FINE

    def box(r: float) -> tuple[float, float, float, float]:
        return ((x - r) * f, (y - r) * f, (x + r) * f, (y + r) * f)

    def around(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [((x + dx * radius) * f, (y + dy * radius) * f) for dx, dy in points]

    if what == "circle":
        pen.ellipse(box(radius), fill=color)
    elif what == "ring":
        pen.ellipse(box(radius), outline=color, width=round(radius * 0.38 * f))
    elif what == "square":
        pen.rectangle(box(radius * 0.88), fill=color)
    elif what == "triangle":
        pen.polygon(around((0, -0.95), (1, 0.85), (-1, 0.85)), fill=color)
    elif what == "cross":
        for w, h in ((1, 0.32), (0.32, 1)):
            pen.polygon(around((-w, -h), (w, -h), (w, h), (-w, h)), fill=color)
    elif what == "star":
        turns = [(r, np.pi * (i / 5 - 0.5)) for i, r in enumerate((1.08, 0.45) * 5)]
        pen.polygon(around(*((r * float(np.cos(a)), r * float(np.sin(a))) for r, a in turns)), fill=color)
    else:
        font, width = ImageFont.load_default(radius * 2.4 * f), round(radius * 0.1 * f)
        pen.text((x * f, y * f), what, color, font, "mm", stroke_width=width, stroke_fill=color)


# --- Reading

_GRID = 24


@dataclass(frozen=True)
class Thing:
    """What stands in an image: its color, shape or letter, and center."""

    color: str
    what: str
    x: float
    y: float


def _masked(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cut to its bounding box, on a grid."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = Image.fromarray((cut * 255).astype(np.uint8)).resize((_GRID, _GRID), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float64) / 255


@cache
def _templates() -> Mapping[str, NDArray[np.float64]]:
    found = dict[str, NDArray[np.float64]]()
    for what in (*SHAPES, *LETTERS):
        picture = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), GROUNDS["white"])
        _draw(picture, what, COLORS["red"], 32, 32, 22 if what in LETTERS else 12)
        small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.int64)
        found[what] = _masked(np.abs(small - GROUNDS["white"]).sum(2) > 150)
    return found


def read(image: Image.Image) -> tuple[str, list[Thing]]:
    """The background and the things on it. A pixel has the palette's nearest color; a thing is what hangs together in
    one color, has 40 pixels and is no line; its shape is the one that covers it best, both on their bounding boxes."""
    from skimage.measure import label

    pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    names = [*COLORS, *GROUNDS]
    palette = np.array([*COLORS.values(), *GROUNDS.values()])
    nearest = np.square(pixels[:, :, None] - palette).sum(3).argmin(2)
    counts = np.bincount(nearest.ravel(), minlength=len(names))[len(COLORS) :]
    ground = list(GROUNDS)[int(counts.argmax())]
    things = list[Thing]()
    for index, color in enumerate(COLORS):
        parts: NDArray[np.int64] = label(nearest == index, connectivity=2)  # pyright: ignore[reportAssignmentType]
        for number in range(1, int(parts.max()) + 1):
            mask = parts == number
            inside = np.lib.stride_tricks.sliding_window_view(mask, (3, 3)).all((2, 3))
            if mask.sum() < 40 or inside.sum() < 5:  # a soft edge has a third color, a pixel wide
                continue
            cut = _masked(mask)
            match = {
                what: float(np.minimum(cut, one).sum() / np.maximum(cut, one).sum())
                for what, one in _templates().items()
            }
            rows, columns = np.nonzero(mask)
            middle = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
            things.append(Thing(color, max(match, key=lambda each: match[each]), *map(float, middle)))
    return ground, things


def judge(scene: Scene, image: Image.Image) -> dict[str, bool]:
    """Which of what the caption says an image has; only what it says is asked. `all`: everything."""
    ground, things = read(image)
    wanted = scene.things
    verdict = {
        "background": ground == scene.ground,
        "count": len(things) == len(wanted),
        "color": {each.color for each in things} == {color for color, _ in wanted},
        "shape": sorted((each.color, each.what) for each in things) == sorted(wanted)
        if scene.relation
        else bool(things) and all(each.what == wanted[0][1] for each in things),
    }
    if scene.place:
        near = [min(PLACES, key=lambda p: abs(PLACES[p][0] - t.x) + abs(PLACES[p][1] - t.y)) for t in things]
        verdict["place"] = near == [scene.place]
    if scene.relation:
        at = {each.color: each for each in things}
        first, second = (at.get(color) for color, _ in wanted)
        verdict["relation"] = (
            first is not None
            and second is not None
            and (first.y < second.y - 10 if scene.relation == "above" else first.x < second.x - 10)
        )
    return {**verdict, "all": all(verdict.values())}
