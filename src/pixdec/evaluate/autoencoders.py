"""Autoencoders by name: one makes the latents of an evaluation, others decode them at their own size as baselines.

Names: `tiny`, the bundled one (FLUX.2 space), or `tiny:4` with so many steps of refining; `taef2:FOLDER`, TAEF2 from
its two original files (FLUX.2 space); `vae:NAME`, a diffusers VAE of the space by hub id or folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from pixdec.encoder import TINY_SPACE, ImageEncoder
from pixdec.io.files import first_line_of
from pixdec.latents import Latent, LatentSpace
from pixdec.models.taef2 import load_taef2

NAMES = "tiny, taef2:FOLDER, or vae:NAME (a diffusers VAE by hub id or folder)"


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


def open_autoencoder(name: str, space: LatentSpace, device: torch.device) -> Autoencoder:
    """The autoencoder of that name, in float32.

    Raises:
        ValueError: a name of no such form, a file that is missing or does not fit, or one of another space.
    """
    kind, _, place = name.partition(":")
    if name != "tiny" and not (kind in ("taef2", "vae") and place):
        raise ValueError(f"autoencoder {name!r}: expected {NAMES}")
    if kind == "taef2":
        return _taef2(name, place, space, device)
    encoder = ImageEncoder.from_pretrained(space.name, place or None, device, torch.float32)

    @torch.inference_mode()
    def decode(latent: Latent) -> Tensor:
        return encoder.decode(latent.tensor)

    return Autoencoder(name, encoder.name, space, fingerprint(encoder.vae), encoder.encode, decode)


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
