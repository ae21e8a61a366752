"""pixdec decodes latents into pixels with diffusion instead of a VAE.

    from pixdec import ImageEncoder, PixelDecoder

The names below are imported when they are first used, so that `import pixdec` costs nothing and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixdec.decoder import PixelDecoder as PixelDecoder
    from pixdec.encoder import ImageEncoder as ImageEncoder
    from pixdec.inference.config import InferenceConfig as InferenceConfig
    from pixdec.latents import Latent as Latent
    from pixdec.latents import LatentSpace as LatentSpace
    from pixdec.latents import get_space as get_space

__version__ = "0.1.0"

_HOMES = {
    "ImageEncoder": "pixdec.encoder",
    "InferenceConfig": "pixdec.inference.config",
    "Latent": "pixdec.latents",
    "LatentSpace": "pixdec.latents",
    "PixelDecoder": "pixdec.decoder",
    "get_space": "pixdec.latents",
}
__all__ = ["ImageEncoder", "InferenceConfig", "Latent", "LatentSpace", "PixelDecoder", "__version__", "get_space"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'pixdec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
