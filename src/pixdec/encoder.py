"""`ImageEncoder`: an image becomes a latent, by the bundled tiny encoder (FLUX.2 space) or by a diffusers VAE."""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pixdec.devices import device_named
from pixdec.io.hub import HUB_ID, loading_reason
from pixdec.io.quiet import library, quiet
from pixdec.latents import Latent, LatentSpace, Statistics, get_space
from pixdec.models.tiny_vae import TinyVAE
from pixdec.weights.load import load_autoencoder

TINY_SPACE = "flux2"
TINY = "pixdec-tiny"


class ImageEncoder:
    """An encoder of one latent space.

    Attributes: `space`; `vae`, the autoencoder; `name` (what encodes).
    """

    def __init__(self, space: LatentSpace, vae: nn.Module, name: str):
        self.space, self.vae, self.name = space, vae.eval().requires_grad_(False), name
        of_pipeline = space.constants is None and not isinstance(vae, TinyVAE)
        self._statistics = Statistics.from_vae(vae) if of_pipeline else None

    @classmethod
    def from_pretrained(
        cls,
        space: str = TINY_SPACE,
        name_or_path: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """An encoder into `space`. `name_or_path` None is the bundled tiny encoder, for FLUX.2 latents; otherwise a
        diffusers VAE, a hub id or a folder (its `vae` subfolder is taken if there is one).

        Raises ValueError if the space has no encoder of this kind, or the VAE is not of the space.
        """
        target, place = get_space(space), None if device is None else device_named(device)
        if name_or_path is None:
            if target.name != TINY_SPACE:
                raise ValueError(
                    f"there is no bundled encoder for {target.name}; name its VAE (a diffusers folder or hub id), "
                    f"or use a {TINY_SPACE} decoder"
                )
            return cls(target, load_autoencoder().to(device=place, dtype=dtype), TINY)
        return cls(target, _load_vae(target, name_or_path, dtype).to(place), str(name_or_path))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Latent:
        """Images (B,3,H,W) in [-1,1], sides multiples of `space.factor` -> a clean `Latent` (B,C,H/factor,W/factor),
        on the CPU."""
        factor = self.space.factor
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: expected (B, 3, H, W) with H and W multiples of {factor}; "
                f"crop first, or pad with pixdec.io.images.pad_to_multiple(images, {factor})"
            )
        images = images.to(next(self.vae.parameters()))
        return Latent(self._encoded(images).float().cpu(), self.space, encoder=self.name)

    def _encoded(self, images: Tensor) -> Tensor:
        if isinstance(self.vae, TinyVAE):
            return self.space.patchify(self.vae.encoder(images))
        vae: Any = self.vae
        frames = images.unsqueeze(2) if self.space.video else images
        raw: Tensor = vae.encode(frames).latent_dist.mode()
        return self.space.normalize(raw.float(), self._statistics)

    def decode(self, latent: Tensor) -> Tensor:
        """A normalised latent (B,C,h,w) of the space -> images (B,3,h·factor,w·factor) at the latent's own size,
        nominally in [-1,1], not clamped: what the autoencoder itself makes of it."""
        return images_of(latent, self.space, self.vae, self._statistics)


def first_decode(latent: Latent, vae: nn.Module | str | Path | None = None) -> Latent:
    """A generator's latent -> its low-resolution image (B,3,h·factor,w·factor), as a latent of the space `rgb` at the
    same noise level: what a decoder of images enlarges.

    vae: what decodes it: a VAE or TAE of diffusers (an `Autoencoder…` of the latent's space), or the name or folder of
        one. "pixdec-tiny" is the bundled autoencoder, for the latents of its own encoder (`ImageEncoder`) only; None
        takes it for these. What else a latent's file names is loaded for nobody who does not say so.

    Raises:
        ValueError: none is given where one is needed; it cannot be loaded, or is of another space.
    """
    space = latent.space
    if vae is None and latent.encoder == TINY:
        vae = TINY
    if vae is None:
        own = f", or {TINY!r} if ImageEncoder made it" if space.name == TINY_SPACE else ""
        said = own if latent.encoder is None else f"; it says that {latent.encoder} encoded it"
        raise ValueError(
            f"a latent of {space.name}, which a VAE has to decode to an image first: give the generator's, "
            f"first_decode(latent, vae) or --vae: a diffusers {space.vae_class or 'VAE'} or TAE by name or folder{said}"
        )
    if isinstance(vae, str | Path):
        vae = _named(space, str(vae))
    with torch.no_grad():
        images = images_of(latent.tensor, space, vae)
    return Latent(images.float().to(latent.tensor.device), "rgb", latent.sigma, statistics=False)


def given_to(space: LatentSpace, latent: Latent | Tensor) -> Latent | Tensor:
    """What a decoder of a space is given of a latent: of `rgb`, the image of one of another space; else it as it is. A
    bare tensor is taken for what the bundled encoder makes, if it looks so."""
    if not space.is_image:
        return latent
    if isinstance(latent, Tensor) and latent.shape[1:2] == (get_space(TINY_SPACE).channels,):
        warnings.warn(
            "a tensor without a space, taken for a latent of ImageEncoder; for a generator's give its VAE: "
            f"first_decode(Latent(latent, {TINY_SPACE!r}), vae)",
            stacklevel=3,
        )
        latent = Latent(latent, TINY_SPACE, encoder=TINY)
    return first_decode(latent) if isinstance(latent, Latent) and not latent.space.is_image else latent


@lru_cache(maxsize=1)
def _named(space: LatentSpace, name: str) -> nn.Module:
    """Kept, for many latents are decoded one after the other."""
    return (load_autoencoder() if name == TINY else _load_vae(space, name, None)).eval().requires_grad_(False)


def images_of(latent: Tensor, space: LatentSpace, vae: nn.Module, statistics: Statistics | None = None) -> Tensor:
    """A normalised latent (B,C,h,w) of a space -> what an autoencoder makes of it, (B,3,h·factor,w·factor)."""
    module: Any = vae
    parameter = next(vae.parameters())
    place = getattr(getattr(vae, "_hf_hook", None), "execution_device", None) or parameter.device  # if it is offloaded
    latent = latent.to(place)
    if isinstance(vae, TinyVAE):
        return vae.decoder(space.unpatchify(latent).to(parameter.dtype))
    if type(vae).__name__ == "AutoencoderTiny":  # which was trained on normalised latents
        return module.decode(space.unpatchify(latent).to(parameter.dtype)).sample
    if statistics is None and space.constants is None:
        statistics = Statistics.from_vae(vae)
    raw = space.denormalize(latent.float(), statistics)
    upcast = parameter.dtype == torch.float16 and module.config.get("force_upcast", False)  # SDXL's overflows
    if upcast:
        vae.float()
    raw = raw.to(torch.float32 if upcast else parameter.dtype)
    try:
        images: Tensor = module.decode(raw.unsqueeze(2) if space.video else raw).sample
    finally:
        if upcast:
            vae.half()
    return images.squeeze(2) if space.video else images


def _load_vae(space: LatentSpace, name_or_path: str | Path, dtype: torch.dtype | None) -> nn.Module:
    if space.vae_class is None:
        raise ValueError(
            f"{space.name} latents come from a vision encoder, not from a VAE; make them with "
            "pixdec.integrations.vision.VisionEncoder"
        )
    diffusers = library("diffusers", f"encoding into {space.name}", "pipelines")
    folder = Path(name_or_path).expanduser()
    if not folder.exists() and not HUB_ID.fullmatch(str(name_or_path)):
        raise ValueError(f"{name_or_path}: there is no such folder, and a hub id has the form owner/name")
    subfolder = None if folder.is_dir() and not (folder / "vae").is_dir() else "vae"
    try:
        with quiet("diffusers"):
            load: Any = getattr(diffusers, space.vae_class)
            tiny = diffusers.AutoencoderTiny
            if tiny.load_config(str(name_or_path), subfolder=subfolder).get("_class_name") == tiny.__name__:
                load = tiny
            vae: nn.Module = load.from_pretrained(
                str(name_or_path), subfolder=subfolder, torch_dtype=dtype or torch.float32
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name_or_path}: no {space.vae_class} or AutoencoderTiny can be loaded from here "
            f"({loading_reason(error, name_or_path)})"
        ) from error
    config: Any = vae.config
    channels = config.get("latent_channels", config.get("z_dim"))
    if channels != space.raw_channels:
        raise ValueError(
            f"{name_or_path}: its latents have {channels} channels, those of {space.name} {space.raw_channels}"
        )
    return vae
