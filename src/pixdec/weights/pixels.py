"""Pixel generators by L2P (arXiv 2605.12013) as files: what was released, and how it is told from its tensors.

No configuration comes with the released weights: names and shapes of all tensors together tell which model it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pixdec.weights import catalog
from pixdec.weights.catalog import APACHE, Licence

PIXEL = "pixel"  # metadata["pixdec"] of our files
BUNDLED_PIXELS = "pixdec-l2p"  # the model that comes with the package
_PREFIX = "model.diffusion_model."
_COMFY = (  # what ComfyUI calls parts of Z-Image
    (re.compile(r"^x_embedder\."), "all_x_embedder.{patch}-1."),
    (re.compile(r"^final_layer\."), "all_final_layer.{patch}-1."),
    (re.compile(r"\.attention\.out\."), ".attention.to_out.0."),
    (re.compile(r"\.attention\.([qk])_norm\."), r".attention.norm_\1."),
)
Z_IMAGE: Mapping[str, Any] = {
    "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "norm_eps": 1e-5,
    "qk_norm": True, "cap_feat_dim": 2560, "rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}  # fmt: skip
_LICENCE = Licence(
    "Apache-2.0 (as stated)",
    "the authors' package and model cards say Apache-2.0; there is no licence file, and the paper is CC BY-NC-SA",
    commercial=False,
)


@dataclass(frozen=True)
class PixelCard:
    """A released transformer. `side`: of the square images it makes; `patch` in pixels, 2 (of latents) for the source;
    `repository` None: it must be named by its path; `inventory`: see the function of that name."""

    name: str
    file: str
    side: int
    patch: int
    tensors: int
    parameters: int
    inventory: str
    licence: Licence = _LICENCE
    repository: str | None = None


PIXEL_CARDS = (
    PixelCard(
        "z-image", "transformer", 1024, 2, 521, 6_154_908_736, "fc3a8a1247fe185ce116ccbe0e426c28", APACHE,
        "Tongyi-MAI/Z-Image-Turbo",
    ),
    PixelCard(
        "l2p-1k", "model-1k-merge.safetensors", 1024, 16, 545, 6_166_464_515, "577b2d3e0acea1fb784ca600f966805e",
        repository="zhen-nan/L2P",
    ),
    PixelCard("l2p-4k", "l2p_4k_sft.safetensors", 4096, 64, 557, 6_210_711_491, "69e8fd5b562ea858b9f864508c1263b3"),
    PixelCard("l2p-8k", "l2p_8k_sft.safetensors", 8192, 128, 563, 6_352_274_407, "df0e4e865d39501e2fe96c7ea8aa40f6"),
    PixelCard("l2p-10k", "l2p_10k_sft.safetensors", 10240, 160, 557, 6_453_001_959, "e6094ba663b7c10011eb47db072ead0b"),
)  # fmt: skip


def bundled_pixels() -> Path:
    """The file of the model that comes with the package."""
    return catalog.BUNDLED / f"{BUNDLED_PIXELS}.safetensors"


def inventory(shapes: Mapping[str, Iterable[int]]) -> str:
    """The MD5 that files of these tensors are told by: of all names, and of all names with their shapes."""
    names = [each for key, shape in shapes.items() for each in (key, f"{key}:{'_'.join(map(str, shape))}")]
    return hashlib.md5(",".join(sorted(names)).encode(), usedforsecurity=False).hexdigest()


def card_of_tensors(tensors: Mapping[str, Tensor]) -> PixelCard | None:
    """The released model with exactly these tensors, if any."""
    if len(tensors) not in {card.tensors for card in PIXEL_CARDS}:
        return None
    found = inventory({key: tensor.shape for key, tensor in tensors.items()})
    return next((card for card in PIXEL_CARDS if card.inventory == found), None)


def is_pixel(tensors: Iterable[str]) -> bool:
    """Whether these are the names of a pixel model's tensors, of whatever packing."""
    return any(key.removeprefix(_PREFIX).startswith("local_decoder.") for key in tensors)


def pixel_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Z-Image transformer's tensors, latent or of pixels, by diffusers' names: without ComfyUI's prefix and names,
    and with q, k and v apart. What is so already stays.

    Raises:
        ValueError: two tensors come to one name, or three that are packed are not of one size.
    """
    bare = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    first = bare.get("x_embedder.weight")
    latent = "final_layer.linear.weight" in bare
    patch = 0 if first is None or first.ndim != 2 else round((first.shape[1] / (16 if latent else 3)) ** 0.5)
    found: dict[str, Tensor] = {}
    for key, tensor in bare.items():
        parts: Mapping[str, Tensor] = {key: tensor}
        if ".attention.qkv." in key:
            if tensor.shape[0] % 3:
                raise ValueError(f"{key} is {list(tensor.shape)}: expected q, k and v, of a third of the rows each")
            parts = {key.replace(".qkv.", f".to_{x}."): part for x, part in zip("qkv", tensor.chunk(3), strict=True)}
        for name, part in parts.items():
            for theirs, ours in _COMFY if patch or not name.startswith("x_embedder.") else ():
                name = theirs.sub(ours.format(patch=patch), name)
            if name in found:
                raise ValueError(f"two tensors of the file are the network's {name}; keep one")
            found[name] = part
    return found
