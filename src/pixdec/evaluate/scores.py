"""The metrics of an evaluation by name: ours, and any of torchmetrics or pyiqa that scores one image, if installed.

Names: those of `report.COLUMNS`; `all` for those of them that can run here; `torchmetrics:CLASS`, an image or
regression metric by the name of its class; `pyiqa:NAME`, as `pyiqa.list_models()` lists them. pyiqa, and many of the
weights it fetches, are not for commercial use.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixdec.evaluate.niqe import published
from pixdec.evaluate.report import COLUMNS, Column, measure
from pixdec.evaluate.ssimulacra2 import load_ssimulacra2
from pixdec.evaluate.st_lpips import shared_vgg
from pixdec.io.images import to_tensor

ALL = "all"
TRIAL_SIDE = 256  # pixels; networks and multi-scale metrics refuse much smaller images
# These compare two sets of images, or judge one set: they have no figure of one image.
SET_METRICS = {
    "FrechetInceptionDistance",
    "KernelInceptionDistance",
    "InceptionScore",
    "MemorizationInformedFrechetInceptionDistance",
    "PerceptualPathLength",
    "inception_score",
}
# Ours by name, with weights or code that other packages carry: what raises ValueError where they are not installed.
NEEDS: dict[str, Callable[[], object]] = {
    "st_lpips": shared_vgg,
    "ssimulacra2": load_ssimulacra2,
    "niqe": published,
}
Score = Callable[[Tensor, Tensor], Any]  # image and reference, (1,3,H,W) in [0,1] -> a tensor of one number


@dataclass(frozen=True)
class Foreign:
    """A metric of another library: its name, how its column is shown, and score(image, reference), RGB both."""

    name: str
    column: Column
    score: Callable[[Image.Image, Image.Image], float]


@dataclass(frozen=True)
class Metrics:
    """What is measured: names of ours, in the order of COLUMNS, and metrics of other libraries. `absent`: those that
    `all` leaves out, and what to install for each."""

    own: tuple[str, ...]
    foreign: tuple[Foreign, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [*self.own, *(metric.name for metric in self.foreign)]

    @property
    def columns(self) -> dict[str, Column]:
        """How those of other libraries are shown."""
        return {metric.name: metric.column for metric in self.foreign}

    def measure(self, image: Image.Image, original: Image.Image, low: Image.Image, scale: int) -> dict[str, float]:
        """All figures of one image.

        Raises:
            ValueError: a metric cannot score it: it is too small for it, say, or the figure is NaN.
        """
        figures = measure(image, original, low=low, scale=scale, only=self.own)
        figures |= {metric.name: metric.score(image, original) for metric in self.foreign}
        for name, value in figures.items():
            if math.isnan(value):
                raise ValueError(f"{name} is NaN for this image; leave it out of --metrics")
        return figures


def open_metrics(names: Sequence[str] = (ALL,), device: str | torch.device = "cpu") -> Metrics:
    """The metrics of these names; those of other libraries are loaded, and tried on one small image.

    Raises:
        ValueError: no name; one that is unknown, whose library or weights are not installed, that judges sets of
            images, or that does not score one RGB image, alone or against its original.
    """
    if not names:
        raise ValueError(f"no metric; name {ALL}, or some of {', '.join(COLUMNS)}, torchmetrics:CLASS, pyiqa:NAME")
    own: set[str] = set()
    absent: list[str] = []
    foreign: dict[str, Foreign] = {}
    for name in names:
        library, colon, inner = name.partition(":")
        if name == ALL or name in COLUMNS:
            for metric in COLUMNS if name == ALL else (name,):
                try:
                    NEEDS.get(metric, object)()
                    own.add(metric)
                except ValueError as error:
                    if metric == name:
                        raise
                    absent.append(str(error))
        elif colon and library in ("torchmetrics", "pyiqa"):
            if inner in SET_METRICS or (library == "pyiqa" and inner.startswith("fid")):
                raise ValueError(f"metric {name}: it judges sets of images, and every figure here is of one image")
            foreign.setdefault(name, _open(name, library, inner, torch.device(device)))
        else:
            near = difflib.get_close_matches(name, [ALL, *COLUMNS], 1)
            meant = f"did you mean {near[0]}?" if near else f"expected {ALL}, {', '.join(COLUMNS)}"
            raise ValueError(f"metric {name!r}: {meant}; others are torchmetrics:CLASS or pyiqa:NAME")
    return Metrics(tuple(metric for metric in COLUMNS if metric in own), tuple(foreign.values()), tuple(absent))


def _open(name: str, library: str, inner: str, device: torch.device) -> Foreign:
    try:
        with _quiet():
            module: Any = importlib.import_module(library)
            if library == "torchmetrics":
                module = importlib.import_module("torchmetrics.image")
    except Exception as error:  # missing, or one of many packages that they import in turn is missing or broken
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        what = "is not installed" if missing == library else f"cannot be imported ({_line(error)})"
        raise ValueError(f"metric {name}: {library} {what}; pip install {library}") from error
    with _quiet():
        score, better = (_torchmetrics if library == "torchmetrics" else _pyiqa)(module, name, inner, device)
    arrow = {True: " ↑", False: " ↓", None: ""}[better]
    metric = Foreign(name, Column(name + arrow, 3), _of_images(name, score))
    first, second = _trial_images()
    try:
        metric.score(first, second)
    except ValueError as error:
        tried = f"tried on an RGB image of {TRIAL_SIDE}x{TRIAL_SIDE} pixels, it does not fit"
        raise ValueError(f"{error} ({tried})") from error
    return metric


def _torchmetrics(module: Any, name: str, inner: str, device: torch.device) -> tuple[Score, bool | None]:
    """An object of the class, told that values are in [0,1] if it asks."""
    regression: Any = importlib.import_module("torchmetrics.regression")
    found: Any = getattr(module, inner, None) or getattr(regression, inner, None)
    if not inspect.isclass(found) or not hasattr(found, "update"):
        known = {key for place in (module, regression) for key in vars(place) if key[:1].isupper()} - SET_METRICS
        near = difflib.get_close_matches(inner, sorted(known), 1)
        meant = f"did you mean {near[0]}?" if near else "expected a class such as UniversalImageQualityIndex"
        raise ValueError(
            f"metric {name}: torchmetrics as installed here has no such image metric (some need torchvision); {meant}"
        )
    kind: Any = found  # which isclass took for type[object]
    accepted = inspect.signature(kind).parameters
    told: dict[str, object] = {"data_range": 1.0} if "data_range" in accepted else {}
    if "normalize" in accepted and accepted["normalize"].default is False:  # of some other classes it is a word
        told["normalize"] = True
    try:
        metric: Any = kind(**told).to(device)
    except Exception as error:  # whatever a class raises that wants more, or weights that cannot be had
        raise ValueError(f"metric {name}: cannot be set up: {_line(error)}") from error
    inputs = [p for p in inspect.signature(kind.update).parameters.values() if p.default is p.empty]
    alone = len(inputs) == 2  # self and the image

    def score(image: Tensor, reference: Tensor) -> Any:
        metric.reset()
        metric.update(*((image.to(device),) if alone else (image.to(device), reference.to(device))))
        return metric.compute()

    return score, metric.higher_is_better


def _pyiqa(module: Any, name: str, inner: str, device: torch.device) -> tuple[Score, bool | None]:
    known: list[str] = list(module.list_models())
    if inner not in known:
        near = difflib.get_close_matches(inner, known, 1)
        meant = f"did you mean {near[0]}?" if near else "pyiqa.list_models() lists them"
        raise ValueError(f"metric {name}: pyiqa knows none of that name; {meant}")
    try:
        metric: Any = module.create_metric(inner, device=device)
    except Exception as error:  # missing packages of single metrics, weights that cannot be had
        raise ValueError(f"metric {name}: cannot be set up: {_line(error)}") from error
    alone = metric.metric_mode == "NR"

    def score(image: Tensor, reference: Tensor) -> Any:
        return metric(image) if alone else metric(image, reference)

    return score, not metric.lower_better


def _of_images(name: str, score: Score) -> Callable[[Image.Image, Image.Image], float]:
    def of_images(image: Image.Image, reference: Image.Image) -> float:
        pair = [((to_tensor(each) + 1) / 2).clamp(0, 1) for each in (image, reference)]
        try:
            with torch.no_grad(), _quiet():
                value: Any = score(pair[0], pair[1])
        except Exception as error:  # other libraries raise many kinds
            raise ValueError(f"metric {name}: {_line(error)}") from error
        numbers = _numbers(value)
        if len(numbers) != 1:
            raise ValueError(f"metric {name}: it gives {len(numbers)} numbers for an image, expected 1")
        return numbers[0]

    return of_images


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Tensor):
        return [float(each) for each in value.detach().flatten().tolist()]
    if isinstance(value, Mapping | list | tuple):
        each = value.values() if isinstance(value, Mapping) else value
        return [number for item in each for number in _numbers(item)]
    return [float(value)]


def _trial_images() -> tuple[Image.Image, Image.Image]:
    """A coarse pattern, and the same with a little noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (24, 24, 3), dtype=np.uint8))
    clean = coarse.resize((TRIAL_SIDE, TRIAL_SIDE), Image.Resampling.BICUBIC)
    noisy = np.asarray(clean).astype(np.int16) + rng.integers(-9, 10, (TRIAL_SIDE, TRIAL_SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), clean


@contextmanager
def _quiet() -> Generator[None]:
    """Without the warnings, log lines and prints of other libraries: standard output is for results."""
    earlier = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(earlier)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


__all__ = ["ALL", "Foreign", "Metrics", "open_metrics"]
