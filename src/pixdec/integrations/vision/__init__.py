"""Latents of vision encoders: DINOv2 with registers, as RAE and DiT-DH have them, and SigLIP-2, as Scale-RAE has them.

    from pixdec.integrations.vision import VisionEncoder, generate

    latent = VisionEncoder.from_pretrained("siglip").encode(image)  # a `Latent` for a decoder of that space
    images = generate(generator, decoder, ["a red fox"], stop_after=0.2)  # whatever yields (latent, sigma) pairs

`encoders` makes latents of images, `rae` converts to and from diffusers' `AutoencoderRAE`, `generators` stops anything
that denoises in one of these spaces early and decodes what it holds. Only loading an encoder needs transformers.
"""

from pixdec.integrations.vision.encoders import VisionEncoder
from pixdec.integrations.vision.generators import LatentGenerator, capture, generate
from pixdec.integrations.vision.rae import latents_from_rae, latents_to_rae, read_statistics

__all__ = [
    "LatentGenerator",
    "VisionEncoder",
    "capture",
    "generate",
    "latents_from_rae",
    "latents_to_rae",
    "read_statistics",
]
