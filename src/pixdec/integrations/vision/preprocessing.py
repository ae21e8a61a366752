"""What makes a latent of each vision-encoder space: the encoder, the size of its input, its grid.

The released decoders of these spaces were trained on one grid each, so both have fixed sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pixdec.latents import LatentSpace, get_space

PATCH = 14  # pixels to a token's side, in both encoders


@dataclass(frozen=True)
class Recipe:
    """How an image becomes the tokens of one space.

    `hub_id` is the encoder, `model_type` what its configuration calls it, `model_class` its class in transformers.
    `grid` tokens each way; `mean` and `std` of its preprocessing, for images in [0,1]. `antialias`: whether the bicubic
    resizing to its input is antialiased: the RAE's is not, Scale-RAE's is, and the decoders learnt with it.
    """

    hub_id: str
    model_type: str
    model_class: str
    grid: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    antialias: bool

    @property
    def input_side(self) -> int:
        """Side of the image that the encoder sees, in pixels: 448 for DINOv2, 224 for SigLIP-2."""
        return self.grid * PATCH


# ImageNet's mean and std, and 0.5: `image_mean` and `image_std` in the preprocessor_config.json of the two encoders.
_RECIPES = {
    "dinov2": Recipe(
        hub_id="facebook/dinov2-with-registers-base",
        model_type="dinov2_with_registers",
        model_class="Dinov2WithRegistersModel",
        grid=32,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        antialias=False,
    ),
    "siglip": Recipe(
        hub_id="google/siglip2-so400m-patch14-224",
        model_type="siglip_vision_model",
        model_class="SiglipVisionModel",
        grid=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        antialias=True,
    ),
}


def recipe_of(space: str) -> Recipe:
    """The recipe of "dinov2" or "siglip".

    Raises:
        ValueError: another space, whose latents come from a VAE.
    """
    if space not in _RECIPES:
        raise ValueError(
            f"{get_space(space).name} latents do not come from a vision encoder; expected {' or '.join(_RECIPES)}, "
            "or encode with pixdec.ImageEncoder"
        )
    return _RECIPES[space]


def nominal_side(space: LatentSpace) -> int:
    """Side in pixels of the image that a latent of the space stands for: 512 for DINOv2, 256 for SigLIP-2."""
    return recipe_of(space.name).grid * space.factor


def check_grid(latent: Tensor, space: LatentSpace) -> None:
    """Refuse a latent (B,C,h,w) of a vision-encoder space on another grid than its decoders know; others may pass.

    Raises:
        ValueError: the grid is not 32x32 (DINOv2) or 16x16 (SigLIP-2).
    """
    if space.name not in _RECIPES:
        return
    grid, (height, width) = _RECIPES[space.name].grid, latent.shape[2:]
    if (height, width) != (grid, grid):
        side = nominal_side(space)
        raise ValueError(
            f"{space.name} latent on a grid of {height}x{width}; expected {grid}x{grid}, an image of {side}x{side} "
            "pixels: take the encoder or generator of that size"
        )
