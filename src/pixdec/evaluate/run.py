"""The evaluation of decoders: photographs are shrunk and encoded, every method enlarges the same latents, and the
results are measured against the photographs.

    lineup, metrics = open_lineup(["pixdec-nano", "pixdec-nano:1", "tiny+lanczos"]), open_metrics()
    sources = photograph_sources(find_photographs("kodak", "out"), lineup)
    outcomes = list(evaluate(sources, lineup, metrics, "out"))
    write_report(summarize("Kodak", outcomes, lineup, metrics), "out")

`evaluate` yields as it goes, and keeps every row in OUT/results.jsonl: called again, it goes on where it was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from pixdec import __version__
from pixdec.evaluate.methods import ORIGINAL, Lineup, Method, Sample
from pixdec.evaluate.metrics.table import Metric, Metrics, Shown, measure
from pixdec.evaluate.photographs import Source
from pixdec.evaluate.report.sheets import middle, most_detailed
from pixdec.evaluate.results import Broken, Row, append_result, key_of, read_results
from pixdec.evaluate.sets import Features, compare_sets
from pixdec.io.files import reason_of
from pixdec.io.images import save_image, to_pil

RESULTS, CROPS, FEATURES, IMAGES = "results.jsonl", "crops", "features", "images"  # in the output folder
# Of one image, and no reason not to go on with the next.
FAILURES = (ValueError, OSError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class _Task:
    """One image by one method. `key`: the digest of `made_with`, all that the image depends on. `known`: figures of an
    earlier run. `done`: there is nothing left to do."""

    method: Method
    label: str
    made_with: Mapping[str, object]
    key: str
    known: Mapping[str, float]
    done: bool


@torch.inference_mode()
def evaluate(
    sources: Sequence[Source],
    lineup: Lineup,
    metrics: Metrics,
    out: str | Path | Place,
    seed: int = 0,
) -> Iterator[Row | Broken]:
    """One row for each image and method, in this order; the folder `out` gets results.jsonl and the crops.

    What an earlier run measured there is taken from it, if it was of the same image, weights, steps, precision, kind of
    device, encoder, scale, sigma, seed and version of pixdec; only what it lacks is measured. Of a generator's latents,
    those with noise are for methods that take it.

    Args:
        out: a folder; or a `Place`, which says what else is kept there.
        seed: of the decoders' noise, the same for every image.

    Raises:
        ValueError: OUT/results.jsonl is not such a file.
        OSError: a file cannot be written.
    """
    place = out if isinstance(out, Place) else Place(Path(out))
    (place.out / CROPS).mkdir(parents=True, exist_ok=True)
    earlier = read_results(place.out / RESULTS)
    for source in sources:
        try:
            about, cropped = source.identify()
        except FAILURES as error:
            yield Broken(source.name, None, _line(error))
            continue
        shared = {
            "pixdec": __version__,
            **about,
            "encoder": lineup.encoder.digest,
            "space": lineup.space.name,
            "scale": lineup.scale,
            "decoder_seed": seed,
            "device": lineup.device.type,
        }
        tasks = [
            _task(method, source, shared, metrics, earlier, place)
            for method in lineup.methods
            if source.clean or method.takes_noise
        ]
        original = key_of({**shared, "method": ORIGINAL}) if "original" in source.has else None
        whole = original is None or place.holds(original)
        sample = None
        for task in tasks:
            row = Row(source.name, task.label, task.known, {}, task.key, original, cropped, earlier=True)
            if not (task.done and whole):
                try:
                    sample = sample or source.load()
                    if original is not None and not whole:
                        assert sample.original is not None, "the source has one"
                        place.keep(sample.original, sample.original, original)
                        place.keep_image(sample.original, ORIGINAL, source.name)
                        whole = True
                    figures, failed = _measured(task, source, sample, lineup, metrics, place, seed)
                except FAILURES as error:
                    yield Broken(source.name, None if sample is None else task.label, _line(error))
                    if sample is None:
                        break
                    continue
                row = replace(row, figures=figures, failed=failed, earlier=False)
                append_result(place.out / RESULTS, row, task.made_with)
            yield replace(row, figures=_chosen(row, source, metrics))


@dataclass(frozen=True)
class Place:
    """Where a run keeps what it makes of each image besides figures: a crop, features for figures of sets, and if
    wanted the image itself, images/METHOD/NAME.png."""

    out: Path
    features: Features | None = None
    images: bool = False

    def crop(self, key: str) -> Path:
        return self.out / CROPS / f"{key}.webp"

    def feature(self, key: str) -> Path | None:
        return None if self.features is None else self.out / FEATURES / self.features.name / f"{key}.npy"

    def holds(self, key: str) -> bool:
        feature = self.feature(key)
        return self.crop(key).exists() and (feature is None or feature.exists())

    def keep(self, image: Image.Image, original: Image.Image | None, key: str) -> None:
        """The crop's place is where the original has most detail; without an original, the middle."""
        feature = self.feature(key)
        if feature is not None and self.features is not None and not feature.exists():
            self.features.save(image, feature)
        box = middle(image) if original is None else most_detailed(original)
        save_image(image.crop(box), self.crop(key), settings={"pixdec": __version__, "verb": "eval", "box": list(box)})

    def image(self, label: str, name: str) -> Path:
        folder = re.sub(r"[^\w.@+:-]+", "_", label)
        return self.out / IMAGES / folder / f"{Path(name).with_suffix('')}.png"

    def keep_image(self, image: Image.Image, label: str, name: str) -> None:
        if self.images:
            path = self.image(label, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(image, path, settings={"pixdec": __version__, "verb": "eval", "method": label})


def sets_of(rows: Sequence[Row], out: str | Path, features: Features) -> dict[str, dict[str, float | int]]:
    """method -> figures of its images as a set against the originals, by the features that a run kept; without methods
    that have none to compare with."""
    folder, found = Path(out) / FEATURES / features.name, dict[str, dict[str, float | int]]()
    for method in dict.fromkeys(row.method for row in rows):
        pairs = [(row.key, row.original) for row in rows if row.method == method and row.original is not None]
        if pairs:
            made, originals = ([folder / f"{key}.npy" for key in keys] for keys in zip(*pairs, strict=True))
            found[method] = {
                f"{name} ({features.label})" if "frechet" in name or "kid" in name else name: value
                for name, value in compare_sets(made, originals).items()
            }
    return found


def label_of(method: Method, source: Source) -> str:
    """A method's name in tables: with the step that the generator was stopped at."""
    return method.name if source.stop is None else f"{method.name} @{source.stop}"


def _task(
    method: Method,
    source: Source,
    shared: Mapping[str, object],
    metrics: Metrics,
    earlier: Mapping[str, Mapping[str, float]],
    place: Place,
) -> _Task:
    made_with = {**shared, **method.settings}
    key = key_of(made_with)
    known = earlier.get(key, {})
    label = label_of(method, source)
    wanted = {*(metric.name for metric in _metrics_of(label, source, metrics)), "seconds"}
    kept = place.holds(key) and (not place.images or place.image(label, source.name).exists())
    done = wanted <= set(known) and kept
    return _Task(method, label, made_with, key, known, done)


def _measured(
    task: _Task, source: Source, sample: Sample, lineup: Lineup, metrics: Metrics, place: Place, seed: int
) -> tuple[dict[str, float], dict[str, str]]:
    start = time.perf_counter()
    image = to_pil(task.method.enlarge(sample, seed))[0]  # which waits for the device
    seconds = time.perf_counter() - start
    low = None if sample.low is None else to_pil(sample.low)[0]
    shown = Shown(image, sample.original, low, sample.text, lineup.scale)
    figures, failed = measure(
        shown, [each for each in _metrics_of(task.label, source, metrics) if each.name not in task.known]
    )
    place.keep(image, sample.original, task.key)
    place.keep_image(image, task.label, source.name)
    return {"seconds": seconds, **task.known, **figures}, failed


def _metrics_of(label: str, source: Source, metrics: Metrics) -> list[Metric]:
    """Those that apply; to the original itself, those that compare it with nothing."""
    return metrics.of(source.has - {"original", "low"} if label == ORIGINAL else source.has)


def _chosen(row: Row, source: Source, metrics: Metrics) -> dict[str, float]:
    """The figures that are asked for, in their order, and the time."""
    names = [metric.name for metric in _metrics_of(row.method, source, metrics)]
    return {name: row.figures[name] for name in (*names, "seconds") if name in row.figures}


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return reason_of(error)


__all__ = ["CROPS", "FEATURES", "RESULTS", "evaluate", "label_of", "sets_of"]
