"""The metrics of an evaluation by name, with how each is shown, what it needs, and whose code and weights it is.

Names: those of `OWN`; `all` for those of them that can run here; `torchmetrics:CLASS`, an image or regression metric by
the name of its class; `pyiqa:NAME`; the language models of `language`; `paper` for the columns of PiD's Table 1, and
the same on crops. NAME@crops is the mean over five crops of 448 pixels at 100 %: most scorers shrink an image to that
size, and see nothing of what a decoder adds.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image

from pixdec.evaluate.metrics import fidelity
from pixdec.evaluate.metrics.niqe import niqe, published
from pixdec.evaluate.metrics.packages import find_tesseract, legibility, load_ssimulacra2, ssimulacra2
from pixdec.evaluate.metrics.st_lpips import shared_alex, shared_vgg, st_lpips
from pixdec.io.files import reason_of
from pixdec.io.quiet import library

Need = Literal["original", "low", "text"]
ALL, PAPER, ON_CROPS = "all", "paper", "@crops"
CROP = 448  # pixels a side, that language models and CLIP see
# The columns of PiD's Table 1: by their names in report/published.csv, heading and ours.
TABLE_1 = {
    "musiq_paq2piq": ("MUSIQ-PaQ ↑", "pyiqa:musiq-paq2piq"),
    "niqe": ("NIQE ↓", "pyiqa:niqe"),
    "deqa": ("DeQA ↑", "deqa"),
    "maniqa": ("MANIQA ↑", "pyiqa:maniqa"),
    "qalign": ("Q-Align ↑", "pyiqa:qalign"),
    "unipercept_iaa": ("Uni-IAA ↑", "unipercept-iaa"),
    "unipercept_iqa": ("Uni-IQA ↑", "unipercept-iqa"),
    "vq_r1": ("VQ-R1 ↑", "vq-r1"),
}
OURS = "pixdec, Apache-2.0"


@dataclass(frozen=True)
class Shown:
    """A decoded image, 8-bit RGB as it is saved, and what it can be measured against.

    Attributes:
        original: the photograph or page itself, of the same size.
        low: the small image that was encoded, `scale` times smaller.
        text: what is written on it.
    """

    image: Image.Image
    original: Image.Image | None = None
    low: Image.Image | None = None
    text: str | None = None
    scale: int = 4


@dataclass(frozen=True)
class Metric:
    """How good an image is, as one number.

    Attributes:
        name: as it is asked for.
        heading: with its unit.
        better: "↑", "↓", or "→ 0".
        digits: shown behind the point.
        score: ValueError where it cannot be computed.
        needs: what it is measured against.
        source: code, weights and licences.
    """

    name: str
    heading: str
    better: str
    digits: int
    score: Callable[[Shown], float]
    needs: tuple[Need, ...] = ()
    source: str = OURS

    @property
    def title(self) -> str:
        return f"{self.heading} {self.better}".strip()


@dataclass(frozen=True)
class Metrics:
    """What is measured. `absent`: those that cannot be, and what to install. `refused`: those of them that were named,
    and not only part of `all`."""

    chosen: tuple[Metric, ...]
    absent: dict[str, str]
    refused: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        return [metric.name for metric in self.chosen]

    def of(self, has: frozenset[str]) -> list[Metric]:
        """Those that an image with this beside it can be measured by."""
        return [metric for metric in self.chosen if has.issuperset(metric.needs)]


def measure(shown: Shown, metrics: Sequence[Metric]) -> tuple[dict[str, float], dict[str, str]]:
    """The figures of an image by metric, and why others failed; the failure of one is no other's."""
    figures, failed = dict[str, float](), dict[str, str]()
    for metric in metrics:
        try:
            figures[metric.name] = metric.score(shown)
        except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failed[metric.name] = reason_of(error)
    return figures, failed


def _against(
    function: Callable[..., float], settings: Callable[[Shown], dict[str, object]] = lambda shown: {}
) -> Callable[[Shown], float]:
    return lambda shown: function(shown.image, shown.original, **settings(shown))


def _consistency(shown: Shown) -> float:
    assert shown.low is not None, "without the small image it is not asked for"
    return fidelity.consistency(shown.image, shown.low, scale=shown.scale)


_BOTH: tuple[Need, ...] = ("original",)
_STLPIPS = "weights of stlpips-pytorch, BSD-2"
_NIQE = "pixdec's code; the original release's parameters from BasicSR, Apache-2.0"
_FINE = "above 1/scale of Nyquist"
_alex = _against(st_lpips, lambda shown: {"network": shared_alex()})
_ssim_same = _against(fidelity.ssim, lambda shown: {"padding": "same"})
_error_high = _against(fidelity.spectrum_error, lambda shown: {"band": (1 / shown.scale, 1.0)})
_energy = _against(fidelity.high_frequency, lambda shown: {"above": 1 / shown.scale})
_METRICS = (
    Metric("psnr", "PSNR dB", "↑", 2, _against(fidelity.psnr), _BOTH),
    Metric("ssim", "SSIM", "↑", 3, _against(fidelity.ssim), _BOTH),
    Metric("ssim_same", "SSIM (same padding)", "↑", 3, _ssim_same, _BOTH),
    Metric("st_lpips", "ST-LPIPS (VGG)", "↓", 3, _against(st_lpips), _BOTH, _STLPIPS),
    Metric("st_lpips_alex", "ST-LPIPS (Alex)", "↓", 3, _alex, _BOTH, _STLPIPS),
    Metric("ssimulacra2", "SSIMULACRA2", "↑", 1, _against(ssimulacra2), _BOTH, "package ssimulacra2, BSD-3"),
    Metric("niqe", "NIQE (published model)", "↓", 2, lambda shown: niqe(shown.image), source=_NIQE),
    Metric("spectrum_error", "spectrum error, bels", "↓", 3, _against(fidelity.spectrum_error), _BOTH),
    Metric("spectrum_error_high", f"spectrum error {_FINE}, bels", "↓", 3, _error_high, _BOTH),
    Metric("high_frequency", f"energy {_FINE}, dB", "→ 0", 2, _energy, _BOTH),
    Metric("color_drift", "color drift ΔE2000", "↓", 2, _against(fidelity.color_drift), _BOTH),
    Metric("pattern", "regular pattern, bels", "→ 0", 2, lambda shown: fidelity.pattern(shown.image)),
    Metric("consistency", "consistency dB", "↑", 2, _consistency, ("low",)),
    Metric(
        "legibility",
        "words read by Tesseract",
        "↑",
        2,
        lambda shown: legibility(shown.image, shown.text or ""),
        ("text",),
        "Tesseract, Apache-2.0",
    ),
)
OWN = {metric.name: metric for metric in _METRICS}
# What raises ValueError where the weights or code of others that they need are not installed.
NEEDS: dict[str, Callable[[], object]] = {
    "st_lpips": shared_vgg,
    "st_lpips_alex": shared_alex,
    "ssimulacra2": load_ssimulacra2,
    "niqe": lambda: (library("scipy", "NIQE", "evaluate"), published()),
    "ssim": lambda: library("skimage", "SSIM", "evaluate"),
    "ssim_same": lambda: library("skimage", "SSIM", "evaluate"),
    "color_drift": lambda: library("skimage", "color drift", "evaluate"),
    "legibility": find_tesseract,
}


def open_metrics(names: Sequence[str] = (ALL,), device: str | torch.device = "cpu") -> Metrics:
    """The metrics of these names, loaded; those of other libraries are tried on one small image.

    One that cannot run here is absent, and the others are measured.

    Raises:
        ValueError: no name; one that is unknown, or that judges sets of images.
    """
    if not names:
        raise ValueError(f"no metric; name {ALL}, or some of {', '.join(OWN)}, torchmetrics:CLASS, pyiqa:NAME")
    wanted = dict[str, bool]()  # -> whether it was named itself
    for name in names:
        if name == ALL:
            wanted = {**dict.fromkeys(OWN, False), **wanted}
        elif name == PAPER:
            wanted |= dict.fromkeys([own + end for end in ("", ON_CROPS) for _, own in TABLE_1.values()], True)
        else:
            wanted[name] = True
    chosen, absent = list[Metric](), dict[str, str]()
    for name in wanted:
        opener = _opener(name, torch.device(device))
        try:
            chosen.append(opener())
        except ValueError as error:
            absent[name] = str(error)
    if not chosen:
        raise ValueError("; ".join(absent.values()))
    order = list(OWN)
    chosen.sort(key=lambda metric: order.index(metric.name) if metric.name in OWN else len(order))
    return Metrics(tuple(chosen), absent, frozenset(name for name in absent if wanted[name]))


def _opener(name: str, device: torch.device) -> Callable[[], Metric]:
    """What loads a metric. ValueError for a name that stands for none."""
    from pixdec.evaluate.metrics import language, library

    def own() -> Metric:
        NEEDS.get(name, object)()
        return OWN[name]

    if name.endswith(ON_CROPS):
        whole = _opener(name.removesuffix(ON_CROPS), device)
        return lambda: on_crops(whole())
    if name in OWN:
        return own
    if name in language.SCORERS:
        return lambda: language.open_scorer(name, device)
    if library.is_name(name):
        return lambda: library.open_foreign(name, device)
    known = [*OWN, *language.SCORERS]
    meant = meant_by(name, [ALL, PAPER, *known], f"expected {ALL}, {', '.join(known)}")
    raise ValueError(f"metric {name!r}: {meant}; others are torchmetrics:CLASS or pyiqa:NAME")


def meant_by(name: str, known: Sequence[str], otherwise: str) -> str:
    """The name that is near an unknown one, as a question; without any, `otherwise`."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else otherwise


def on_crops(metric: Metric) -> Metric:
    """The mean of a metric over five crops at 100 %: the corners and the middle."""

    def score(shown: Shown) -> float:
        boxes = five_crops(*shown.image.size)
        pieces = [
            replace(shown, image=shown.image.crop(box), original=shown.original and shown.original.crop(box), low=None)
            for box in boxes
        ]
        return sum(map(metric.score, pieces)) / len(pieces)

    return replace(metric, name=metric.name + ON_CROPS, heading=f"{metric.heading}, five crops", score=score)


def five_crops(width: int, height: int, side: int = CROP) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the four corners and last the middle; smaller where the image is."""
    wide, high = min(side, width), min(side, height)
    right, bottom = width - wide, height - high
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    return [(left, top, left + wide, top + high) for left, top in corners]
