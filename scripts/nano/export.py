"""Writes the bundled decoder: `python -m scripts.nano.export STATE [STATE …] OUT`, the mean of the states' weights.

The mean of one state after `shape` and one after `look` was preferred to either by eye (docs/bundled-models.md). A
state that is named twice counts twice."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pixdec.models.nano import Nano, NanoSettings
from pixdec.weights.load import save_decoder


def export(files: Sequence[Path], out: Path) -> None:
    """The weights in float16, with all that loading them needs."""
    states = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    network = Nano(NanoSettings(**states[0]["settings"]))
    averages = [state["average"] for state in states]
    network.load_state_dict({name: torch.stack([each[name] for each in averages]).mean(0) for name in averages[0]})
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
    *given, target = map(Path, sys.argv[1:])
    export(given, target)
