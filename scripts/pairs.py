"""Blind pairs: which of two enlargements do people prefer, who do not know which is which?

    python -m scripts.pairs make --kodak FOLDER --photos FOLDER --taef2 FOLDER --cache FOLDER --out FOLDER
    python -m scripts.pairs merge --folder FOLDER --verdicts VERDICTS [VERDICTS …]

`make` writes 40 pictures 01.png … (A left, B right, 256 x 256 of the output each at 100 %) and key.json, which says
what A and B are: keep it from the judges. Each is ours in four steps and either Real-ESRGAN x4plus or Lanczos. VERDICTS
has a line for each picture, `01 A`; a tie is `01 =`. Several files, or several verdicts on one picture, are counted
together.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from pixdec.io.files import replacing
from pixdec.io.images import read_image, to_pil, to_tensor
from pixdec.models.taef2 import TAEF2, load_taef2
from pixdec.train.data.degrade import degrade
from scripts.compare import ESRGAN, LANCZOS, SCALE, Methods, Photo

SIDE, AROUND = 256, 64  # pixels of a piece, and of what the methods see beyond it
# By category: beginnings of file names, and the left upper corner of the piece. The first three of each meet
# Real-ESRGAN, the others Lanczos.
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


def make(
    kodak: Path,
    photos: Path,
    taef2: Path,
    cache: Path,
    out: Path,
    model: str = "pixdec-nano",
    real_esrgan: Path | None = None,
    seed: int = 0,
    only_real_esrgan: bool = False,
) -> None:
    """Writes the pictures and key.json. `only_real_esrgan`: all forty against it, none against Lanczos."""
    methods, network = Methods(cache, model, steps=(4,), real_esrgan=real_esrgan), load_taef2(taef2)
    ours = methods.names[-1]
    places = [
        (category, *place, ESRGAN if index < 3 or only_real_esrgan else LANCZOS)
        for category, found in PLACES.items()
        for index, place in enumerate(found)
    ]
    draw = random.Random(seed)
    draw.shuffle(places)
    out.mkdir(parents=True, exist_ok=True)
    key = dict[str, dict[str, str]]()
    for number, (category, name, left, top, rival) in enumerate(places, 1):
        path = next(
            path for folder in (kodak, photos) for path in sorted(folder.iterdir()) if path.stem.startswith(name)
        )
        photo, inner = piece(path, left, top, network)
        order = [ours, rival]
        draw.shuffle(order)
        picture = Image.new("RGB", (2 * SIDE + 16, SIDE), "white")
        for side, method in enumerate(order):
            picture.paste(methods.make(method, photo)[0].crop(inner), (side * (SIDE + 16), 0))
        picture.save(out / f"{number:02}.png")
        about = {"photograph": path.stem, "left": str(left), "top": str(top), "category": category}
        key[f"{number:02}"] = {**about, "A": order[0], "B": order[1]}
    with replacing(out / "key.json") as temporary:
        temporary.write_text(json.dumps({"ours": ours, "weights": methods.slug(ours), "pairs": key}, indent=1))


@torch.inference_mode()
def piece(path: Path, left: int, top: int, taef2: TAEF2) -> tuple[Photo, tuple[int, int, int, int]]:
    """A photograph's piece with what lies around it, as the methods get it; and the piece's box in it."""
    original = read_image(path)
    x, y = max(0, left - AROUND), max(0, top - AROUND)
    side = SIDE + 2 * AROUND
    x, y = min(x, original.width - side), min(y, original.height - side)
    original = original.crop((x, y, x + side, y + side))
    low = to_pil(taef2.decode(taef2.encode(degrade(to_tensor(original), SCALE))))[0]
    return Photo(path.stem, original, low), (left - x, top - y, left - x + SIDE, top - y + SIDE)


def merge(folder: Path, verdicts: list[Path]) -> None:
    """Prints how often ours was preferred, with the 95 % interval (Clopper-Pearson); ties count half."""
    from scipy import stats

    document = json.loads((folder / "key.json").read_text())
    wins, seen = Counter[str](), Counter[str]()
    for path in verdicts:
        for line in path.read_text().splitlines():
            if not line.strip():
                continue
            found = re.fullmatch(r"\s*(\d+)(?:\.png)?\W*([ABab=])\s*", line)
            if not found or found[1].zfill(2) not in document["pairs"]:
                raise ValueError(f"{path}: {line!r}; expected a picture's number and A, B or =")
            pair = document["pairs"][found[1].zfill(2)]
            rival = pair["B"] if pair["A"] == document["ours"] else pair["A"]
            won = 0.5 if found[2] == "=" else float(pair[found[2].upper()] == document["ours"])
            for group in (f"over {rival}", f"over {rival}, {pair['category']}"):
                wins[group] += won  # pyright: ignore[reportArgumentType]
                seen[group] += 1
    for group in sorted(seen):
        count, total = wins[group], seen[group]
        span = stats.binomtest(int(count), total).proportion_ci()
        print(f"{count / total:4.0%}  [{span.low:.0%}, {span.high:.0%}]  {count:g} of {total}  {group}")


if __name__ == "__main__":
    import tyro

    tyro.extras.subcommand_cli_from_dict({"make": make, "merge": merge})
