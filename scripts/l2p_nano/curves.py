"""Curves and samples of what `scripts.l2p_nano` left: `python -m scripts.l2p_nano.curves RUN -o docs/pictures`.

l2p-curves.webp: losses and the share of held-out captions whose image has all that they say, against steps; and the
squared error of the velocity against the noise level, for every run: of images that it was trained on with the noise
that they had, of the same with other noise, and of the source's images of held-out captions. l2p-samples.webp: images
of the same held-out captions by every run. The numbers stand in RUN/curves.json.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pixdec.io.files import write_whole
from pixdec.io.tensors import to_tensor
from pixdec.l2p.images import ImageSource
from pixdec.l2p.model import PixelModel
from pixdec.sampling.flow import interpolate
from pixdec.train.checkpoints import checkpoints, read_average
from pixdec.train.stages.l2p import noise_of
from scripts.l2p_nano.scenes import SIDE, judge
from scripts.l2p_nano.source import NanoSource, sheet, sheet_scenes
from scripts.l2p_nano.transfer import FILE, VARIATIONS, opened_pixels, pixels_of

mpl.use("agg")
ROWS, COLUMNS = 6, 8  # of a sheet
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)
RUNS = {"pixels": "fixed noise", "more": "then fresh noise"}


def losses(run: Path, window: int = 50) -> tuple[list[int], list[float]]:
    """Steps and running means."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [float(line["losses"]["total"]) for line in lines]
    means = [float(np.mean(found[i : i + window])) for i in range(0, len(found), window)]
    return [int(line["step"]) for line in lines[::window]], means


def accuracy(image: Image.Image) -> float:
    """Of a sheet: the share of images that have all that their captions say."""
    found = list[bool]()
    for i, scene in enumerate(sheet_scenes(ROWS * COLUMNS)):
        left, top = i % COLUMNS * (SIDE + 2), i // COLUMNS * (SIDE + 2)
        found.append(judge(scene, image.crop((left, top, left + SIDE, top + SIDE)))["all"])
    return float(np.mean(found))


def accuracies(run: Path) -> tuple[list[int], list[float]]:
    """Of the sheets of a run; a pixel model's are made of its checkpoints first."""
    for saved in checkpoints(run) if (run / FILE).exists() else ():
        path = run / f"sheet-{int(saved.name[5:]):05}.png"
        if not path.exists():
            pipe = opened_pixels(run)
            pipe.model.load_state_dict(read_average(saved), strict=False)
            sheet(pixels_of(pipe), ROWS, COLUMNS).save(path)
    paths = sorted(run.glob("sheet-*.png"))
    return [int(path.stem[6:]) for path in paths], [accuracy(Image.open(path)) for path in paths]


def trained_on(shard: Path, count: int) -> tuple[Tensor, list[str], list[int]]:
    """Images (N,3,H,W), captions and seeds of a shard's beginning."""
    images, notes = list[Tensor](), list[dict[str, Any]]()
    with tarfile.open(shard) as opened:
        for entry in opened:
            file = opened.extractfile(entry)
            assert file is not None
            if entry.name.endswith(".png"):
                images.append(to_tensor(Image.open(io.BytesIO(file.read()))))
            elif entry.name.endswith(".json"):
                notes.append(json.loads(file.read()))
            if len(images) == len(notes) == count:
                break
    return torch.cat(images), [note["captions"]["text"] for note in notes], [note["seed"] for note in notes]


@torch.inference_mode()
def errors(model: PixelModel, text: Sequence[Tensor], images: Tensor, seeds: Sequence[int]) -> list[float]:
    """The mean squared error of the velocity at each of `LEVELS`, with the noise of the seeds."""
    noise = torch.cat([noise_of(seed, images.shape[1:]) for seed in seeds])
    found = list[float]()
    for level in LEVELS:
        t = torch.full((len(images),), level)
        found.append((model(interpolate(images, noise, t), t, text) - (noise - images)).square().mean().item())
    return found


def all_errors(folder: Path, count: int = 64) -> Mapping[str, Mapping[str, list[float]]]:
    """By run and images."""
    scenes, others = sheet_scenes(count), list(range(10**6, 10**6 + count))
    source = NanoSource.from_pretrained(folder / "source")
    captions = [scene.caption for scene in scenes]
    held = torch.cat([to_tensor(image) for image in source.images(captions, others)])
    images, known, seeds = trained_on(next((folder / "shards").glob("shard-*.tar")), count)
    found = dict[str, Mapping[str, list[float]]]()
    for run in runs_of(folder):
        pipe = opened_pixels(run)
        mine, theirs = source.embed(known), source.embed(captions)
        found[run.name] = {
            "trained on, own noise": errors(pipe.model, mine, images, seeds),
            "trained on, other noise": errors(pipe.model, mine, images, others[: len(images)]),
            "held out": errors(pipe.model, theirs, held, others),
        }
    return found


def samples(folder: Path, path: Path, count: int = 10) -> None:
    """A row for every run, below that of the source."""
    rows: dict[str, ImageSource] = {"source": NanoSource.from_pretrained(folder / "source")}
    for run in runs_of(folder):
        name = run.name.removesuffix("-short")
        shift = VARIATIONS[name.replace("-", " ")].changes.get("shift", 3.0) if name != run.name else 3.0
        rows[RUNS.get(run.name, name.replace("-", " "))] = pixels_of(opened_pixels(run), shift)
    whole = Image.new("RGB", (130 + count * (SIDE + 2), len(rows) * (SIDE + 2)), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for i, (name, source) in enumerate(rows.items()):
        pen.text((4, i * (SIDE + 2) + SIDE // 2), name, "black", font, "lm")
        whole.paste(sheet(source, 1, count), (130, i * (SIDE + 2)))
    whole.save(path, quality=70, method=6)


def runs_of(folder: Path) -> Iterator[Path]:
    """Of pixel models that are finished, the long ones first."""
    named = [folder / name for name in RUNS]
    rest = sorted(path.parent for path in folder.glob(f"*-short/{FILE}"))
    return (run for run in (*named, *rest) if (run / FILE).exists())


def draw(folder: Path, found: Mapping[str, Any], path: Path) -> None:
    """Four panels."""
    import matplotlib.pyplot as plt

    figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    ends, colors = {"source": 0}, {"source": "gray", **{name: f"C{i}" for i, name in enumerate(RUNS)}}
    a.plot(*losses(folder / "source"), label="source (latents)", color="gray")
    for (name, label), first in zip(RUNS.items(), (0, found["steps"]), strict=True):
        if (folder / name / FILE).exists():
            steps, means = losses(folder / name)
            a.plot([first + step for step in steps], means, label=f"pixel model, {label}", color=colors[name])
            ends[name] = first
    a.set(title="Loss while training", xlabel="step", yscale="log")
    for name, first in ends.items():
        steps, shares = found["accuracy"][name]
        b.plot(
            [first + step for step in steps],
            [100 * share for share in shares],
            "o-",
            label=RUNS.get(name, name),
            color=colors[name],
        )
    b.set(title=f"Content right, of {ROWS * COLUMNS} held-out captions", xlabel="step", ylabel="%")
    for run in runs_of(folder):
        if run.name.endswith("-short"):
            c.plot(*losses(run, 20), label=run.name.removesuffix("-short").replace("-", " "))
    c.set(title="Loss of variations", xlabel="step", yscale="log")
    for name, label in RUNS.items():
        for what, line in zip(("own", "other"), ("--", "-"), strict=True):
            if name in found["errors"]:
                mine = found["errors"][name][f"trained on, {what} noise"]
                d.plot(LEVELS, mine, f"o{line}", label=f"{label}: {what} noise", color=colors[name])
    d.set(title="Error on images that were trained on", xlabel="noise level", yscale="log")
    for panel in (a, b, c, d):
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, dpi=100)
    Image.open(data).convert("RGB").save(path, quality=80, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    folder: Path = given.folder
    torch.set_num_threads(1)
    long = [folder / "source", *(folder / name for name in RUNS if (folder / name / FILE).exists())]
    found: dict[str, Any] = {
        "steps": losses(folder / "pixels", 1)[0][-1],
        "accuracy": {run.name: accuracies(run) for run in long},
        "levels": LEVELS,
        "errors": all_errors(folder),
    }
    write_whole(folder / "curves.json", json.dumps(found, indent=1) + "\n")
    given.output.mkdir(parents=True, exist_ok=True)
    draw(folder, found, given.output / "l2p-curves.webp")
    samples(folder, given.output / "l2p-samples.webp")
    print("| run | " + " | ".join(f"t = {level}" for level in LEVELS) + " |\n" + "|---" * (len(LEVELS) + 1) + "|")
    for name, by in found["errors"].items():
        for what, values in by.items():
            print(f"| {name}: {what} | " + " | ".join(f"{value:.4f}" for value in values) + " |")


if __name__ == "__main__":
    main()
