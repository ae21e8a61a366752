"""Writes a trained autoencoder as the file that the package ships.

python -m scripts.export_models --autoencoder RUN
"""

from pathlib import Path

import torch

from pixdec.weights.catalog import BUNDLED
from pixdec.weights.load import load_autoencoder, save_autoencoder
from scripts.train_tiny import NAME


def main(autoencoder: Path, folder: Path = BUNDLED) -> None:
    """Writes what the run in the folder `autoencoder` has made, in float16, as pixdec-tiny into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny = load_autoencoder(autoencoder / NAME)
    path = folder / "pixdec-tiny.safetensors"
    save_autoencoder(tiny, path, name="pixdec-tiny", licence="Apache-2.0", dtype=torch.float16)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
