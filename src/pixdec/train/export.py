"""Writes trained runs as the files that the package ships.

python -m pixdec.train.export --autoencoder RUN --decoder RUN
"""

from pathlib import Path

import torch

from pixdec.train.autoencoder import NAME
from pixdec.train.recipes import NANO_TIMES
from pixdec.weights.catalog import BUNDLED
from pixdec.weights.load import load_autoencoder, load_decoder, save_autoencoder, save_decoder


def main(autoencoder: Path | None = None, decoder: Path | None = None, folder: Path = BUNDLED) -> None:
    """Exports the weights of either run's folder, or of both, as float16 safetensors into `folder`. `decoder` may be
    the run of a decoder or of a student."""
    folder.mkdir(parents=True, exist_ok=True)
    if autoencoder is not None:
        tiny = load_autoencoder(autoencoder / NAME)
        path = folder / "pixdec-tiny.safetensors"
        save_autoencoder(tiny, path, name="pixdec-tiny", licence="Apache-2.0", dtype=torch.float16)
    if decoder is not None:
        files = [decoder / f"{stage}.safetensors" for stage in ("student", "decoder")]
        found = next((file for file in files if file.exists()), None)
        if found is None:
            raise ValueError(f"{decoder}: no {' or '.join(file.name for file in files)} here; has the run ended?")
        save_decoder(
            load_decoder(found).network,
            folder / "pixdec-nano.safetensors",
            name="pixdec-nano",
            space="flux2",
            version="nano",
            licence="Apache-2.0",
            times=NANO_TIMES,
            dtype=torch.float16,
        )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
