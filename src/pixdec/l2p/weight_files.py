"""Pixel models in files: read strictly, whoever wrote them, and written with all that opening them needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pixdec.io.files import digest_of
from pixdec.io.hub import HUB_ID, USUAL, Access, fetch_file, fetch_folder
from pixdec.l2p.model import PixelModel, PixelSettings, file_name, model_name
from pixdec.l2p.sources import source_of
from pixdec.weights.checkpoint import SUFFIXES, open_checkpoint
from pixdec.weights.identify import UNKNOWN_LICENCE
from pixdec.weights.load import check_tensors, fill, write_weights
from pixdec.weights.pixels import (
    BUNDLED_PIXELS,
    PIXEL,
    PIXEL_CARDS,
    Z_IMAGE,
    bundled_pixels,
    card_of_tensors,
    pixel_tensors,
)
from pixdec.weights.state import NetworkTensors

_REQUIRED = ("source", "config", "patch", "name", "licence")


@dataclass(frozen=True)
class Weights:
    """Tensors, mapped, by their names in files, and what they are of.

    Attributes:
        settings: of the pixel model; for a latent generator `patch` is 0.
        licence: that of the tensors.
        repository: folder or hub id of the source's pipeline, with text encoder and scheduler, or the words that a
            small model knows (`pixdec.text.words`); "" if unknown.
        part: whether these are only what training changed; then `base` is the digest of what it began with.
        path: of the file.
    """

    tensors: Mapping[str, Tensor]
    settings: PixelSettings
    name: str
    licence: str
    path: Path
    repository: str = ""
    part: bool = False
    base: str = ""

    @property
    def is_latent(self) -> bool:
        return self.settings.patch == 0


def open_weights(name_or_path: str | Path, access: Access = USUAL) -> Weights:
    """A pixel model or a latent generator's transformer, mapped from disk.

    Args:
        name_or_path: a card's name ("l2p-1k"), a file, or a folder or hub repository: of a diffusers pipeline or
            transformer, or of `PixelPipeline.save_pretrained`. Files that are not ours are told by their tensors.
        access: how what is not on disk is fetched.

    Raises:
        ValueError: no such file or model, or one that is neither.
        OSError: it is not on disk and cannot be fetched.
    """
    path, repository = _located(str(name_or_path), access)
    folder = path if path.is_dir() else path.parent
    checkpoint = open_checkpoint(path)
    metadata = checkpoint.metadata
    try:
        if metadata.get("pixdec") == PIXEL:
            return _ours(checkpoint.tensors, metadata, checkpoint.path)
        tensors = pixel_tensors(checkpoint.tensors)
        if (card := card_of_tensors(tensors)) is not None:
            settings = PixelSettings("z-image", Z_IMAGE, 0 if card.patch == 2 else card.patch)
            return Weights(
                tensors, settings, card.name, card.licence.name, checkpoint.path, repository or settings.kind.repository
            )
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"no pixel model, nor a source of one: its {len(tensors)} tensors are those of no released model, and "
                "there is no config.json of diffusers beside it"
            )
        config = cast("dict[str, Any]", json.loads((folder / "config.json").read_text("utf-8")))
        plain = {key: value for key, value in config.items() if not key.startswith("_")}
        settings = PixelSettings(source_of(str(config.get("_class_name", ""))), plain, 0)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Weights(tensors, settings, str(name_or_path), UNKNOWN_LICENCE, checkpoint.path, repository)


def _located(name: str, access: Access) -> tuple[Path, str]:
    """The file or folder of the weights, and folder or hub id of the pipeline that they are part of, "" for none."""
    card = next((card for card in PIXEL_CARDS if card.name == name), None)
    path = Path(name).expanduser()
    if name == BUNDLED_PIXELS and not path.exists():
        return bundled_pixels(), ""
    if card is not None and not path.exists():
        if card.repository is None:
            raise ValueError(f"{name}: where it lies on the hub is not known here; name its file, {card.file}")
        if card.patch == 2:
            return fetch_folder(card.repository, ["transformer/*"], access) / "transformer", card.repository
        return fetch_file(card.repository, card.file, access), ""
    if not path.exists() and HUB_ID.fullmatch(name) and path.suffix not in SUFFIXES:
        path = fetch_folder(name, ["*.json", "pixel.safetensors", "transformer/*"], access)
        return (path / "transformer", name) if (path / "transformer").is_dir() else (path, "")
    if (path / "transformer").is_dir():
        return path / "transformer", str(path)
    return path, str(path.parent) if (path.parent / "model_index.json").is_file() else ""


def _ours(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Weights:
    settings = settings_of(metadata)
    stated = {key: metadata.get(key, "") for key in ("repository", "base")}
    part = metadata.get("part") == "true"
    return Weights(tensors, settings, metadata["name"], metadata["licence"], path, part=part, **stated)


def settings_of(metadata: Mapping[str, str]) -> PixelSettings:
    """What our files state. ValueError if something is missing or cannot be."""
    if missing := [key for key in _REQUIRED if key not in metadata]:
        raise ValueError(f"its metadata lack {', '.join(missing)}")
    try:
        config, patch = json.loads(metadata["config"]), int(metadata["patch"])
        narrow, side = int(metadata.get("narrow", "1")), int(metadata.get("side", "0"))
    except ValueError as error:
        raise ValueError(
            f"its metadata have config {metadata['config'][:40]!r}, patch {metadata['patch']!r}"
        ) from error
    return PixelSettings(metadata["source"], config, patch, narrow, side)


def load_model(weights: Weights, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> PixelModel:
    """The whole model, all in one precision: released files mix float32 and bfloat16. `dtype` None: that of most.

    Raises:
        ValueError: it is a part or a latent generator, or a tensor is missing, unexpected, mis-shaped or not finite.
    """
    if weights.part or weights.is_latent:
        what = "only what was trained; merge it first (pixdec l2p merge)" if weights.part else "a latent generator"
        way = "" if weights.part else "; make a pixel model of it first (pixdec l2p init)"
        raise ValueError(f"{weights.path}: {what}{way}")
    try:
        return filled(PixelModel(weights.settings), weights.tensors, torch.device(device), dtype)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error


def filled(
    model: PixelModel, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype | None
) -> PixelModel:
    """Puts tensors, by their names in files, into a model on the meta device; strict."""
    return fill(model, _named(tensors), device, dtype)


def check(model: PixelModel, tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless the tensors, by their names in files, are exactly the model's."""
    check_tensors(model, _named(tensors))


def _named(tensors: Mapping[str, Tensor]) -> NetworkTensors:
    ours = {model_name(key): tensor for key, tensor in tensors.items()}
    return NetworkTensors(ours, {key: file_name(key) for key in ours}, (), original=False, scales={})


def save_weights(weights: Weights, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes them as safetensors, whole or not at all, one tensor in memory at a time. OSError if it cannot."""
    settings = weights.settings
    metadata = {
        "pixdec": PIXEL,
        "name": weights.name,
        "licence": weights.licence,
        "source": settings.source,
        "config": json.dumps(settings.config),
        "patch": str(settings.patch),
        "narrow": str(settings.narrow),
        "side": str(settings.side),
        "repository": weights.repository,
    }
    if weights.part:
        metadata |= {"part": "true", "base": weights.base}
    write_weights(weights.tensors, path, metadata, dtype)


def digest(path: Path) -> str:
    """What tells a start from others."""
    return digest_of(path).hex()[:32]
