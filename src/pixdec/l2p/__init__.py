"""Latent generators turned into pixel generators (L2P, arXiv 2605.12013): the middle of a pretrained transformer stays,
its ends learn to read and draw pixels.

    from pixdec.l2p import PixelPipeline

    pipe = PixelPipeline.from_pretrained("model-1k-merge.safetensors")
    pipe("an origami fox", num_inference_steps=30, guidance_scale=2.0).images[0].save("fox.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixdec.l2p.model import PixelModel as PixelModel
    from pixdec.l2p.model import PixelSettings as PixelSettings
    from pixdec.l2p.model import network_from_reference as network_from_reference
    from pixdec.l2p.pixel_pipeline import PixelPipeline as PixelPipeline
    from pixdec.l2p.transfer import merge as merge
    from pixdec.l2p.transfer import transplant as transplant
    from pixdec.l2p.weight_files import Weights as Weights
    from pixdec.l2p.weight_files import load_model as load_model
    from pixdec.l2p.weight_files import open_weights as open_weights
    from pixdec.l2p.weight_files import save_weights as save_weights

_HOMES = {
    "weight_files": ("Weights", "load_model", "open_weights", "save_weights"),
    "model": ("PixelModel", "PixelSettings", "network_from_reference"),
    "pixel_pipeline": ("PixelPipeline",),
    "transfer": ("merge", "transplant"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module 'pixdec.l2p' has no attribute {name!r}")
