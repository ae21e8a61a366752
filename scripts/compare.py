"""The quality table of the bundled decoder, beside TAEF2 + Lanczos and TAEF2 + Real-ESRGAN x4plus: `pixdec eval` on
Kodak, on photographs and on small text, and one page of all.

    python -m scripts.compare --kodak FOLDER --photos FOLDER --taef2 FOLDER

Latents are TAEF2's, which stands for a generator's VAE. It goes on where it was stopped; with other weights only ours
is made again. NIQE, ST-LPIPS, SSIMULACRA2 and Real-ESRGAN are those of the packages that the page names.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from pixdec.devices import environment
from pixdec.evaluate.methods import Lineup, open_lineup
from pixdec.evaluate.metrics.table import Metrics, open_metrics
from pixdec.evaluate.photographs import Photograph, Preparation, find_photographs, photograph_sources
from pixdec.evaluate.report.page import write_report
from pixdec.evaluate.report.summary import Summary, summarize
from pixdec.evaluate.results import Broken, Row
from pixdec.evaluate.run import evaluate
from pixdec.evaluate.small_text import render_pages
from pixdec.io.files import replacing

SHOWN = ("kodim01", "kodim05", "kodim07", "kodim08")


def methods_of(model: str, taef2: Path) -> list[str]:
    """Ours at 4 steps and 1, and what it stands beside."""
    return [f"{model}:4", f"{model}:1", f"taef2:{taef2}+lanczos", f"taef2:{taef2}+real-esrgan", "original"]


def main(
    kodak: Path,
    photos: Path,
    taef2: Path,
    runs: Path = Path("runs/compare"),
    out: Path = Path("docs/benchmarks/compare"),
    model: str = "pixdec-nano",
    most: int = 10,
    pages: int = 24,
    crop: int = 2048,
    device: str = "cpu",
) -> None:
    """Writes OUT.md, OUT.json and a few OUT-*.webp, and a report for each set in RUNS. `most`: photographs; `pages` of
    text; `crop`: of larger photographs the middle, so many pixels a side."""
    lineup, metrics = open_lineup(methods_of(model, taef2), encoder=f"taef2:{taef2}", device=device), open_metrics()
    out.parent.mkdir(parents=True, exist_ok=True)
    sets = {
        "Kodak 1 to 12": find_photographs(kodak, runs)[:12],
        f"photographs, at most {crop} pixels a side": find_photographs(photos, runs)[:most],
        "small text, 8 to 24 pixels high": render_pages(runs / "pages", pages),
    }
    lines, documents = ["# Four times larger, beside what people use", ""], dict[str, object]()
    command = "`python -m scripts.compare --kodak … --photos … --taef2 …`"
    lines += [f"- command: {command}", f"- weights: {model}, {str(lineup.methods[0].settings['decoder'])[:12]}"]
    lines += ["- data: bicubic ÷4, then encoded by TAEF2; mean ± 95 % interval of the mean"]
    lines += [f"- machine: {', '.join(f'{name} {value}' for name, value in environment().items())}"]
    for name, photographs in sets.items():
        if not photographs:
            continue
        folder = runs / name.split()[0].lower().strip(",")
        summary = _run(name, photographs, folder, lineup, metrics, crop)
        first = next(iter(summary.by_method))
        lines += [
            "",
            f"## {name}",
            "",
            *summary.table().markdown(),
            "",
            f"Image by image, {first} less the others:",
            "",
        ]
        lines += summary.difference_table().markdown()
        documents[name] = json.loads(summary.to_json())
        for image in SHOWN:
            if (sheet := folder / "sheets" / f"{image}.webp").is_file():
                shutil.copy(sheet, out.with_name(f"{out.name}-{image}.webp"))
                lines += [] if f"{image}.png" != summary.images[0] else ["", "The original, then in the table's order."]
                lines += ["", f"![{image}]({out.name}-{image}.webp)"]
    text = "\n".join(lines).replace(f"taef2:{taef2}+", "TAEF2 + ") + "\n"
    for suffix, content in ((".md", text), (".json", json.dumps(documents, indent=1, ensure_ascii=False) + "\n")):
        with replacing(out.with_name(out.name + suffix)) as temporary:
            temporary.write_text(content.replace(str(taef2), "TAEF2"), encoding="utf-8")


def _run(
    name: str, photographs: list[Photograph], folder: Path, lineup: Lineup, metrics: Metrics, crop: int
) -> Summary:
    sources = photograph_sources(photographs, lineup, Preparation(crop=crop))
    outcomes = list(_told(evaluate(sources, lineup, metrics, folder)))
    summary = summarize(name, outcomes, lineup, metrics, {"command": "`make compare`"})
    write_report(summary, folder)
    return summary


def _told(outcomes: Iterator[Row | Broken]) -> Iterator[Row | Broken]:
    for outcome in outcomes:
        reason = outcome.reason if isinstance(outcome, Broken) else "; ".join(outcome.failed.values())
        print(outcome.image, outcome.method, reason, flush=True)
        yield outcome


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
