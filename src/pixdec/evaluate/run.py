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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from pixdec import __version__
from pixdec.evaluate.methods import ORIGINAL, Lineup, Method
from pixdec.evaluate.metrics.table import Metrics, Shown, five_crops, measure
from pixdec.evaluate.photographs import Source
from pixdec.evaluate.report.sheets import SIDE, most_detailed
from pixdec.evaluate.results import Broken, Row, append_result, read_results
from pixdec.evaluate.sets import Features, compare_sets
from pixdec.io.files import one_line
from pixdec.io.images import save_image, to_pil
from pixdec.io.json_lines import key_of

RESULTS, CROPS, FEATURES, IMAGES = "results.jsonl", "crops", "features", "images"  # in the output folder
# Of one image, and no reason not to go on with the next.
FAILURES = (ValueError, OSError, MemoryError, torch.OutOfMemoryError)


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
            yield Broken(source.name, None, one_line(error))
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
        original = key_of({**shared, "method": ORIGINAL}) if "original" in source.has else None
        whole, sample = original is None or place.holds(original), None
        for method in (each for each in lineup.methods if source.clean or each.takes_noise):
            made_with, label = {**shared, **method.settings}, label_of(method, source)
            key = key_of(made_with)
            known = earlier.get(key, {})
            # To the original itself, metrics apply that compare it with nothing.
            wanted = metrics.of(source.has - {"original", "low"} if method.name == ORIGINAL else source.has)
            names = [*(metric.name for metric in wanted), "seconds"]
            row = Row(source.name, label, known, {}, key, original, cropped, earlier=True)
            if not (whole and known.keys() >= set(names) and place.holds(key, label, source.name)):
                try:
                    sample = sample or source.load()
                    if original is not None and not whole:
                        assert sample.original is not None, "the source has one"
                        place.keep(sample.original, sample.original, original, ORIGINAL, source.name)
                        whole = True
                    start = time.perf_counter()
                    image = to_pil(method.enlarge(sample, seed))[0]  # which waits for the device
                    seconds = time.perf_counter() - start
                    low = None if sample.low is None else to_pil(sample.low)[0]
                    shown = Shown(image, sample.original, low, sample.text, lineup.scale)
                    figures, failed = measure(shown, [metric for metric in wanted if metric.name not in known])
                    place.keep(image, sample.original, key, label, source.name)
                except FAILURES as error:
                    yield Broken(source.name, None if sample is None else label, one_line(error))
                    if sample is None:
                        break
                    continue
                row = replace(row, figures={"seconds": seconds, **known, **figures}, failed=failed, earlier=False)
                append_result(place.out / RESULTS, row, made_with)
            yield replace(row, figures={name: row.figures[name] for name in names if name in row.figures})


@dataclass(frozen=True)
class Place:
    """Where a run keeps what it makes of each image besides figures: a crop, features for figures of sets, and if
    wanted the image itself, images/METHOD/NAME.png."""

    out: Path
    features: Features | None = None
    images: bool = False

    def files(self, key: str, label: str, name: str) -> tuple[Path, Path | None, Path | None]:
        """Crop, features, image."""
        folder = self.out / IMAGES / re.sub(r"[^\w.@+:-]+", "_", label)
        return (
            self.out / CROPS / f"{key}.webp",
            self.out / FEATURES / self.features.name / f"{key}.npy" if self.features else None,
            folder / f"{Path(name).with_suffix('')}.png" if self.images and label else None,
        )

    def holds(self, key: str, label: str = "", name: str = "") -> bool:
        """All of them."""
        return all(file is None or file.exists() for file in self.files(key, label, name))

    def keep(self, image: Image.Image, original: Image.Image | None, key: str, label: str, name: str) -> None:
        """The crop's place is where the original has most detail; without an original, the middle."""
        crop, feature, whole = self.files(key, label, name)
        if self.features is not None and feature is not None and not feature.exists():
            self.features.save(image, feature)
        box = five_crops(*image.size, SIDE)[-1] if original is None else most_detailed(original)
        made = {"pixdec": __version__}
        save_image(image.crop(box), crop, settings={**made, "verb": "eval", "box": list(box)})
        if whole is not None:
            whole.parent.mkdir(parents=True, exist_ok=True)
            save_image(image, whole, settings={**made, "verb": "eval", "method": label})


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
