"""`pixdec eval`: decoders and baselines on the same latents of photographs, measured and side by side."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pixdec.cli.options import Dtype, Flag, Json, check_device, torch_dtype
from pixdec.cli.report import Report, progress, tell
from pixdec.io.files import prepare
from pixdec.io.quiet import library

if TYPE_CHECKING:
    from pixdec.evaluate.methods import Lineup
    from pixdec.evaluate.photographs import Source
    from pixdec.evaluate.results import Broken, Row
    from pixdec.latents import LatentSpace

PAGES = 40  # of small text
MethodsAndData = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="METHOD ... DATA", help_behavior_hint="(one method or more, then the photographs)"),
]


@dataclass(frozen=True)
class Data:
    """What is evaluated on. `sources`: of a lineup. `space`: the latents', where it is known before the lineup is.
    `encoder`: what makes or decodes them if the user names nothing."""

    title: str
    sources: Callable[[Lineup], Iterable[Source | Broken]]
    space: LatentSpace | None = None
    encoder: str = "tiny"


@dataclass(frozen=True)
class Eval:
    """Measure decoders, beside each other and beside baselines, on photographs, on small text, or on a generator's
    latents.

    Each photograph is shrunk by the decoders' scale and encoded once; every METHOD gets the same latent. METHOD is a
    decoder, by the name that `pixdec models` lists or by its file, with :STEPS if you like (pixdec-nano:1), or a
    baseline: tiny+lanczos, taef2:FOLDER+real-esrgan or vae:NAME+spandrel:FILE decode the latent at its own size and
    enlarge that; lanczos and real-esrgan enlarge the small photograph itself.

    OUT gets report.html, summary.json, table.md, sheets/ and results.jsonl. The same command goes on where it was
    interrupted; with another METHOD, only that one is run.
    """

    inputs: MethodsAndData = ()
    """Decoders and baselines, and last a folder of photographs (or one), or small-text, small-text:PAGES or
    small-text:PAGES@SIZE,SIZE (pixels high)."""
    output: Annotated[str | None, tyro.conf.arg(aliases=("-o",), metavar="OUT")] = None
    """A folder: it is created."""
    compare: tuple[str, str] | None = None
    """Print what two runs differ by, image by image: the folders of both, and nothing else."""
    encoder: str | None = None
    """What makes the latents: tiny (bundled, FLUX.2 only; the default), taef2:FOLDER, or vae:NAME, a diffusers VAE of
    the space; image: nothing, decoders of images and baselines get the small photograph. Of a generator's: what
    decodes them for the baselines, its own VAE by default."""
    metrics: str = "all"
    """Separated by commas: all stands for our own, paper for the columns of PiD's Table 1; torchmetrics:CLASS and
    pyiqa:NAME if they are installed; NAME@crops for five crops at 100 %."""
    sets: str | None = None
    """Also Fréchet distance and KID of all images, on the features of efficientnet-lite0 or inception."""
    pipeline: str | None = None
    """Evaluate on latents of this diffusers pipeline, by hub id or folder, instead of photographs: METHOD ... alone."""
    prompts: str | None = None
    """For --pipeline: a file of prompts (as for `pixdec generate`), or DPG-Bench's folder of one prompt a file."""
    stops: str = "auto"
    """For --pipeline: stop after these steps, such as 24,26,28. Methods without noise get the last, which should be the
    end."""
    generator_steps: int | None = None
    """For --pipeline: steps of its full schedule."""
    guidance: float | None = None
    """For --pipeline: the strength of guidance; without it the pipeline's own."""
    height: int | None = None
    """For --pipeline: of the generator's image, in pixels."""
    width: int | None = None
    """For --pipeline: of the generator's image, in pixels."""
    images: Flag = False
    """Keep every image whole, OUT/images/METHOD/NAME.png, for `pixdec judge`."""
    sigma: float = 0.0
    """Noise the latents to this level, 0 to 1, and tell the decoders."""
    seed: int = 0
    """The same seed gives the same figures; it is the same for every image."""
    space: str | None = None
    """The latent space, where a decoder's file does not tell."""
    limit: int | None = None
    """Only the first so many photographs or prompts."""
    crop: int = 0
    """Of larger photographs the middle, at most so many pixels a side."""
    max_failed: float = 0.5
    """The share of images that may have no figure, or NaN, before a mean is withheld."""
    sheets: int = 8
    """Sample sheets, and crops with a divider in the report, of the first so many photographs."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is."""
    dtype: Dtype | None = None
    """Precision of the decoders; without it what suits the device."""
    json: Json = False

    def run(self) -> int:
        report = Report(json_lines=self.json)
        if self.compare is not None:
            return self._compare(report)
        self._check()
        assert self.output is not None, "checked"
        for name in ("scipy", "jinja2"):  # of intervals and of the page: told before an hour of measuring
            library(name, "pixdec eval", "evaluate")
        import torch

        from pixdec.devices import best_device
        from pixdec.evaluate.methods import open_lineup
        from pixdec.evaluate.metrics.table import open_metrics
        from pixdec.evaluate.report.html import PAGE, write_report
        from pixdec.evaluate.report.summary import SUMMARY, TABLE, summarize
        from pixdec.evaluate.results import Broken, plain
        from pixdec.evaluate.run import Place, evaluate, sets_of
        from pixdec.evaluate.sets import open_features

        out, device = Path(self.output), self.device or best_device()
        check_device(self.device)
        data = self._data(out) if self.pipeline is None else self._generated(out)
        prepare([out / name for name in (PAGE, SUMMARY, TABLE)])
        metrics = open_metrics([name.strip() for name in self.metrics.split(",")], device)
        features = None if self.sets is None else open_features(self.sets, torch.device(device))
        lineup = open_lineup(
            self.inputs[:-1] if self.pipeline is None else self.inputs,
            encoder=self.encoder or data.encoder,
            space=self.space,
            latents=data.space,
            device=self.device,
            dtype=torch_dtype(self.dtype),
        )
        for name, reason in {**{name: metrics.absent[name] for name in metrics.refused}, **lineup.missing}.items():
            report.failed(name, ValueError(reason))
        found = list(data.sources(lineup))
        sources = [each for each in found if not isinstance(each, Broken)]
        outcomes: list[Row | Broken] = [each for each in found if isinstance(each, Broken)]
        for broken in outcomes:
            _tell(broken, report)
        with progress(len(sources) * len(lineup.methods), "image") as bar:
            for outcome in evaluate(sources, lineup, metrics, Place(out, features, images=self.images), self.seed):
                outcomes.append(outcome)
                whole = isinstance(outcome, Broken) and outcome.method is None
                bar.update(len(lineup.methods) if whole else 1)
                _tell(outcome, report)
        facts = {
            "command": self._command(),
            "data": f"{len(sources)} images: {data.title}",
            "seed": str(self.seed),
        }
        if features is not None:
            facts["features of sets"] = f"{features.label}, {features.licence}"
        if self.sigma:
            facts["noise in the latents"] = f"sigma {self.sigma:g}"
        summary = summarize(f"{lineup.scale} times larger: {data.title}", outcomes, lineup, metrics, facts)
        sets = {} if features is None else sets_of(summary.rows, out, features)
        summary = dataclasses.replace(summary, sets=sets, tolerated=self.max_failed)
        page = write_report(summary, out, self.sheets)
        for method, wrong in summary.withheld:
            report.failed(method, ValueError(f"{wrong}, more than {self.max_failed:.0%}, so there is no mean"))
        if "cropped" in summary.facts:
            tell(f"note: cropped {summary.facts['cropped']}")
        means = {
            method: {name: plain(mean.mean) for name, mean in each.items()} for method, each in summary.means.items()
        }
        report.done(
            {"output": str(page), "images": len(summary.images), "means": means},
            "\n".join([*summary.table().markdown(), f"{page}  {len(summary.images)} images"]),
        )
        return report.exit_code

    def _check(self) -> None:
        """What can be refused before anything is loaded."""
        from pixdec.evaluate.methods import parse_method
        from pixdec.io.arguments import check_range, seed_of

        names = self.inputs if self.pipeline else self.inputs[:-1]
        if self.output is None:
            raise ValueError("expected an output folder: -o OUT")
        if not names:
            raise ValueError("name at least one METHOD and then DATA, such as: pixdec eval pixdec-nano photos/ -o out/")
        if (self.pipeline is None) != (self.prompts is None):
            raise ValueError("expected --pipeline and --prompts together, or neither")
        for name in names:
            parse_method(name)
        seed_of(self.seed)
        check_range(self, ("sigma", "max_failed"), 0, 1)
        check_range(self, ("sheets", "crop"), 0)
        check_range(self, [] if self.limit is None else ["limit"], 1)

    def _data(self, out: Path) -> Data:
        from pixdec.evaluate.photographs import Preparation, find_photographs, photograph_sources
        from pixdec.evaluate.small_text import SIZES, render_pages

        data, how = self.inputs[-1], Preparation(self.sigma, self.seed, self.crop)
        if found := re.fullmatch(r"small-text(?::([1-9]\d*))?(?:@([1-9]\d?(?:,[1-9]\d?)*))?", data):
            sizes = SIZES if found[2] is None else [int(size) for size in found[2].split(",")]
            photographs = render_pages(out / "pages", int(found[1] or PAGES), sizes)
        else:
            photographs = find_photographs(data, out)[: self.limit]
        return Data(Path(data).name, lambda lineup: photograph_sources(photographs, lineup, how))

    def _generated(self, out: Path) -> Data:
        """As `_data`, of a generator's latents."""
        from pixdec.evaluate.generated import GeneratedLatents, prompts_in
        from pixdec.generation.settings import GenerationSettings

        assert self.pipeline is not None and self.prompts is not None, "checked"
        settings = GenerationSettings(
            pipeline=self.pipeline,
            decoder="",
            space=self.space,
            steps=self.generator_steps,
            seed=self.seed,
            height=self.height,
            width=self.width,
            guidance=self.guidance,
            latents_only=True,
            device=self.device,
            dtype=self.dtype,
        )
        made = GeneratedLatents(prompts_in(self.prompts)[: self.limit], settings, self.stops, out)
        stops = ", ".join(map(str, made.stops))
        title = f"{Path(self.pipeline).name} at steps {stops} of {made.steps}, {Path(self.prompts).name}"
        return Data(title, made.sources, made.space, f"vae:{self.pipeline}")

    def _compare(self, report: Report) -> int:
        from pixdec.evaluate.report.summary import compare_runs

        assert self.compare is not None
        if self.inputs or self.output:
            raise ValueError("--compare A B stands alone: expected neither METHOD nor -o OUT")
        lines, differences = compare_runs(*self.compare)
        if self.json:
            report.done({"first": self.compare[0], "second": self.compare[1], "differences": differences}, "")
        else:
            print(f"{self.compare[0]} less {self.compare[1]}, image by image\n", *lines, sep="\n")
        return 0

    def _command(self) -> str:
        """The command as it would be typed, without what is a default."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("inputs", "output", "json") and getattr(self, field.name) != field.default
        }
        options = [
            word
            for name, value in given.items()
            for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
        ]
        return shlex.join(["pixdec", "eval", *self.inputs, "-o", str(self.output), *options])


def _tell(outcome: Row | Broken, report: Report) -> None:
    """A line for each outcome, as the other verbs have them."""
    from pixdec.evaluate.results import Broken, plain

    if isinstance(outcome, Broken):
        reason = outcome.reason if outcome.method is None else f"{outcome.method}: {outcome.reason}"
        report.failed(outcome.image, ValueError(reason))
        return
    for metric, reason in outcome.failed.items():
        report.failed(outcome.image, ValueError(f"{outcome.method}: {metric}: {reason}"))
    nan = [metric for metric, value in outcome.figures.items() if value != value]
    if nan:
        report.failed(outcome.image, ValueError(f"{outcome.method}: NaN, which no mean counts: {', '.join(nan)}"))
    record = {
        "input": outcome.image,
        "method": outcome.method,
        "figures": {name: plain(value) for name, value in outcome.figures.items()},
    }
    shown = "  ".join(f"{name} {value:.3f}" for name, value in outcome.figures.items())
    record |= {"cropped": outcome.cropped, "earlier": outcome.earlier}
    report.done(record, f"{outcome.image}  {outcome.method}  {shown}")
