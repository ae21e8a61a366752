"""What a latent is: its space, its noise level, its file, and how to recognise one that is not in the right form."""

from pixdec.latents.latent import SUFFIXES, Latent, latent_settings
from pixdec.latents.space import SPACES, LatentSpace, Statistics, get_space, noise_levels
from pixdec.latents.validation import check_latent

__all__ = [
    "SPACES",
    "SUFFIXES",
    "Latent",
    "LatentSpace",
    "Statistics",
    "check_latent",
    "get_space",
    "latent_settings",
    "noise_levels",
]
