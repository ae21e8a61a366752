"""Metrics of torchmetrics and pyiqa that score one image, if these are installed.

pyiqa, and many of the weights that it fetches, are not for commercial use.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixdec.evaluate.metrics.table import Metric, Shown, meant_by
from pixdec.io.files import reason_of
from pixdec.io.images import to_tensor

BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
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
LICENCES = {"torchmetrics": "torchmetrics, Apache-2.0", "pyiqa": "pyiqa, PolyForm-Noncommercial-1.0.0"}
Score = Callable[[Tensor, Tensor], Any]  # image and reference, (1,3,H,W) in [0,1] -> a tensor of one number


def is_name(name: str) -> bool:
    """Whether a name is one of these libraries'. ValueError for a metric of sets of images."""
    library, colon, inner = name.partition(":")
    if not colon or library not in LICENCES:
        return False
    if inner in SET_METRICS or (library == "pyiqa" and inner.startswith("fid")):
        raise ValueError(f"metric {name}: it judges sets of images; see --sets")
    return True


def open_foreign(name: str, device: torch.device) -> Metric:
    """A metric by its library's name, tried on one small image.

    Raises:
        ValueError: the library or its weights are not installed, it has none of that name, or it does not score one
            RGB image, alone or against its original.
    """
    library, _, inner = name.partition(":")
    try:
        with _quiet():
            module: Any = importlib.import_module(library)
            if library == "torchmetrics":
                module = importlib.import_module("torchmetrics.image")
    except Exception as error:  # missing, or one of many packages that they import in turn is missing or broken
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        what = "is not installed" if missing == library else f"cannot be imported ({reason_of(error)[:300]})"
        raise ValueError(f"metric {name}: {library} {what}; pip install {library}") from error
    with _quiet():
        open_inner = _torchmetrics if library == "torchmetrics" else _pyiqa
        score, better, alone = open_inner(module, name, inner, device)
    arrow = {True: "↑", False: "↓", None: ""}[better]
    metric = Metric(name, name, arrow, 3, _of_images(name, score), () if alone else ("original",), LICENCES[library])
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (24, 24, 3), dtype=np.uint8))
    smooth, sharp = (coarse.resize((TRIAL_SIDE, TRIAL_SIDE), how) for how in (BICUBIC, LANCZOS))
    try:
        metric.score(Shown(smooth, sharp))
    except ValueError as error:
        tried = f"tried on an RGB image of {TRIAL_SIDE}x{TRIAL_SIDE} pixels, it does not fit"
        raise ValueError(f"{error} ({tried})") from error
    return metric


def _torchmetrics(module: Any, name: str, inner: str, device: torch.device) -> tuple[Score, bool | None, bool]:
    """An object of the class, told that values are in [0,1] if it asks."""
    regression: Any = importlib.import_module("torchmetrics.regression")
    found: Any = getattr(module, inner, None) or getattr(regression, inner, None)
    if not inspect.isclass(found) or not hasattr(found, "update"):
        known = {key for place in (module, regression) for key in vars(place) if key[:1].isupper()} - SET_METRICS
        meant = meant_by(inner, sorted(known), "expected a class such as UniversalImageQualityIndex")
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
        raise ValueError(f"metric {name}: cannot be set up: {reason_of(error)[:300]}") from error
    inputs = [p for p in inspect.signature(kind.update).parameters.values() if p.default is p.empty]
    alone = len(inputs) == 2  # self and the image

    def score(image: Tensor, reference: Tensor) -> Any:
        metric.reset()
        metric.update(*((image.to(device),) if alone else (image.to(device), reference.to(device))))
        return metric.compute()

    return score, metric.higher_is_better, alone


def _pyiqa(module: Any, name: str, inner: str, device: torch.device) -> tuple[Score, bool | None, bool]:
    known: list[str] = list(module.list_models())
    if inner not in known:
        meant = meant_by(inner, known, "pyiqa.list_models() lists them")
        raise ValueError(f"metric {name}: pyiqa knows none of that name; {meant}")
    try:
        metric: Any = module.create_metric(inner, device=device)
    except Exception as error:  # missing packages of single metrics, weights that cannot be had
        raise ValueError(f"metric {name}: cannot be set up: {reason_of(error)[:300]}") from error
    alone = metric.metric_mode == "NR"

    def score(image: Tensor, reference: Tensor) -> Any:
        return metric(image) if alone else metric(image, reference)

    return score, not metric.lower_better, alone


def _of_images(name: str, score: Score) -> Callable[[Shown], float]:
    def of_images(shown: Shown) -> float:
        pair = [((to_tensor(each) + 1) / 2).clamp(0, 1) for each in (shown.image, shown.original or shown.image)]
        try:
            with torch.no_grad(), _quiet():
                value: Any = score(pair[0], pair[1])
            several = value.values() if isinstance(value, Mapping) else value
            parts = several if isinstance(several, Iterable) and not isinstance(several, Tensor) else [several]
            numbers = [float(number) for part in parts for number in torch.as_tensor(part).flatten().tolist()]
        except Exception as error:  # other libraries raise many kinds
            raise ValueError(f"metric {name}: {reason_of(error)[:300]}") from error
        if len(numbers) != 1:
            raise ValueError(f"metric {name}: it gives {len(numbers)} numbers for an image, expected 1")
        return numbers[0]

    return of_images


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
