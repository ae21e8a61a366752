"""The quality table of the bundled decoder, beside TAEF2 + Lanczos and TAEF2 + Real-ESRGAN x4plus.

    python -m scripts.compare --kodak FOLDER --photos FOLDER --taef2 FOLDER --cache FOLDER

Each photograph is shrunk (bicubic, ÷4) and goes through TAEF2 once, which stands for a generator's VAE; every method
enlarges that image four times. Images and figures are kept in the cache by what made them: with other weights only ours
are made again. Needs NIQE, ST-LPIPS, SSIMULACRA2 and Real-ESRGAN from the packages that the errors name.
"""

import hashlib
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from pixdec.decoder import PixelDecoder
from pixdec.devices import environment, has_bfloat16_units
from pixdec.evaluate import metrics
from pixdec.evaluate.autoencoders import fingerprint
from pixdec.evaluate.niqe import niqe
from pixdec.evaluate.photographs import crop_middle
from pixdec.evaluate.real_esrgan import RealESRGAN, enlarge, load_real_esrgan
from pixdec.evaluate.report import COLUMNS, Column, Report
from pixdec.evaluate.rows import append_row, key_of, read_rows
from pixdec.evaluate.sheets import save_sheet
from pixdec.evaluate.ssimulacra2 import ssimulacra2
from pixdec.evaluate.st_lpips import shared_vgg
from pixdec.io.files import replacing
from pixdec.io.images import READABLE, read_image, resize, to_pil, to_tensor
from pixdec.latents import Latent, get_space
from pixdec.models.taef2 import load_taef2
from pixdec.train.data.degrade import degrade

SCALE = 4
MOST = 1024  # pixels a side: larger photographs give their middle
SHOWN = ("kodim01", "kodim05", "kodim07", "kodim08")
ORIGINAL, LANCZOS, ESRGAN = "the photographs", "TAEF2 + Lanczos", "TAEF2 + Real-ESRGAN x4plus"
SECONDS = Column("core-seconds", 2)
FIGURES = ("psnr", "st_lpips", "ssimulacra2", "niqe", "color_drift", "pattern")


@dataclass(frozen=True)
class Photo:
    """A photograph and the small image that every method gets."""

    name: str
    original: Image.Image
    low: Image.Image

    @property
    def key(self) -> str:
        """A digest of the small image."""
        return hashlib.sha256(self.low.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Sources:
    """Where the photographs and what makes them small lie. `most`: so many of `photos`, and 12 of Kodak."""

    kodak: Path
    photos: Path
    taef2: Path
    most: int = 8


def read_photos(sources: Sources) -> Iterator[Photo]:
    """Kodak's and the others, cropped to multiples of 32 pixels and at most 1024 each way."""
    taef2 = load_taef2(sources.taef2)
    for folder, count in ((sources.kodak, 12), (sources.photos, sources.most)):
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in READABLE)[:count]:
            original = crop_middle(read_image(path), SCALE * 8)
            width, height = (min(MOST, side) for side in original.size)
            left, top = (original.width - width) // 2, (original.height - height) // 2
            original = original.crop((left, top, left + width, top + height))
            with torch.inference_mode():
                low = taef2.decode(taef2.encode(degrade(to_tensor(original), SCALE)))
            yield Photo(path.stem, original, to_pil(low)[0])


class Methods:
    """Name -> images of photographs, each made once: they are kept in `cache` with the time they took."""

    def __init__(self, cache: Path, model: str, steps: Sequence[int] = (1, 4), real_esrgan: Path | None = None):
        self.dtype = torch.bfloat16 if has_bfloat16_units() else torch.float32
        self.cache, self.real_esrgan, self._network = cache, real_esrgan, None
        self.decoder = PixelDecoder.from_pretrained(model, device="cpu", dtype=self.dtype)
        digest = fingerprint(self.decoder.network)[:12]
        self._makers: dict[str, tuple[str, Callable[[Photo], Image.Image]]] = {
            LANCZOS: ("lanczos", self._lanczos),
            ESRGAN: ("real-esrgan", self._esrgan),
        }
        for count in steps:
            name = f"TAEF2 + {self.decoder.model.name}, {count} step{'s' if count > 1 else ''}"
            self._makers[name] = (f"ours-{digest}-{count}", self._ours(count))

    @property
    def names(self) -> list[str]:
        return list(self._makers)

    def slug(self, name: str) -> str:
        """What made a method's images: its folder in the cache."""
        return self._makers[name][0]

    def make(self, name: str, photo: Photo) -> tuple[Image.Image, float]:
        """The enlarged image, and how many seconds of processor time it took."""
        slug, maker = self._makers[name]
        path = self.cache / slug / f"{photo.key}.png"
        noted = path.with_suffix(".seconds")
        if not (path.exists() and noted.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            image = maker(photo)
            noted.write_text(f"{time.process_time() - start:.3f}")
            with replacing(path) as temporary:
                image.save(temporary, format="PNG", compress_level=1)
        return read_image(path), float(noted.read_text())

    def _lanczos(self, photo: Photo) -> Image.Image:
        low = to_tensor(photo.low)
        return to_pil(resize(low, low.shape[2] * SCALE, low.shape[3] * SCALE, how="lanczos"))[0]

    def _esrgan(self, photo: Photo) -> Image.Image:
        if self._network is None:
            self._network: RealESRGAN | None = load_real_esrgan(self.real_esrgan).to(self.dtype)
            self._network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return to_pil(enlarge(self._network, to_tensor(photo.low)))[0]

    def _ours(self, steps: int) -> Callable[[Photo], Image.Image]:
        def make(photo: Photo) -> Image.Image:
            latent = Latent(to_tensor(photo.low), get_space("rgb"))
            return to_pil(self.decoder.decode(latent, steps=steps, output="pt") * 2 - 1)[0]

        return make


@torch.inference_mode()
def main(
    kodak: Path,
    photos: Path,
    taef2: Path,
    cache: Path,
    out: Path = Path("docs/benchmarks/compare"),
    model: str = "pixdec-nano",
    real_esrgan: Path | None = None,
    most: int = 8,
) -> None:
    """Writes OUT.md, OUT.json and a few OUT-*.webp. `real_esrgan`: x4plus's ncnn .bin file, if its package is not
    installed. `most`: photographs besides Kodak's twelve."""
    cache.mkdir(parents=True, exist_ok=True)
    methods = Methods(cache, model, real_esrgan=real_esrgan)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in (ORIGINAL, *methods.names)}
    names, earlier = list[str](), read_rows(cache / "rows.jsonl")
    for photo in read_photos(Sources(kodak, photos, taef2, most)):
        names.append(photo.name)
        pictures, truth = dict[str, Image.Image](), list[torch.Tensor]()
        for name in rows:
            image, seconds = (photo.original, 0.0) if name == ORIGINAL else methods.make(name, photo)
            pictures[name] = image
            digest = hashlib.sha256(image.tobytes() + photo.original.tobytes()).hexdigest()
            key = key_of({"images": digest, "figures": FIGURES})
            if key not in earlier:
                earlier[key] = measured(image, photo.original, truth)
                append_row(cache / "rows.jsonl", key, earlier[key], {"image": photo.name, "method": name})
            rows[name].append(earlier[key] | ({} if name == ORIGINAL else {"seconds": seconds}))
        print(photo.name, flush=True)
        if photo.name in SHOWN:
            shown = {name: picture for name, picture in pictures.items() if name != ORIGINAL}
            sheet = out.with_name(f"{out.name}-{photo.name}.webp")
            save_sheet(photo.original, shown, sheet, settings={"columns": list(pictures)})
    facts = {
        "command": f"`python -m scripts.compare --kodak … --photos … --taef2 … --most {most}`",
        "data": f"Kodak 1 to 12, and the first {most} of our held-out photographs (their middle, at most {MOST} pixels "
        f"a side); bicubic ÷{SCALE}, then through TAEF2",
        "machine": ", ".join(f"{name} {value}" for name, value in environment().items()),
        "core-seconds": f"processor time of one image, all cores together, {str(methods.dtype).removeprefix('torch.')}",
        "weights": f"{methods.decoder.model.name}, {fingerprint(methods.decoder.network)[:12]}",
    }
    write(Report("Four times larger, beside what people use", names, rows, facts, {"seconds": SECONDS}), out)


def measured(image: Image.Image, original: Image.Image, truth: list[torch.Tensor]) -> dict[str, float]:
    """All of FIGURES; `truth` holds the original's features from one call to the next. Of the original itself those
    that need no reference."""
    figures = {"niqe": niqe(image), "pattern": metrics.pattern(image)}
    if image is not original:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16_units()):
            truth[:] = truth or shared_vgg().features(to_tensor(original))
            figures["st_lpips"] = float(shared_vgg().distance(to_tensor(image), truth))
        figures["psnr"] = metrics.psnr(image, original)
        figures["ssimulacra2"] = ssimulacra2(image, original)
        figures["color_drift"] = metrics.color_drift(image, original)
    return figures


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t."""
    from scipy import stats

    if len(values) < 2:
        return math.inf
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Means and their 95 % intervals as lines of Markdown."""
    columns = {name: COLUMNS[name] for name in FIGURES} | {"seconds": SECONDS}
    lines = ["| method | " + " | ".join(column.heading for column in columns.values()) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for name, figures in rows.items():
        cells = list[str]()
        for metric, column in columns.items():
            values = [each[metric] for each in figures if metric in each]
            digits = column.digits
            cells.append(f"{statistics.fmean(values):.{digits}f} ± {interval(values):.{digits}f}" if values else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def write(report: Report, out: Path) -> None:
    """OUT.md with intervals and paired differences, OUT.json with everything."""
    ours = list(report.rows)[-1]
    pairs = zip(report.rows[ours], report.rows[ESRGAN], strict=True)
    differences = [{metric: mine[metric] - theirs[metric] for metric in mine} for mine, theirs in pairs]
    lines = [f"# {report.title}", "", *(f"- {name}: {fact}" for name, fact in report.facts.items())]
    lines += [f"- mean ± 95 % interval of the mean, n = {len(report.images)}", "", *table(report.rows), ""]
    lines += [f"Image by image, {ours} less {ESRGAN}:", "", *table({"difference": differences}), ""]
    for group in ("Kodak", "photographs"):
        chosen = [i for i, name in enumerate(report.images) if bool(re.match("kodim", name)) == (group == "Kodak")]
        if chosen:
            lines += [f"## {group} alone, n = {len(chosen)}", ""]
            lines += [*table({name: [figures[i] for i in chosen] for name, figures in report.rows.items()}), ""]
    lines += [f"## At 100 %\n\nThe original, then {', '.join(list(report.rows)[1:])}.", ""]
    lines += [f"![{name}]({out.name}-{name}.webp)" for name in SHOWN if name in report.images]
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".md", "\n".join(lines) + "\n"), (".json", report.to_json())):
        with replacing(out.with_name(out.name + suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
