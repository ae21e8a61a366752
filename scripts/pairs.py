"""Blind pairs: which of two enlargements do people prefer, who do not know which is which?

    python -m scripts.pairs make --kodak FOLDER --photos FOLDER [--taef2 FOLDER] --out OUT
    pixdec judge OUT/ours OUT/real-esrgan OUT/lanczos -o OUT --human NAME --crop-side 256
    python -m scripts.pairs merge --out OUT --judge NAME --verdicts OUT/answers.txt

`make` writes 40 pieces, 256 x 256 of the output at 100 %, of ours in four steps and of both rivals, for `pixdec judge`:
of photographs reduced to a quarter, with `--taef2` through that autoencoder too, which stands for a generator's.
For judges without a browser it also writes sheets of numbered pairs at 100 %, A left and B right, both rivals' mixed,
OUT/sheet-1.png and so on, and OUT/answers.txt, a line for each pair, `07`, behind which they write A or B; `merge`
reads it into the same records, and prints the table. Which is ours, and which rival's, is in no file: the same seed
draws the order again.
"""

import io
import random
import re
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont

from pixdec.evaluate.autoencoders import IMAGE
from pixdec.evaluate.judge.asking import ROUNDS
from pixdec.evaluate.judge.human import Session
from pixdec.evaluate.judge.pairs import Views, find_pairs
from pixdec.evaluate.judge.rates import summarize, table
from pixdec.evaluate.methods import Lineup, Sample, open_lineup
from pixdec.io.images import read_image, to_pil, to_tensor
from pixdec.train.data.degrade import degrade

RIVALS = ("real-esrgan", "lanczos")  # folders, and what enlarges the same images
SIDE, AROUND = 256, 64  # pixels of a piece, and of what the methods see beyond it
ROWS, COLUMNS, GAP, LABEL = 4, 2, 6, 16  # pairs on a sheet; pixels between images, and above a pair for its number
# By category: beginnings of file names, and the left upper corner of the piece.
PLACES: dict[str, list[tuple[str, int, int]]] = {
    "faces": [
        ("kodim04", 144, 160),
        ("oakland-zoo", 512, 224),
        ("perched-osprey", 584, 160),
        ("kodim12", 224, 64),
        ("canyon-wren", 584, 160),
    ],
    "foliage": [
        ("kodim07", 480, 200),
        ("tea-gardens", 1200, 640),
        ("perched-osprey", 1000, 96),
        ("blue-mystic", 1000, 384),
        ("netherlands", 1400, 800),
    ],
    "fabric": [
        ("kodim03", 96, 64),
        ("kodim04", 144, 480),
        ("kodim09", 240, 208),
        ("kodim03", 320, 144),
        ("kodim04", 128, 0),
    ],
    "text": [
        ("kodim08", 512, 208),
        ("kodim10", 96, 0),
        ("kodim05", 288, 80),
        ("kodim10", 256, 160),
        ("kodim09", 256, 304),
    ],
    "brick": [
        ("kodim01", 128, 128),
        ("roman-colosseum", 224, 224),
        ("kodim08", 256, 160),
        ("kodim01", 480, 96),
        ("netherlands", 880, 576),
    ],
    "water": [
        ("kodim06", 128, 256),
        ("kodim11", 64, 256),
        ("morning-at-sea", 448, 864),
        ("kodim12", 0, 160),
        ("sunset", 600, 600),
    ],
    "sky": [
        ("roman-colosseum", 1300, 384),
        ("kodim03", 448, 0),
        ("morning-at-sea", 704, 64),
        ("sunset", 504, 80),
        ("kodim09", 64, 0),
    ],
    "flat": [
        ("saturnian", 752, 160),
        ("africa", 560, 480),
        ("kodim02", 256, 128),
        ("rheslop", 1120, 256),
        ("piazza", 704, 512),
    ],
}


@torch.inference_mode()
def make(kodak: Path, photos: Path, out: Path, taef2: Path | None = None, model: str = "pixdec-nano:4") -> None:
    """Writes the pieces, and the pairs on sheets."""
    encoder = IMAGE if taef2 is None else f"taef2:{taef2}"
    rivals = [rival if taef2 is None else f"{encoder}+{rival}" for rival in RIVALS]
    lineup = open_lineup([model, *rivals], encoder=encoder, device="cpu")
    if lineup.missing:
        raise ValueError("; ".join(lineup.missing.values()))
    for category, found in PLACES.items():
        for index, (name, left, top) in enumerate(found):
            files = (path for folder in (kodak, photos) for path in sorted(folder.iterdir()))
            sample, inner = piece(next(path for path in files if path.stem.startswith(name)), left, top, lineup)
            for folder, method in zip(("ours", *RIVALS), lineup.methods, strict=True):
                file = out / folder / category / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                to_pil(method.enlarge(sample, 0))[0].crop(inner).save(file)
    questions = _questions(_sessions(out, "sheets", "human"))
    for number, first in enumerate(range(0, len(questions), ROWS * COLUMNS), 1):
        _sheet(questions, first).save(out / f"sheet-{number}.png")
    (out / "answers.txt").write_text("\n".join(f"{number:02}" for number in range(len(questions))) + "\n")


def _sheet(questions: list[tuple[Session, int]], first: int) -> Image.Image:
    wide, high = 2 * SIDE + 3 * GAP, LABEL + SIDE + GAP
    shown = questions[first : first + ROWS * COLUMNS]
    sheet = Image.new("RGB", (COLUMNS * wide, -(-len(shown) // COLUMNS) * high), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (session, index) in enumerate(shown):
        left, top = place % COLUMNS * wide, place // COLUMNS * high
        draw.text((left, top + 2), f"{first + place:02}", "black", font)
        for side, data in enumerate(session.images(index)):
            sheet.paste(Image.open(io.BytesIO(data)), (left + side * (SIDE + GAP), top + LABEL))
    return sheet


def _sessions(out: Path, judge: str, kind: str) -> list[Session]:
    """One for each rival; the same order for every judge who has not begun."""
    return [
        Session(find_pairs(out / "ours", [out / rival]), judge, out / ROUNDS, Views(0, 1, SIDE), kind=kind)
        for rival in RIVALS
    ]


def _questions(sessions: list[Session]) -> list[tuple[Session, int]]:
    """All sessions' questions, mixed."""
    questions = [(session, index) for session in sessions for index in range(len(session.questions))]
    random.Random(0).shuffle(questions)
    return questions


def piece(path: Path, left: int, top: int, lineup: Lineup) -> tuple[Sample, tuple[int, int, int, int]]:
    """A photograph's piece with what lies around it, as the methods get it; and the piece's box in it."""
    original = read_image(path)
    x, y = max(0, left - AROUND), max(0, top - AROUND)
    side = SIDE + 2 * AROUND
    x, y = min(x, original.width - side), min(y, original.height - side)
    low = degrade(to_tensor(original.crop((x, y, x + side, y + side))), lineup.scale)
    return Sample(lineup.encoder.encode(low), low), (left - x, top - y, left - x + SIDE, top - y + SIDE)


def merge(out: Path, judge: str, verdicts: Path, kind: Literal["human", "model"] = "human") -> None:
    """Keeps the answers of one judge, those that are there, as KIND:JUDGE, and prints the table of all."""
    questions = _questions(_sessions(out, judge, kind))
    for line in verdicts.read_text().splitlines():
        found = re.fullmatch(r"\s*(\d+)\W*([ABab])\s*", line)
        if found and int(found[1]) < len(questions):
            session, index = questions[int(found[1])]
            session.choose(index, found[2].upper())
        elif not re.fullmatch(r"\s*\d*\s*", line):
            raise ValueError(f"{verdicts}: {line!r}; expected the number of a pair such as 07, and A or B")
    print(*table(summarize(out)), sep="\n")


if __name__ == "__main__":
    import tyro

    tyro.extras.subcommand_cli_from_dict({"make": make, "merge": merge})
