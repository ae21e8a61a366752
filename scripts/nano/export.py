"""Writes the bundled decoder: `python -m scripts.nano.export STATE OUT`."""

import sys
from pathlib import Path

import torch

from pixdec.models.nano import Nano, NanoSettings
from pixdec.weights.load import save_decoder


def export(file: Path, out: Path) -> None:
    """The averaged weights of a state of `scripts.nano.train` in float16, with all that loading them needs."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    network = Nano(NanoSettings(**state["settings"]))
    network.load_state_dict(state["average"])
    save_decoder(
        network,
        out,
        name="pixdec-nano",
        space="rgb",
        version="nano",
        licence="Apache-2.0",
        dtype=torch.float16,
    )


if __name__ == "__main__":
    export(*map(Path, sys.argv[1:]))
