"""Writes trained runs as the files that the package ships.

python -m pixdec.train.export --autoencoder RUN/state.pt --decoder RUN/state.pt
"""

from pathlib import Path

import torch

from pixdec.models.pid import PiD
from pixdec.models.tiny_vae import TinyVAE
from pixdec.train.autoencoder import AutoencoderRecipe
from pixdec.train.decoder import DecoderRecipe
from pixdec.train.loop import averaged_weights
from pixdec.weights.catalog import BUNDLED
from pixdec.weights.load import save_autoencoder, save_decoder

NANO_TIMES = (0.999, 0.3, 0.15, 0.06, 0.0)


def main(autoencoder: Path | None = None, decoder: Path | None = None, folder: Path = BUNDLED) -> None:
    """Exports the averaged weights of either run, or of both, as float16 safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if autoencoder is not None:
        tiny = TinyVAE(AutoencoderRecipe().network)
        tiny.load_state_dict(averaged_weights(autoencoder))
        path = folder / "pixdec-tiny.safetensors"
        save_autoencoder(tiny, path, name="pixdec-tiny", licence="Apache-2.0", dtype=torch.float16)
    if decoder is not None:
        nano = PiD(DecoderRecipe().network)
        nano.load_state_dict(averaged_weights(decoder))
        save_decoder(
            nano,
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
