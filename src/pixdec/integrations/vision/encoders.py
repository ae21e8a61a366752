"""`VisionEncoder`: an image becomes a latent of DINOv2 with registers or of SigLIP-2.

B images · S side of the encoder's input (448, 224) · N tokens · C channels (768, 1152) · h,w their grid (32, 16)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixdec.integrations.vision.preprocessing import PATCH, Recipe, nominal_side, recipe_of
from pixdec.io.hub import loading_reason
from pixdec.io.images import resize, to_tensor
from pixdec.io.quiet import library
from pixdec.latents import Latent, LatentSpace, Statistics, get_space

if TYPE_CHECKING:
    from PIL.Image import Image


class VisionEncoder:
    """An encoder of the space "dinov2" or "siglip".

    Attributes: `space`; `model`, the vision part of the transformers model; `statistics`, the RAE's (DINOv2 only).
    """

    def __init__(self, space: str, model: nn.Module, statistics: Statistics | None = None):
        """model: `Dinov2WithRegistersModel` or `SiglipVisionModel` of transformers (a whole `SiglipModel` will do),
        also the `encoder` of an `AutoencoderRAE`. It is put into evaluation mode, and not changed otherwise.
        statistics: of the RAE, (768, 32, 32): `read_statistics(file)` or `Statistics.from_vae(rae)`. SigLIP-2: none.

        Raises ValueError if the model is not the space's encoder, or the statistics are missing or not of its grid.
        """
        recipe = recipe_of(space)
        config: Any = model.config
        _check_config(config, get_space(space), recipe)
        _check_statistics(statistics, get_space(space), recipe)
        self.space, self.statistics = get_space(space), statistics
        vision: nn.Module = getattr(model, "vision_model", model)
        self.model = vision.eval().requires_grad_(False)
        self._recipe = recipe

    @classmethod
    def from_pretrained(
        cls,
        space: str,
        name_or_path: str | Path | None = None,
        *,
        statistics: Statistics | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The space's encoder by hub id or folder, loaded by transformers. None is the one that the decoders were
        trained with: facebook/dinov2-with-registers-base, google/siglip2-so400m-patch14-224. `dtype` None is float32.

        Raises ValueError if transformers is missing, nothing can be loaded from there, weights are missing in it, or as
        the constructor does.
        """
        recipe, target = recipe_of(space), get_space(space)
        _check_statistics(statistics, target, recipe)  # before a download
        return cls(space, _load(target, recipe, name_or_path or recipe.hub_id, dtype).to(device), statistics)

    @torch.inference_mode()
    def encode(self, images: Tensor | Image | Sequence[Image]) -> Latent:
        """Square images -> a clean `Latent`, float32 on the CPU: (B,768,32,32) of DINOv2, (B,1152,16,16) of SigLIP-2.

        images: (B,3,H,H) in [-1,1], or one or more RGB PIL images. Whatever their size, they stand for the space's
        nominal one, 512x512 or 256x256 pixels: larger ones are first reduced to it, bicubic and antialiased, as the
        decoders' training data were. Then the space's own bicubic resizing to 448 or 224 pixels.

        DINOv2: patch tokens (CLS and registers dropped) through the final LayerNorm without its affine part, then
        (z − mean) / std with the RAE's statistics. SigLIP-2: patch tokens before `post_layernorm`, then a LayerNorm
        without affine part, eps 1e-6.

        Raises ValueError for images that are not square, of another shape or of integers.
        """
        place = next(self.model.parameters()).device
        if isinstance(images, Tensor):
            pixels = self._input(images.to(place))
        else:
            each = list(images) if isinstance(images, Sequence) else [images]
            if not each:
                raise ValueError("no images; expected one or more")
            pixels = torch.cat([self._input(to_tensor(image).to(place)) for image in each])
        raw = self.space.unpack(self._tokens(pixels), self._recipe.grid, self._recipe.grid)
        return Latent(self.space.normalize(raw, self.statistics).cpu(), self.space)

    def _input(self, images: Tensor) -> Tensor:
        """Images (B,3,H,H) in [-1,1] -> what the encoder sees, (B,3,S,S) float32."""
        nominal, side = nominal_side(self.space), self._recipe.input_side
        if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
            raise ValueError(f"images of shape {tuple(images.shape)}: expected (B, 3, H, H)")
        if not images.is_floating_point():
            raise ValueError(f"images of {images.dtype}: expected floating point in [-1, 1]; call images / 127.5 - 1")
        height, width = images.shape[2:]
        if height != width:
            raise ValueError(
                f"images of {width}x{height} pixels: {self.space.name} latents stand for squares of {nominal}x{nominal}"
                f"; crop first, for instance PIL.ImageOps.fit(image, ({nominal}, {nominal}))"
            )
        images = images.float()
        if width > nominal:
            images = resize(images, nominal, nominal)
        if images.shape[3] != side:
            size = (side, side)
            images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=self._recipe.antialias)
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self._recipe.mean, self._recipe.std))
        return ((images + 1) / 2 - mean) / std

    def _tokens(self, pixels: Tensor) -> Tensor:
        """(B,3,S,S) -> raw tokens (B,N,C) float32 in rows: what `LatentSpace.normalize` takes, once on their grid."""
        # The last norm is left to us: its affine part has no place here, and SigLIP-2 is read before it.
        model: Any = self.model
        hidden: Tensor = model.encoder(model.embeddings(pixels)).last_hidden_state
        if self.space.layer_norm_eps is not None:
            return hidden.float()
        patches = hidden[:, 1 + model.config.num_register_tokens :].float()  # in front: CLS, registers
        return F.layer_norm(patches, (self.space.channels,), eps=model.config.layer_norm_eps)


def _check_config(config: Any, space: LatentSpace, recipe: Recipe) -> None:
    """Whether a transformers configuration describes the space's encoder."""
    vision = getattr(config, "vision_config", config)
    found, wanted = getattr(vision, "model_type", type(vision).__name__), f"take {recipe.hub_id}"
    if found != recipe.model_type:
        raise ValueError(
            f"a model of type {found}: {space.name} latents come from {space.encoder}, of type {recipe.model_type}; "
            f"{wanted}"
        )
    if recipe.model_type.endswith("with_registers") and not vision.num_register_tokens:
        raise ValueError(f"this DINOv2 has no register tokens; {space.name} latents come from one with them; {wanted}")
    if vision.hidden_size != space.channels:
        raise ValueError(
            f"this encoder's tokens have {vision.hidden_size} channels, {space.name} latents {space.channels}; {wanted}"
        )
    if vision.patch_size != PATCH:
        raise ValueError(f"this encoder has patches of {vision.patch_size} pixels, {space.name} of {PATCH}; {wanted}")
    # DINOv2's positions are interpolated to any grid, SigLIP-2's belong to one.
    if space.layer_norm_eps is not None and vision.image_size != recipe.input_side:
        raise ValueError(
            f"this encoder's positions are those of images of {vision.image_size} pixels, a grid of "
            f"{vision.image_size // PATCH}x{vision.image_size // PATCH}; {space.name} latents have "
            f"{recipe.grid}x{recipe.grid} ({recipe.input_side} pixels); {wanted}"
        )


def _check_statistics(statistics: Statistics | None, space: LatentSpace, recipe: Recipe) -> None:
    if space.layer_norm_eps is not None:
        if statistics is not None:
            raise ValueError(f"{space.name} latents are normalised by a LayerNorm, without statistics; pass none")
        return
    expected = (space.channels, recipe.grid, recipe.grid)
    source = "read_statistics('stat.pt') of the RAE's 512-pixel folder, or Statistics.from_vae(rae)"
    if statistics is None:
        raise ValueError(
            f"{space.name} latents are normalised by the statistics of the RAE, {expected}; pass statistics={source}"
        )
    if tuple(statistics.mean.shape) != expected:
        raise ValueError(f"statistics of shape {tuple(statistics.mean.shape)}: expected {expected}; take {source}")


def _load(space: LatentSpace, recipe: Recipe, name: str | Path, dtype: torch.dtype | None) -> nn.Module:
    transformers = library("transformers", f"encoding into {space.name}", "pipelines")
    model_class: Any = getattr(transformers, recipe.model_class)
    try:
        # First, for a class that is given another one's weights only warns about those it lacks.
        config: Any = transformers.AutoConfig.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: cannot load an encoder of {space.name} from here ({loading_reason(error, name)})"
        ) from error
    try:
        _check_config(config, space, recipe)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        model, report = model_class.from_pretrained(str(name), dtype=dtype or torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name}: cannot load an encoder of {space.name} from here ({loading_reason(error, name)})"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{name}: {len(missing)} of the encoder's weights are missing, {missing[0]} among them")
    return model
