"""Decodes in tiles beside the same decode as a whole: how far apart they are; as Markdown.

python -m pixdec.bench.tiles --image PHOTO --sides 1024 2048 4096 > docs/benchmarks/tiles.md
"""

import shlex
import sys
from pathlib import Path

import torch

from pixdec.bench.machine import library_versions, machine_facts
from pixdec.bench.ours import DTYPES
from pixdec.bench.settings import Dtype
from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.io.images import read_image, resize, to_tensor

HEAD = """# Tiles beside the whole image

Made by `{command}`.

{model}, {dtype}, {steps} steps; the latent is the bundled encoder's, of the photograph's middle square scaled to a
quarter of the output. PSNR and the largest difference of a value, in levels of 255, are between the decode in tiles and
that of the whole image, before both are rounded to 8 bits.

- {machine}
- {versions}

| output | tile | tiles | PSNR | largest difference |
|---|---:|---:|---:|---:|"""


def main(
    image: Path,
    sides: tuple[int, ...] = (1024, 2048),
    tiles: tuple[int, ...] = (512, 1024, 2048),
    model: str = "pixdec-nano",
    steps: int | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Prints a table of outputs of `sides` x `sides` pixels, each in `tiles` that are smaller, as they are made."""
    decoder = PixelDecoder.from_pretrained(model, device, None if dtype is None else DTYPES[dtype])
    encoder, photograph = ImageEncoder.from_pretrained(decoder.space.name, device=device), read_image(image)
    side = min(photograph.size)
    left, top = (photograph.width - side) // 2, (photograph.height - side) // 2
    square = to_tensor(photograph.crop((left, top, left + side, top + side)))
    facts = {"machine": machine_facts(decoder.device), "versions": library_versions()}
    print(
        HEAD.format(
            command=shlex.join(["python", "-m", "pixdec.bench.tiles", *sys.argv[1:]]),
            model=decoder.model.name,
            dtype=str(decoder.dtype).removeprefix("torch."),
            steps=len(decoder.model.times) - 1 if steps is None else steps,
            **{name: ", ".join(f"{key} {value}" for key, value in fact.items()) for name, fact in facts.items()},
        ),
        flush=True,
    )
    for output in sides:
        latent = encoder.encode(resize(square, output // decoder.scale, output // decoder.scale, how="lanczos"))
        images, counts = dict[int, torch.Tensor](), dict[int, int]()
        for tile in (output, *(tile for tile in sorted(tiles, reverse=True) if tile < output)):
            decoder.tile = tile
            images[tile] = decoder.decode(latent, steps=steps, output="pt")
            tiling = decoder.runner.arrange(output, output, 1).tiling
            counts[tile] = 1 if tiling is None else len(list(tiling))
        whole = images.pop(output)
        for tile, made in images.items():
            difference = (made - whole).double()
            psnr = -10 * difference.square().mean().log10()
            row = (
                f"{output}²",
                f"{tile}²",
                str(counts[tile]),
                f"{psnr:.1f} dB",
                f"{255 * difference.abs().max():.1f}",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
