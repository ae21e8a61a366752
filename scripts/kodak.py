"""The quality table of the bundled models: each image bicubic ÷4, encoded, decoded four times larger, against the
original.

    python -m scripts.kodak --images FOLDER --taef2 FOLDER --out docs/benchmarks/kodak

Writes OUT.md and OUT.json, OUT-roundtrip.md and .json (the tiny autoencoder against TAEF2 at full size), and crops of
each image.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pixdec.decoder import PixelDecoder
from pixdec.encoder import TINY_REFINE, TINY_SPACE, ImageEncoder
from pixdec.evaluate.metrics import colour_drift, grid, psnr, spectrum_error, ssim
from pixdec.evaluate.report import Column, Report, measure
from pixdec.io.images import read_image, resize, save_image, to_pil, to_tensor
from pixdec.latents import get_space
from pixdec.models.taef2 import load_taef2
from pixdec.weights.load import load_autoencoder

SCALE = 4
CROP = 192  # pixels a side, shown doubled in the comparison pictures


@torch.no_grad()
def main(
    images: Path,
    taef2: Path,
    out: Path,
    model: str = "pixdec-nano",
    autoencoder: Path | None = None,
    steps: tuple[int, ...] = (1, 4, 8),
    limit: int | None = None,
) -> None:
    """Measures `model` at each number of `steps`, beside two baselines."""
    decoder = PixelDecoder.from_pretrained(model, device="cpu", dtype=torch.float32)
    tiny, teacher = load_autoencoder(autoencoder), load_taef2(taef2)
    encoder = ImageEncoder(get_space(TINY_SPACE), tiny, "pixdec-tiny", TINY_REFINE)

    def round_trip(images: Tensor) -> Tensor:
        return encoder.decode(encoder.encode(images).tensor)

    patch = decoder.model.network.settings.backbone.patch
    paths = sorted(images.glob("*.png"))[:limit]

    def decode(count: int) -> Callable[[Tensor], Tensor]:
        return lambda low: decoder.decode(encoder.encode(low), steps=count, output="pt") * 2 - 1

    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "TAEF2 + Lanczos": lambda low: _enlarge(teacher.decode(teacher.encode(low))),
        "tiny + Lanczos": lambda low: _enlarge(round_trip(low).clamp(-1, 1)),
        **{f"{decoder.model.name}, {n} step{'s' if n > 1 else ''}": decode(n) for n in steps},
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for path in paths:
        original = read_image(path)
        low = to_tensor(to_pil(resize(to_tensor(original), original.height // SCALE, original.width // SCALE))[0])
        preview = to_pil(round_trip(low))[0]
        results: dict[str, Image.Image] = {}
        for name, method in methods.items():
            start = time.perf_counter()
            results[name] = to_pil(method(low))[0]
            seconds = time.perf_counter() - start
            figures = measure(results[name], original, low=preview, scale=SCALE)
            rows[name].append({**figures, "grid": grid(results[name], patch), "seconds": seconds})
        _save_crops(original, results, out.with_name(f"{out.name}-{path.stem}.webp"))
    facts = {
        "command": "`make kodak`",
        "data": (
            f"{len(paths)} images of {images.name}, bicubic antialiased ÷{SCALE}, "
            "encoded by the encoder that belongs to the decoder"
        ),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32",
        "consistency": "against the tiny decode of the same latent",
    }
    names = [path.stem for path in paths]
    columns = {"grid": Column("grid of patches → 0", 3)}
    Report(f"Four times larger: {decoder.model.name} on Kodak", names, rows, facts, columns).write(out)
    round_trips: dict[str, Callable[[Tensor], Tensor]] = {
        "TAEF2": lambda x: teacher.decode(teacher.encode(x)),
        "pixdec-tiny": round_trip,
        "pixdec-tiny, not refined": tiny,
    }
    trips: dict[str, list[dict[str, float]]] = {name: [] for name in round_trips}
    for path in paths:
        original = read_image(path)
        for name, trip in round_trips.items():
            image = to_pil(trip(to_tensor(original)))[0]
            figures = {"psnr": psnr(image, original), "ssim": ssim(image, original)}
            figures |= {
                "spectrum_error": spectrum_error(image, original),
                "colour_drift": colour_drift(image, original),
            }
            trips[name].append(figures)
    Report("Round trip at full size on Kodak", names, trips, facts).write(out.with_name(f"{out.name}-roundtrip"))


def _enlarge(images: Tensor) -> Tensor:
    return resize(images, images.shape[2] * SCALE, images.shape[3] * SCALE, how="lanczos")


def _save_crops(original: Image.Image, results: dict[str, Image.Image], path: Path) -> None:
    """One row, each method's middle crop at twice the size (nearest), the original last."""
    pictures = [*results.values(), original]
    left, top = (original.width - CROP) // 2, (original.height - CROP) // 2
    row = Image.new("RGB", (2 * CROP * len(pictures), 2 * CROP))
    for i, picture in enumerate(pictures):
        crop = picture.crop((left, top, left + CROP, top + CROP))
        row.paste(crop.resize((2 * CROP, 2 * CROP), Image.Resampling.NEAREST), (2 * CROP * i, 0))
    save_image(row, path, settings={"columns": [*results, "original"]})


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
