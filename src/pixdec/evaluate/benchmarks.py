"""Benchmarks of text to image: their prompts read, and images of them laid out as the official scorers expect.

DPG-Bench   a folder of ITEM.txt, or dpg_bench.csv     →  ITEM.png, four images of R² on one sheet of 2R x 2R
GenEval     evaluation_metadata.jsonl                  →  00000/metadata.jsonl, 00000/samples/0000.png … 0003.png
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from pixdec.generation.settings import SEEDS_EACH
from pixdec.io.files import prepare, replacing, write_whole
from pixdec.l2p.images import ImageSource

Benchmark = Literal["dpg", "geneval"]
IMAGES = 4  # of each prompt
SCORING = {
    "dpg": "bash dpg_bench/dist_eval.sh {folder} {side}",
    "geneval": "python evaluation/evaluate_images.py {folder} --outfile results.jsonl --model-path DETECTOR && "
    "python evaluation/summary_scores.py results.jsonl",
}


@dataclass(frozen=True)
class Item:
    """A prompt of a benchmark: `name` of its file or folder, `line` of GenEval's file as it stands there."""

    name: str
    prompt: str
    line: str = ""


def read_items(benchmark: Benchmark, path: str | Path) -> list[Item]:
    """The prompts of a benchmark, in the order of the file or of the names.

    Raises:
        ValueError: one line: there are none, or a line is not what it should be.
    """
    path = Path(path)
    try:
        items = _geneval(path) if benchmark == "geneval" else _dpg(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not items:
        raise ValueError(f"{path}: there is no prompt of {benchmark} in it")
    return items


def _dpg(path: Path) -> list[Item]:
    if path.is_dir():
        texts = {each.stem: " ".join(each.read_text("utf-8-sig").split()) for each in sorted(path.glob("*.txt"))}
        return [Item(name, text) for name, text in texts.items() if text]
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"item_id", "text"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: its columns are {rows.fieldnames}; expected item_id and text among them")
        found: dict[str, str] = {row["item_id"]: row["text"].strip() for row in rows}  # a row for each question
    return [Item(name, prompt) for name, prompt in found.items()]


def _geneval(path: Path) -> list[Item]:
    found = list[Item]()
    for number, line in enumerate(filter(str.strip, path.read_text("utf-8").split("\n"))):
        try:
            prompt: Any = json.loads(line)["prompt"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{path}:{number + 1}: expected a JSON object with "prompt"') from error
        found.append(Item(f"{number:05}", str(prompt), line))
    return found


def make_images(
    benchmark: Benchmark, items: list[Item], source: ImageSource, folder: str | Path, seed: int = 0
) -> Iterator[Item]:
    """Makes what is missing, and yields every item when its images are there. Image k of item i has the seed
    `seed` + 1000·i + k.

    Raises:
        OSError: something cannot be written.
    """
    folder = Path(folder)
    for number, item in enumerate(items):
        seeds = [seed + SEEDS_EACH * number + k for k in range(IMAGES)]
        if benchmark == "dpg":
            targets = [folder / f"{item.name}.png"]
        else:
            targets = [folder / item.name / "samples" / f"{k:04}.png" for k in range(IMAGES)]
        if not all(target.exists() for target in targets):
            prepare(targets)
            images = source.images([item.prompt] * IMAGES, seeds)
            for target, image in zip(targets, [sheet_of(images)] if benchmark == "dpg" else images, strict=True):
                with replacing(target) as temporary:
                    image.save(temporary)
            if benchmark == "geneval":
                write_whole(folder / item.name / "metadata.jsonl", item.line)
        yield item


def sheet_of(images: list[Image.Image]) -> Image.Image:
    """Four images, row by row."""
    width, height = images[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for k, image in enumerate(images):
        whole.paste(image, (k % 2 * width, k // 2 * height))
    return whole
