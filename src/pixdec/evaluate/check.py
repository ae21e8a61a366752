"""Whether a decoder is as good as it was: perceptual regression. A pixel test fails for a better model too; here
figures of images are saved once, and a new model, version or setting passes unless a metric got worse beyond chance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixdec.decoder import PixelDecoder
from pixdec.evaluate.metrics.table import OWN, Metrics, Shown, measure
from pixdec.evaluate.photographs import crop_middle
from pixdec.evaluate.statistics import bootstrap
from pixdec.generation.enlarge import UpscaleSettings, encoder_for, latent_of
from pixdec.io.files import write_whole
from pixdec.io.images import read_image, to_pil, to_tensor
from pixdec.latents import Latent
from pixdec.train.data.degrade import degrade

TOLERANCE = 0.02  # of a metric's mean: less than this is nobody's concern, however certain

Scores = Mapping[str, Mapping[str, float]]  # by image and metric


@dataclass(frozen=True)
class How:
    """What images are made by: the seed, the decoding steps, the strength, and the middle of larger photographs."""

    seed: int = 0
    steps: int | None = None
    strength: float = 0.0
    crop: int = 256


@dataclass(frozen=True)
class Change:
    """How much worse a metric became, as a mean over images in its own unit; below 0 is better.

    Attributes:
        interval: that holds the mean with 95 %, by bootstrap over the images.
        failed: it lies wholly above what is tolerated.
        images: by how much each got worse, the worst first.
    """

    metric: str
    worse: float
    interval: tuple[float, float]
    failed: bool
    images: Sequence[tuple[str, float]]

    def line(self) -> str:
        """In words."""
        low, high = self.interval
        verdict = "FAILED" if self.failed else "passed"
        worst = ", ".join(f"{name} {value:+.4g}" for name, value in self.images[:3])
        return f"{self.metric:<20} {verdict}  worse by {self.worse:+.4g} [{low:+.4g}, {high:+.4g}]; most: {worst}"


def score(
    decoder: PixelDecoder, files: Sequence[Path], metrics: Metrics, how: How
) -> Iterator[tuple[str, dict[str, float]]]:
    """The figures of each file: a photograph is shrunk and decoded, a latent is decoded.

    Raises:
        ValueError: a file that cannot be used, or a metric that cannot be computed of it.
    """
    encoder, settings = encoder_for(decoder), UpscaleSettings(strength=how.strength, seed=how.seed)
    multiple = decoder.scale * (decoder.space.factor if encoder is None else encoder.space.factor)
    for file in files:
        if file.suffix == ".safetensors":
            original, latent = None, Latent.load(file)
            low = to_pil(latent.tensor)[0] if latent.space.is_image else None
        else:
            original = crop_middle(read_image(file), multiple, how.crop)
            if min(original.size) < multiple:
                raise ValueError(f"{file}: sides of {original.size}; expected at least {multiple}")
            small = degrade(to_tensor(original), decoder.scale)
            low, latent = to_pil(small)[0], latent_of(small, decoder, encoder, settings)
        image = decoder.decode(latent, seed=how.seed, steps=how.steps)[0]
        shown = Shown(image, original, low, scale=decoder.scale)
        has = {name for name, value in (("original", original), ("low", low)) if value is not None}
        figures, failed = measure(shown, metrics.of(frozenset(has)))
        for name, reason in failed.items():
            raise ValueError(f"{file}: {name}: {reason}")
        yield file.name, figures


def compare(before: Scores, after: Scores, tolerance: float = TOLERANCE) -> list[Change]:
    """What became of each metric, over the images of both.

    Raises:
        ValueError: an image or a metric that was not there before.
    """
    changes = list[Change]()
    for name in after:
        if name not in before:
            raise ValueError(f"{name}: the reference has no such image; save it anew with --save")
    for metric in dict.fromkeys(metric for figures in after.values() for metric in figures):
        better, each, sizes = OWN[metric].better if metric in OWN else "↑", dict[str, float](), list[float]()
        for name, figures in after.items():
            if (new := figures.get(metric)) is None:
                continue
            if (old := before[name].get(metric)) is None:
                raise ValueError(f"{metric}: the reference has no such figures; save it anew with --save")
            each[name] = {"→ 0": abs(new) - abs(old), "↑": old - new, "↓": new - old}[better]
            sizes.append(abs(old))
        mean = sum(each.values()) / len(each)
        low, high = bootstrap([(value, 1.0) for value in each.values()])
        worst = sorted(each.items(), key=lambda pair: -pair[1])
        changes.append(Change(metric, mean, (low, high), low > tolerance * sum(sizes) / len(sizes), worst))
    return changes


def write_reference(path: Path, scores: Scores, made: Mapping[str, object]) -> None:
    """Save figures, and how the images were made."""
    write_whole(path, json.dumps({"pixdec": "check", "made": made, "scores": scores}, indent=1) + "\n")


def read_reference(path: Path) -> Scores:
    """The figures that `write_reference` saved.

    Raises:
        ValueError: there are none.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        assert found["pixdec"] == "check"
        return found["scores"]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); write it with --save") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path}: no reference of pixdec check; write it with --save") from error
