"""Writes trained runs as the files that the package ships.

python -m scripts.export_models --autoencoder RUN --decoder RUN --student RUN
"""

from pathlib import Path

import torch

from pixdec.train.recipes import NANO_TIMES
from pixdec.weights.catalog import BUNDLED
from pixdec.weights.load import load_autoencoder, load_decoder, save_autoencoder, save_decoder
from scripts.train_tiny import NAME

NANO_SHARE = 0.7


def main(
    autoencoder: Path | None = None,
    decoder: Path | None = None,
    student: Path | None = None,
    share: float = NANO_SHARE,
    folder: Path = BUNDLED,
) -> None:
    """Exports what the runs in these folders have made as float16 safetensors into `folder`: the autoencoder, the
    decoder. With `student`, the decoder's weights go a share of the way to those of its student, (1−share)·decoder +
    share·student: sharper than the one, without the other's grid (network interpolation, Wang et al. 2018, ESRGAN,
    section 3.4)."""
    folder.mkdir(parents=True, exist_ok=True)
    if autoencoder is not None:
        tiny = load_autoencoder(autoencoder / NAME)
        path = folder / "pixdec-tiny.safetensors"
        save_autoencoder(tiny, path, name="pixdec-tiny", licence="Apache-2.0", dtype=torch.float16)
    if decoder is not None:
        network = load_decoder(decoder / "decoder.safetensors").network
        if student is not None:
            goal = load_decoder(student / "student.safetensors").network.state_dict()
            network.load_state_dict({key: w.lerp(goal[key], share) for key, w in network.state_dict().items()})
        save_decoder(
            network,
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
