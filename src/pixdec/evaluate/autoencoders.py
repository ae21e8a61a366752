"""Autoencoders by name: one makes the latents of an evaluation, others decode them at their own size as baselines.

Names: `tiny`, the bundled one (FLUX.2 space); `taef2:FOLDER`, TAEF2 from its two original files (FLUX.2 space);
`vae:NAME`, a diffusers VAE of the space by hub id or folder, `tiled-vae:NAME` the same in tiles; `flux2-small`, the
small decoder of FLUX.2 from the hub; `rae:NAME`, diffusers' AutoencoderRAE (DINOv2 space; decodes only); `image`,
none: decoders of images get the small photograph itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor, nn

from pixdec.encoder import TINY_SPACE, ImageEncoder
from pixdec.evaluate.upscalers import UnavailableError
from pixdec.io.files import first_line_of
from pixdec.latents import Latent, LatentSpace, get_space
from pixdec.models.taef2 import load_taef2

NAMES = (
    "tiny, taef2:FOLDER, vae:NAME or tiled-vae:NAME (a diffusers VAE, hub id or folder), flux2-small, rae:NAME, image"
)
IMAGE = "image"
FLUX2_SMALL = "black-forest-labs/FLUX.2-small-decoder"
LICENCES = {"tiny": "Apache-2.0", "taef2": "MIT", "flux2-small": "Apache-2.0", "rae": "MIT", "ssdd": "not established"}


@dataclass(frozen=True)
class Autoencoder:
    """Both halves of an autoencoder of `space`.

    `name` is how it was named, `label` what it is called where people read. encode: images (B,3,H,W) in [-1,1], sides
    multiples of `space.factor` -> a clean `Latent`, on the CPU. decode: a `Latent` -> images (B,3,H,W), nominally in
    [-1,1], not clamped. `digest` is that of its weights (see `fingerprint`).
    """

    name: str
    label: str
    space: LatentSpace
    digest: str
    encode: Callable[[Tensor], Latent]
    decode: Callable[[Latent], Tensor]

    @property
    def licence(self) -> str:
        return LICENCES.get(self.name.partition(":")[0], "of the model")


def open_autoencoder(name: str, space: LatentSpace, device: torch.device) -> Autoencoder:
    """The autoencoder of that name, in float32.

    Raises:
        ValueError: a name of no such form, a file that is missing or does not fit, or one of another space.
        UnavailableError: one that nobody can run, or that is not to be had here.
    """
    kind, _, place = name.partition(":")
    if name == IMAGE:
        pixels = get_space("rgb")
        return Autoencoder(name, "nothing", pixels, "", lambda images: Latent(images, pixels), lambda made: made.tensor)
    if name == "ssdd":
        raise UnavailableError("ssdd: no weights are published for these latent spaces")
    if name not in ("tiny", "flux2-small") and not (kind in ("taef2", "vae", "tiled-vae", "rae") and place):
        raise ValueError(f"autoencoder {name!r}: expected {NAMES}")
    if kind == "taef2":
        return _taef2(name, place, space, device)
    if kind == "rae":
        return _rae(name, place, space, device)
    if name == "flux2-small":
        place = FLUX2_SMALL
    try:
        encoder = ImageEncoder.from_pretrained(space.name, place or None, device, torch.float32)
    except ValueError as error:
        if name != "flux2-small":
            raise
        raise UnavailableError(f"{name}: {error}") from error
    if kind == "tiled-vae":
        cast("Any", encoder.vae).enable_tiling()

    @torch.inference_mode()
    def decode(latent: Latent) -> Tensor:
        return encoder.decode(latent.tensor)

    label = f"{encoder.name}, in tiles" if kind == "tiled-vae" else encoder.name
    return Autoencoder(name, label, space, fingerprint(encoder.vae), encoder.encode, decode)


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights: the same for the same network, wherever it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _taef2(name: str, folder: str, space: LatentSpace, device: torch.device) -> Autoencoder:
    if space.name != TINY_SPACE:
        raise ValueError(f"{name}: TAEF2 is of the {TINY_SPACE} space, the latents are of {space.name}; name a vae:")
    try:
        network = load_taef2(folder).to(device)
    except (RuntimeError, EOFError, UnpicklingError) as error:  # of torch.load and load_state_dict
        raise ValueError(f"{name}: the files are damaged, or not TAEF2's ({first_line_of(error)})") from error

    @torch.inference_mode()
    def encode(images: Tensor) -> Latent:
        return Latent(space.patchify(network.encode(images.to(device))).cpu(), space)

    @torch.inference_mode()
    def decode(latent: Latent) -> Tensor:
        return network.decode(space.unpatchify(latent.tensor.to(device)))

    return Autoencoder(name, "TAEF2", space, fingerprint(network), encode, decode)


def _rae(name: str, place: str, space: LatentSpace, device: torch.device) -> Autoencoder:
    from pixdec.integrations.vision import latents_to_rae

    try:
        import diffusers

        network: Any = cast("Any", diffusers).AutoencoderRAE.from_pretrained(place).to(device).eval()
    except Exception as error:  # not installed, too old, not to be had
        raise UnavailableError(f"{name}: {first_line_of(error)}") from error

    def encode(images: Tensor) -> Latent:
        raise ValueError(f"{name} decodes only; name another --encoder")

    @torch.inference_mode()
    def decode(latent: Latent) -> Tensor:
        return network.decode(latents_to_rae(latent, network)).sample.float() * 2 - 1

    return Autoencoder(name, place, space, fingerprint(network), encode, decode)
