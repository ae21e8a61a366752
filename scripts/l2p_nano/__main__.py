"""Train the nano pair: `python -m scripts.l2p_nano RUN`. The same command again goes on; with --ablate it trains and
measures the variations too. What was measured stands in RUN/results.json; `scripts.l2p_nano.curves` draws it.

The whole recipe in two minutes, to see that it runs: --scenes 100 --source-steps 20 --captions 20 --steps 20
--more 20 --count 3 --ablate 2.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from pixdec.l2p.images import ImageSource
from scripts.l2p_nano.source import NanoSource, sheet, train_source
from scripts.l2p_nano.transfer import (
    FILE,
    VARIATIONS,
    Drawn,
    make_shards,
    opened_source,
    picture,
    pixels_of,
    record,
    transfer,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=4000, help="drawn scenes that the source learns from")
    parser.add_argument("--source-steps", type=int, default=4400)
    parser.add_argument("--captions", type=int, default=600, help="of which the source makes two images each")
    parser.add_argument("--steps", type=int, default=2000, help="of the pixel model")
    parser.add_argument("--more", type=int, default=0, help="steps of it then, with fresh noise, into RUN/more")
    parser.add_argument("--count", type=int, default=100, help="of held-out captions that are measured")
    parser.add_argument("--ablate", type=int, default=0, help="steps of each variation; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder: Path = given.folder
    train_source(folder / "source", given.source_steps, given.scenes)
    source = NanoSource.from_pretrained(folder / "source")
    record(folder, "drawn", Drawn(source), given.count)
    record(folder, "source", source, given.count)
    make_shards(folder / "shards", opened_source(folder), given.captions, 3)
    pixels = pixels_of(transfer(folder, "pixels", VARIATIONS["shallow 1"], given.steps))
    record(folder, "pixels", pixels, given.count)
    for name, made in (("source", source), ("pixels", pixels)):
        sheet(made, 6).save(folder / f"{name}.png")
    picture(source, pixels, folder / "pair.webp")
    if given.more:
        pipe = transfer(folder, "more", VARIATIONS["fresh noise"], given.more, folder / "pixels" / FILE)
        record(folder, "more", pixels_of(pipe), given.count)
    if given.ablate:
        drawn: partial[ImageSource] = partial(Drawn, source)
        make_shards(folder / "real", drawn, given.captions, 3)
        for name, variation in VARIATIONS.items():
            pipe = transfer(folder, f"{name} short", variation, given.ablate)
            made = pixels_of(pipe, variation.changes.get("shift", 3.0))
            record(folder, f"{name}, {given.ablate} steps", made, given.count)


if __name__ == "__main__":
    main()
