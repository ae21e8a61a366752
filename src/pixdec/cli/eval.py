"""`pixdec eval`: decoders and baselines on the same latents of photographs, measured and side by side."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pixdec.cli.options import Dtype, Flag, Output, check_device, torch_dtype
from pixdec.cli.report import Report, progress, tell
from pixdec.io.files import prepare

if TYPE_CHECKING:
    from pixdec.evaluate.run import Broken, Row

MethodsAndData = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="METHOD ... DATA", help_behavior_hint="(one method or more, then the photographs)"),
]


@dataclass(frozen=True)
class Eval:
    """Measure decoders, beside each other and beside baselines, on photographs.

    Each photograph is shrunk by the decoders' scale and encoded once; every METHOD gets the same latent. METHOD is a
    decoder, by the name that `pixdec models` lists or by its file, with :STEPS if you like (pixdec-nano:1), or a
    baseline: tiny+lanczos, taef2:FOLDER+lanczos or vae:NAME+lanczos decode the latent at its own size and enlarge that;
    lanczos and bicubic enlarge the small photograph itself.

    OUT gets table.md, figures.json, sheets/ and rows.jsonl. The same command goes on where it was interrupted; with
    another METHOD, only that one is run.
    """

    inputs: MethodsAndData
    """Decoders and baselines, and last a folder of photographs (or one)."""
    output: Output
    """A folder: it is created."""
    encoder: str = "tiny"
    """What makes the latents: tiny (bundled, FLUX.2 only), taef2:FOLDER, or vae:NAME, a
    diffusers VAE of the space."""
    metrics: str = "all"
    """Separated by commas: all stands for our own; torchmetrics:CLASS and pyiqa:NAME if they are installed."""
    sigma: float = 0.0
    """Noise the latents to this level, 0 to 1, and tell the decoders."""
    seed: int = 0
    """The same seed gives the same figures; it is the same for every image."""
    space: str | None = None
    """The latent space, where a decoder's file does not tell."""
    sheets: int = 8
    """Sample sheets of the first so many photographs."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is."""
    dtype: Dtype | None = None
    """Precision of the decoders; without it what suits the device."""
    json: Flag = False
    """Print one JSON object for each image and method, and one at the end."""

    def run(self) -> int:
        if len(self.inputs) < 2:
            raise ValueError("name at least one METHOD and then DATA, such as: pixdec eval pixdec-nano photos/ -o out/")
        *names, data = self.inputs
        from pathlib import Path

        from pixdec.devices import best_device
        from pixdec.evaluate.methods import open_lineup, parse_method
        from pixdec.evaluate.photographs import find_photographs
        from pixdec.evaluate.run import (
            FIGURES,
            TABLE,
            Broken,
            EvalSettings,
            evaluate,
            sheets_of,
            tabulate,
            write_report,
        )
        from pixdec.evaluate.scores import open_metrics

        settings = EvalSettings(self.seed, self.sigma, self.sheets)
        for name in names:
            parse_method(name)
        photographs = find_photographs(data, self.output)
        check_device(self.device)
        out = Path(self.output)
        prepare([out / TABLE, out / FIGURES])
        metrics = open_metrics([name.strip() for name in self.metrics.split(",")], self.device or best_device())
        lineup = open_lineup(
            names, encoder=self.encoder, space=self.space, device=self.device, dtype=torch_dtype(self.dtype)
        )
        report = Report(json_lines=self.json)
        outcomes: list[Row | Broken] = []
        with progress(len(photographs) * len(names), "image") as bar:
            for outcome in evaluate(photographs, lineup, metrics, out, settings):
                outcomes.append(outcome)
                bar.update(len(names) if isinstance(outcome, Broken) and outcome.method is None else 1)
                _tell(outcome, report)
        facts = {"command": f"`{self._command()}`", "data": f"{len(photographs)} images of {Path(data).name}"}
        title = f"{lineup.scale} times larger: {Path(data).name}"
        table = tabulate(title, outcomes, lineup, metrics, settings, facts)
        write_report(table, out, sheets_of(photographs, settings))
        cropped = table.facts["cropped"]
        if not cropped.startswith("0 "):
            tell(f"note: cropped {cropped}")
        report.done(
            {"output": str(out / TABLE), "images": len(table.images), "means": table.plain_means()},
            "\n".join([*table.table(), f"{out / TABLE}  {len(table.images)} images"]),
        )
        return report.exit_code

    def _command(self) -> str:
        """The command as it would be typed, without what is a default."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("inputs", "output", "json") and getattr(self, field.name) != field.default
        }
        options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return shlex.join(["pixdec", "eval", *self.inputs, "-o", self.output, *options])


def _tell(outcome: Row | Broken, report: Report) -> None:
    """A line for each outcome, as the other verbs have them."""
    from pixdec.evaluate.run import Broken

    if isinstance(outcome, Broken):
        with report.attempt(outcome.image):
            raise ValueError(outcome.reason if outcome.method is None else f"{outcome.method}: {outcome.reason}")
        return
    figures = {name: value if abs(value) < float("inf") else str(value) for name, value in outcome.figures.items()}
    record = {"input": outcome.image, "method": outcome.method, "figures": figures, "cropped": outcome.cropped}
    shown = "  ".join(f"{name} {value:.3f}" for name, value in outcome.figures.items())
    report.done({**record, "earlier": outcome.earlier}, f"{outcome.image}  {outcome.method}  {shown}")
