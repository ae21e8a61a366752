"""The quality table of the bundled decoder, beside TAEF2 + Lanczos and TAEF2 + Real-ESRGAN x4plus: `pixdec eval` on
Kodak, on photographs and on text, times and memory by `benchmarks`, and one page of all.

    python -m scripts.compare --kodak FOLDER --photos FOLDER --taef2 FOLDER

Latents are TAEF2's, which stands for a generator's VAE. It goes on where it was stopped; with other weights only ours
is made again. NIQE, ST-LPIPS, SSIMULACRA2 and Real-ESRGAN are those of the packages that the page names.
"""

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.speed import Settings, measure_all
from pixdec.devices import environment
from pixdec.evaluate.methods import Lineup, open_lineup
from pixdec.evaluate.metrics.table import Metrics, open_metrics
from pixdec.evaluate.photographs import Photograph, Preparation, find_photographs, photograph_sources
from pixdec.evaluate.report.html import BENCH, write_report
from pixdec.evaluate.report.summary import Summary, summarize
from pixdec.evaluate.report.tables import Table
from pixdec.evaluate.results import Broken, Row
from pixdec.evaluate.run import evaluate
from pixdec.evaluate.small_text import render_pages
from pixdec.io.files import write_whole

SHOWN = ("kodim01", "kodim05", "kodim07", "kodim08")
LARGER = (24, 32, 48)  # pixels high


@dataclass(frozen=True)
class Sets:
    """What is measured on. `most`: photographs; `pages`, `larger`: pages of small and of larger text; `crop`: of larger
    photographs the middle, so many pixels a side."""

    kodak: Path
    photos: Path
    most: int = 10
    pages: int = 24
    larger: int = 12
    crop: int = 2048

    def find(self, runs: Path) -> dict[str, list[Photograph]]:
        """By title, of which the first word is the folder's name below `runs`."""
        return {
            "Kodak 1 to 12": find_photographs(self.kodak, runs)[:12],
            f"photographs, at most {self.crop} pixels a side": find_photographs(self.photos, runs)[: self.most],
            "small text, 8 to 24 pixels high": render_pages(runs / "small" / "pages", self.pages),
            "larger text, 24 to 48 pixels high": render_pages(runs / "larger" / "pages", self.larger, LARGER),
        }


def main(
    sets: Annotated[Sets, tyro.conf.arg(name="")],
    taef2: Path,
    runs: Path = Path("runs/compare"),
    out: Path = Path("docs/benchmarks/compare"),
    model: str = "pixdec-nano",
    sides: Sequence[int] = (1024, 2048),
    device: str = "cpu",
) -> None:
    """Writes OUT.md, OUT.json and a few OUT-*.webp, and a report for each set in RUNS. `sides`: of the outputs whose
    time and memory are measured; nothing is."""
    named = {f"{model}:{steps}": f"{Path(model).stem}, {steps} step{'s' if steps > 1 else ''}" for steps in (4, 1)}
    named |= {f"taef2:{taef2}+{how}": f"TAEF2 + {how}" for how in ("lanczos", "real-esrgan")}
    lineup = open_lineup([*named, "original"], encoder=f"taef2:{taef2}", device=device)
    methods = tuple(replace(each, name=named.get(each.name, each.name)) for each in lineup.methods)
    missing = {named[name]: reason for name, reason in lineup.missing.items()}
    lineup = replace(lineup, methods=methods, missing=missing)
    metrics, weights = open_metrics(), str(lineup.methods[0].settings["decoder"])[:12]
    for folder in (runs, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Four times larger, beside what people use", ""]
    lines += ["- command: `python -m scripts.compare --kodak … --photos … --taef2 …`", f"- weights: {model}, {weights}"]
    lines += ["- data: bicubic ÷4, then encoded by TAEF2; mean ± 95 % interval of the mean"]
    lines += [f"- machine: {', '.join(f'{name} {value}' for name, value in environment().items())}"]
    documents, started = dict[str, object](), time.perf_counter()
    times = _times(runs, model, weights, sides, device, list(named.values())) if sides else []
    for title, photographs in sets.find(runs).items():
        if not photographs:
            continue
        folder = runs / title.split()[0].lower().strip(",")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / BENCH).write_text(json.dumps({"rows": times}))
        summary = _run(title, photographs, folder, lineup, metrics, sets.crop)
        lines += ["", f"## {title}", "", *summary.table().markdown(), ""]
        lines += [f"Image by image, {summary.first} less the others:", "", *summary.difference_table().markdown()]
        if summary.folder_table().rows:
            shown = {name: summary.columns[name] for name in ("psnr", "legibility") if name in summary.columns}
            lines += ["", *replace(summary, columns=shown).folder_table().markdown()]
        documents[title] = json.loads(summary.to_json())
        for image in SHOWN:
            if (sheet := folder / "sheets" / f"{image}.webp").is_file():
                shutil.copy(sheet, out.with_name(f"{out.name}-{image}.webp"))
                lines += [] if f"{image}.png" != summary.images[0] else ["", "The original, then in the table's order."]
                lines += ["", f"![{image}]({out.name}-{image}.webp)"]
    if times:
        cells = [[row["method"], f"{row['side']}²", *_cells(row)] for row in times]
        lines += ["", "## Time and memory", "", "Of decoding one image, by `python -m benchmarks`: median of three."]
        lines += ["", *Table(["method", "output", "seconds", "peak GB"], cells).markdown()]
        documents["time and memory"] = times
    for suffix, text in ((".md", "\n".join(lines)), (".json", json.dumps(documents, indent=1, ensure_ascii=False))):
        write_whole(out.with_name(out.name + suffix), text.replace(str(taef2), "TAEF2") + "\n")
    print(f"{out}.md  {time.perf_counter() - started:.0f} s")


def _run(
    title: str, photographs: list[Photograph], folder: Path, lineup: Lineup, metrics: Metrics, crop: int
) -> Summary:
    """Without the time of each image, which earlier runs may have measured on a busy machine."""
    sources = photograph_sources(photographs, lineup, Preparation(crop=crop))
    outcomes = list(_told(evaluate(sources, lineup, metrics, folder)))
    summary = summarize(title, outcomes, lineup, metrics, {"command": "`make compare`"})
    columns = {name: column for name, column in summary.columns.items() if name != "seconds"}
    summary = replace(summary, columns=columns)
    write_report(summary, folder)
    return summary


def _times(
    runs: Path, model: str, weights: str, sides: Sequence[int], device: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of the benchmarks, ours those of these weights, under the `names` of all methods: ours come first."""
    found = list[dict[str, Any]]()
    parts = (
        (f"bench-{weights}-4", 4, {"eager": names[0]}),
        (f"bench-{weights}-1", 1, {"eager": names[1]}),
        ("bench-taef2", 1, {"taef2+lanczos": names[2], "taef2+real-esrgan": names[3]}),
    )
    for file, steps, methods in parts:
        settings = Settings(model, sides, tuple(methods), device, steps=steps, limit=1200)
        for row in measure_all(settings, runs / file, command="make compare"):
            print(row.line(), flush=True)
        rows = json.loads((runs / f"{file}.json").read_text())["rows"]
        found += [{**row, "method": methods[row["method"]]} for row in rows if row["side"] in sides]
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [f"{row['status']}: {row['reason']}"]
    return [f"{statistics.median(row['seconds']):.2f}", f"{row['peak'] / 1e9:.2f}"]


def _told(outcomes: Iterator[Row | Broken]) -> Iterator[Row | Broken]:
    for outcome in outcomes:
        reason = outcome.reason if isinstance(outcome, Broken) else "; ".join(outcome.failed.values())
        print(outcome.image, outcome.method, reason, flush=True)
        yield outcome


if __name__ == "__main__":
    tyro.cli(main)
