"""Train the nano pair: `python -m scripts.l2p_nano RUN`. The same command again goes on."""

import argparse
from pathlib import Path

import torch

from scripts.l2p_nano.source import train_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3000, help="of the source")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train_source(given.folder / "source", given.steps)


if __name__ == "__main__":
    main()
