"""How far tiles, bfloat16 and eight bits take an image from the exact float32 decode of the whole, as Markdown.

python -m scripts.fidelity --images FOLDER --output docs/benchmarks/fidelity.md
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
import tyro
from torch import Tensor

from benchmarks.facts import lines_of, machine_facts
from benchmarks.speed import markdown_table
from pixdec.decoder import InferenceConfig, PixelDecoder
from pixdec.devices import best_device
from pixdec.encoder import ImageEncoder
from pixdec.inference.config import Quantize
from pixdec.inference.quantize import stored_bytes
from pixdec.io.files import replacing
from pixdec.io.images import READABLE, read_image, resize, to_tensor
from pixdec.latents import Latent

TILES = (512, 1024, 2048)  # pixels a side

HEAD = """# Fidelity of {model}

Made by

    {command}

{facts}

PSNR (mean, worst) and the largest difference of a value in levels of 255, against the exact path: float32, the whole
image at once. Over the first {count} photographs of `{folder}`, before images are rounded to 8 bits. Latents are the
bundled encoder's, of the photographs' middle squares scaled to a quarter of the output.
"""


def main(
    images: Path,
    output: Path,
    model: str = "pixdec-nano",
    sides: tuple[int, ...] = (1024, 2048),
    limit: int = 3,
    device: str | None = None,
) -> None:
    """Measure, and write the page.

    Args:
        images: a folder of photographs.
        output: the Markdown file to write.
        model: a decoder of the bundled encoder's latent space, by name or file.
        sides: of the square outputs, in pixels.
        limit: number of photographs for each side.
        device: such as cpu or cuda; without it the fastest there is.
    """
    place = torch.device(device) if device is not None else best_device()
    paths = sorted(each for each in images.iterdir() if each.suffix.lower() in READABLE)[:limit]
    if not paths:
        raise ValueError(f"--images {images}: no images here")
    encoder = ImageEncoder.from_pretrained(device="cpu")
    latents = {side: [_latent(path, side // 4, encoder) for path in paths] for side in sides}
    exact = PixelDecoder.from_pretrained(model, place, torch.float32)
    wholes = {side: [_decode(exact, latent, side) for latent in latents[side]] for side in sides}
    rows: list[tuple[str, ...]] = [("exact", _weights(exact), *("" for _ in sides))]
    for name, decoder, tile in _ways(model, exact, max(sides)):
        cells = list[str]()
        for side in sides:
            made = [] if tile and tile >= side else [_decode(decoder, each, tile or side) for each in latents[side]]
            cells.append(_cell(made, wholes[side]) if made else "")
        rows.append((name, _weights(decoder), *cells))
        print(" | ".join(rows[-1]), flush=True)
    facts = "\n".join(lines_of(machine_facts(place)))
    head = HEAD.format(
        model=model,
        command=shlex.join(["python", "-m", "scripts.fidelity", *sys.argv[1:]]),
        facts=facts,
        count=len(paths),
        folder=images.name,
    )
    table = markdown_table(("", "weights", *(f"{side}²" for side in sides)), rows)
    with replacing(output) as temporary:
        temporary.write_text("\n".join([head, *table]) + "\n", encoding="utf-8")


def _ways(model: str, exact: PixelDecoder, most: int) -> Iterator[tuple[str, PixelDecoder, int | None]]:
    """Name, decoder and tile side, one after the other; without those that this device cannot do."""
    yield from ((f"tiles of {tile}²", exact, tile) for tile in TILES if tile < most)
    yield "bfloat16", PixelDecoder.from_pretrained(model, exact.device, torch.bfloat16), None
    for kind in get_args(Quantize):
        dtype = torch.bfloat16 if kind == "fp8" else torch.float32
        try:
            decoder = PixelDecoder.from_pretrained(model, exact.device, dtype, config=InferenceConfig(quantize=kind))
            decoder.prepare()
        except ValueError as error:
            print(f"{kind}: not measured here: {error}", flush=True)
            continue
        yield kind, decoder, None


def _latent(path: Path, side: int, encoder: ImageEncoder) -> Latent:
    """Of the photograph's middle square at side x side pixels."""
    image = to_tensor(read_image(path))
    height, width = image.shape[2:]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    return encoder.encode(resize(image[:, :, top : top + least, left : left + least], side, side))


def _decode(decoder: PixelDecoder, latent: Latent, tile: int) -> Tensor:
    return decoder.decode(latent, output="pt", config=replace(decoder.config, tile=tile))


def _cell(made: list[Tensor], wholes: list[Tensor]) -> str:
    differences = [(a.double() - b.double()).abs() for a, b in zip(made, wholes, strict=True)]
    psnr = [float(-10 * each.square().mean().clamp_min(1e-20).log10()) for each in differences]
    most = 255 * max(float(each.max()) for each in differences)
    return f"{statistics.fmean(psnr):.1f} dB ({min(psnr):.1f}), {most:.1f}"


def _weights(decoder: PixelDecoder) -> str:
    return f"{stored_bytes(decoder.prepare()) / 2**20:,.1f} MiB"


if __name__ == "__main__":
    tyro.cli(main)
