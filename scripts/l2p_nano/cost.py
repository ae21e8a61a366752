"""What a step costs, the nano pixel model beside its source and the decoding of its latent, against the image's side:
`python -m scripts.l2p_nano.cost 256 512 1024 2048 4096`. Each figure is of a process of its own: seconds of the
processor, and the peak of memory above what it had before."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from time import process_time

import torch

from pixdec.encoder import ImageEncoder
from pixdec.l2p.model import BAND_PIXELS, PixelModel, PixelSettings
from pixdec.l2p.sources.z_image import NANO
from scripts.l2p_nano.source import estimate
from scripts.l2p_nano.transfer import NARROW

WAYS = ("pixels", "source", "autoencoder")


def patch_of(side: int) -> int:
    """So that an image has 64 x 64 tokens at most."""
    return max(16, side // 64)


def work(way: str, side: int) -> Callable[[], object]:
    """One step, or one decoding."""
    config = {**NANO, "axes_lens": [128, max(64, side // 16), max(64, side // 16)]}
    text, t = [torch.zeros(9, NANO["cap_feat_dim"])], torch.ones(1)
    if way == "pixels":
        model = PixelModel(PixelSettings("z-image", config, patch_of(side), NARROW)).to_empty(device="cpu").eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        x = torch.randn(1, 3, side, side)
        return lambda: model(x, t, text, band=BAND_PIXELS)
    if way == "source":
        from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel

        model = ZImageTransformer2DModel(**{**config, "in_channels": 32}).eval()  # pyright: ignore[reportArgumentType]
        x = torch.randn(1, 32, side // 8, side // 8)
        return lambda: estimate(model, x, t, text)
    encoder = ImageEncoder.from_pretrained(device="cpu")
    latent = torch.randn(1, 128, side // 16, side // 16)
    return lambda: encoder.decode(latent)


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        torch.set_num_threads(1)
        with torch.inference_mode():
            done, small = work(sys.argv[2], int(sys.argv[3])), work(sys.argv[2], 256)
            small()
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, process_time()
            done()
            taken = process_time() - began
        print(json.dumps([taken, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20]))
        return
    print("| image | patch | pixel model | its source | decoding, once |\n|---|---|---|---|---|")
    for side in map(int, sys.argv[1:]):
        cells = [f"{side}²", str(patch_of(side))]
        for way in WAYS:
            command = [sys.executable, "-m", "scripts.l2p_nano.cost", "one", way, str(side)]
            seconds, memory = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            cells.append(f"{seconds:.2f} s, {memory:.2f} GiB")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
