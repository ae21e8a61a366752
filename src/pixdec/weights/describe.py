"""What a file is, without loading it: a checkpoint, a LoRA, a latent, an autoencoder, a pixel generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from pixdec.io.tensor_files import TensorFile
from pixdec.latents.latent import COMFY
from pixdec.models.nano import NanoSettings
from pixdec.models.pid import PiDSettings
from pixdec.models.tiny_vae import TinyVAESettings
from pixdec.weights.catalog import DecoderKind
from pixdec.weights.checkpoint import open_checkpoint
from pixdec.weights.identify import AmbiguousSpaceError, identify
from pixdec.weights.load import autoencoder_on_meta, check_tensors, decoder_on_meta, named_tensors
from pixdec.weights.lora import lora_in
from pixdec.weights.pixels import PIXEL, Z_IMAGE, card_of_tensors, is_pixel, pixel_tensors
from pixdec.weights.state import NetworkTensors


@dataclass(frozen=True)
class Description:
    """What a file is, without loading it. None where it does not apply or is not known.

    `space`: a name, or "ambiguous: flux1, sd3 or qwen-image" (then `settings`, which depend on it, are None). `role`:
    what kind of decoder. `base`: the decoder that a LoRA is for. For decoders `tensors`, `parameters` and `dtypes` are
    those of the network that would be loaded, else of the whole file. `size` in bytes. `problem`: why it cannot be
    loaded, if it cannot.
    """

    path: Path
    kind: Literal["decoder", "autoencoder", "latent", "lora", "pixel", "unknown"]
    size: int
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    name: str | None = None
    base: str | None = None
    role: DecoderKind | None = None
    version: str | None = None
    space: str | None = None
    scale: int | None = None
    licence: str | None = None
    settings: PiDSettings | NanoSettings | TinyVAESettings | dict[str, object] | None = None
    problem: str | None = None


def describe(path: str | Path) -> Description:
    """What a checkpoint, LoRA, latent, autoencoder or pixel generator is. Reads no weights but a LoRA's.

    Raises:
        ValueError: the file is missing, empty, damaged, no file of tensors, or would run code.
    """
    checkpoint = open_checkpoint(path)
    metadata = checkpoint.metadata
    what = metadata.get("pixdec", "latent" if COMFY in checkpoint.tensors else "decoder")
    file = _described(checkpoint, "unknown", checkpoint.tensors)
    stated = replace(file, name=metadata.get("name"), space=metadata.get("space"), licence=metadata.get("licence"))
    try:
        if what == "autoencoder":
            file = replace(stated, kind="autoencoder")
            network = autoencoder_on_meta(checkpoint)
            file = replace(file, settings=network.settings)
            check_tensors(network, NetworkTensors.as_they_are(checkpoint.tensors))
        elif what == "latent":
            file = replace(stated, kind="latent")
        elif what == "lora":
            file = replace(stated, kind="lora", base=metadata.get("base"))
            lora_in(checkpoint)
            file = replace(file, settings=json.loads(metadata["settings"]))
        elif what == PIXEL or (what == "decoder" and is_pixel(checkpoint.tensors)):
            file = replace(stated, kind="pixel")
            return _described_pixel(file, checkpoint)
        elif what == "decoder":
            return _described_decoder(checkpoint)
    except ValueError as error:
        return replace(file, problem=str(error))
    return file


def _described(
    checkpoint: TensorFile, kind: Literal["decoder", "unknown"], tensors: Mapping[str, Tensor]
) -> Description:
    return Description(
        path=checkpoint.path,
        kind=kind,
        size=checkpoint.size,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
    )


def _described_pixel(file: Description, checkpoint: TensorFile) -> Description:
    """A pixel generator: ours by its metadata, a released one by its inventory."""
    stated = checkpoint.metadata
    if stated.get("pixdec") == PIXEL:
        settings = {key: stated.get(key) for key in ("source", "patch", "repository", "part", "base")}
        return replace(file, settings={**settings, "config": json.loads(stated.get("config", "{}"))})
    if (card := card_of_tensors(pixel_tensors(checkpoint.tensors))) is None:
        raise ValueError("a pixel generator's head, but not the tensors of a released one; expected a merged file")
    settings = {"source": "z-image", "patch": card.patch, "config": dict(Z_IMAGE)}
    return replace(file, name=card.name, licence=card.licence.name, settings=settings)


def _described_decoder(checkpoint: TensorFile) -> Description:
    """Raises ValueError if it is none at all; one with defects is described with its problem."""
    tensors = named_tensors(checkpoint)
    decoder = _described(checkpoint, "decoder", tensors.tensors)
    ambiguous = None
    try:
        try:
            identity = identify(checkpoint, tensors)
        except AmbiguousSpaceError as error:
            ambiguous = f"ambiguous: {error.names}"
            identity = identify(checkpoint, tensors, error.possible[0])  # whichever it is, the shapes are the same
        decoder = replace(
            decoder,
            name=identity.name,
            role=identity.kind,
            version=identity.version,
            space=ambiguous or identity.space or None,
            scale=identity.scale,
            licence=identity.licence,
            settings=None if ambiguous else identity.settings,
        )
        check_tensors(decoder_on_meta(identity.settings), tensors)
    except ValueError as error:
        return replace(decoder, problem=str(error))
    return decoder
