"""PiD's ablations (Table 4) in kind: what steps and noise do to the bundled decoder, and what the prior and the gate do
to the small PiD network of `pixdec train`, which is trained here.

    python -m scripts.ablations --photos FOLDER --kodak FOLDER --out runs/ablations

`full` begins with a prior and has its sigma-aware gates; `no prior` begins with nothing; the gates of `no gate` stay
open whatever sigma is. All learn the same steps of the same images. The same command goes on where it was stopped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from pixdec.evaluate.methods import open_lineup
from pixdec.evaluate.metrics.table import open_metrics
from pixdec.evaluate.photographs import Preparation, find_photographs, photograph_sources
from pixdec.evaluate.report.summary import summarize
from pixdec.evaluate.report.tables import Column, Table, means_table
from pixdec.evaluate.run import evaluate
from pixdec.evaluate.statistics import Mean
from pixdec.io.files import write_whole
from pixdec.models.pid import PiD
from pixdec.train.build import RunOptions, build
from pixdec.train.recipes import DecoderRecipe, PriorRecipe, decoder_tiny, prior_tiny

OPEN = 20.0  # of a gate's bias: the sigmoid is 1
SIGMAS = (0.0, 0.2, 0.4)
LAST = 50  # steps that a loss is the mean of


def main(
    photos: Path,
    kodak: Path,
    out: Path = Path("runs/ablations"),
    model: str = "pixdec-nano",
    steps: int = 300,
    crop: int = 128,
    images: int = 4,
    metrics: Sequence[str] = ("psnr", "ssim_same", "st_lpips", "spectrum_error_high", "consistency"),
) -> None:
    """Writes OUT/ablations.md. `steps`: of each training, on images of `crop`² pixels, a multiple of 64; `images`: of
    Kodak, the middle 256 pixels; `metrics`: those of them that are installed."""
    trained = _trained(photos, out, steps, crop)
    lines = ["# What prior, gate, steps and noise do (PiD's Table 4 in kind)", ""]
    lines += [f"`python -m scripts.ablations --photos … --kodak …`: {steps} steps of four images of {crop}² pixels;"]
    lines += [f"the middle 256 pixels of {images} images of Kodak; mean ± 95 % interval.", ""]
    parts = {
        f"{model}, by steps": {f"{count}": f"{model}:{count}" for count in (1, 2, 3, 4)},
        "The small PiD network, a teacher in 8 steps": {name: f"{path}:8" for name, path in trained.items()},
    }
    for title, methods in parts.items():
        means, columns = _measured(kodak, out, methods, images, metrics)
        lines += [f"## {title}", "", *means_table(means, columns).markdown(), ""]
    lines += [f"## The loss of its last {LAST} steps", "", *_losses(trained).markdown(), ""]
    write_whole(out / "ablations.md", "\n".join(lines))
    print(out / "ablations.md")


def _trained(photos: Path, out: Path, steps: int, crop: int) -> dict[str, Path]:
    """What is compared, trained as far as it is not: name -> decoder."""
    prior, decoder = (_short(recipe, steps, crop) for recipe in (prior_tiny(), decoder_tiny()))
    _train(prior, photos, out / "prior", None, gates=True)
    start = str(out / "prior" / "prior.safetensors")
    for name, begin in (("full", start), ("no prior", None), ("no gate", start)):
        _train(decoder, photos, out / name.replace(" ", "-"), begin, gates=name != "no gate")
    return {name: out / name.replace(" ", "-") / "decoder.safetensors" for name in ("full", "no prior", "no gate")}


def _short(recipe: PriorRecipe | DecoderRecipe, steps: int, crop: int) -> PriorRecipe | DecoderRecipe:
    data = replace(recipe.data, base=crop)
    folder = replace(recipe.folder, sheet_every=0)
    loop = replace(recipe.loop, steps=steps, warmup=min(recipe.loop.warmup, steps // 10))
    return replace(recipe, loop=loop, data=data, folder=folder, times=())


def _train(recipe: PriorRecipe | DecoderRecipe, photos: Path, out: Path, start: str | None, *, gates: bool) -> None:
    run = build(recipe, photos, out, RunOptions(start=start, device="cpu"))
    if (out / run.file_name).exists():
        return
    network = next(iter(run.stage.networks.values()))
    assert isinstance(network, PiD)
    if not gates:
        _open(network)
    for step in run.go():
        if step.step % 50 == 0:
            print(out.name, step.step, f"{step.losses['total']:.4f}", flush=True)


def _open(network: PiD) -> None:
    """Gates that let everything in, and learn nothing."""
    assert network.gates is not None
    for gate in (*network.gates, network.pixel_gate):
        assert gate is not None
        gate.requires_grad_(requires_grad=False)
        for name, parameter in gate.named_parameters():
            parameter.fill_(0.0 if name.endswith("weight") else OPEN if name.endswith("bias") else -OPEN)


def _losses(trained: Mapping[str, Path]) -> Table:
    """Flow matching's loss as the runs logged it: of all images, of those with noise over 1/2, and of clean latents."""
    names, rows = ("flow", "high", "clean"), list[list[str]]()
    for run, path in trained.items():
        steps = [
            json.loads(line)["losses"] for line in (path.parent / "metrics.jsonl").read_text().splitlines()[-LAST:]
        ]
        rows.append([run, *(f"{fmean(each[name] for each in steps if name in each):.3f}" for name in names)])
    return Table(["method", *names], rows)


def _measured(
    kodak: Path, out: Path, methods: dict[str, str], images: int, metrics: Sequence[str]
) -> tuple[dict[str, dict[str, Mean]], dict[str, Column]]:
    lineup, opened = open_lineup(list(methods.values()), device="cpu"), open_metrics(metrics)
    named = tuple(replace(each, name=name) for each, name in zip(lineup.methods, methods, strict=True))
    lineup, means, columns = replace(lineup, methods=named), dict[str, dict[str, Mean]](), dict[str, Column]()
    for sigma in SIGMAS:
        photographs = find_photographs(kodak, out)[:images]
        sources = photograph_sources(photographs, lineup, Preparation(sigma=sigma, crop=256))
        summary = summarize("", list(evaluate(sources, lineup, opened, out)), lineup, opened)
        means |= {f"{name}, σ {sigma:g}": mean for name, mean in summary.means.items()}
        columns = {name: column for name, column in summary.columns.items() if name != "seconds"}
    return means, columns


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
