"""Weights into networks and into files: strict, memory-mapped, in the original's naming or ours.

Loading maps a file, builds the network without memory and puts the mapped tensors in place: a file whose dtype and
device are the wanted ones costs no memory of its own, any other is converted tensor by tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pixdec.io.files import replacing
from pixdec.io.hub import HUB_ID, USUAL, Access, fetch_folder
from pixdec.io.tensor_files import DTYPE_NAMES, TensorFile, write_safetensors
from pixdec.models.nano import Nano, NanoSettings
from pixdec.models.network import Network
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings
from pixdec.weights.catalog import CARDS, STUDENT_TIMES, DecoderKind, fetch, get_card, is_known
from pixdec.weights.checkpoint import SUFFIXES, listed, open_checkpoint
from pixdec.weights.identify import (
    Identity,
    identify,
    is_nano,
    to_metadata,
)
from pixdec.weights.keymap import settings_from_original
from pixdec.weights.network_settings import settings_from_json, settings_to_json
from pixdec.weights.state import FLOAT8, NetworkTensors, network_tensors

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S")
_TAKEN_BY = {
    "autoencoder": "an autoencoder, which ImageEncoder and --vae take",
    "lora": "a LoRA, which load_lora and --lora take",
    "latent": "a latent, which `pixdec decode` takes",
}
_STORED = (*DTYPE_NAMES, *FLOAT8)


@dataclass(frozen=True, kw_only=True)
class LoadedDecoder(Identity):
    """A decoder and its network."""

    network: Network


def find_weights(name_or_path: str | Path, access: Access = USUAL) -> Path:
    """The file or folder of a model. A card's short name is the card, whatever lies in the current folder; a path comes
    before a card's other names, and these before a repository of the hub.

    Raises:
        ValueError: there is no such model.
        OSError: it is not on disk and cannot be fetched.
    """
    name = str(name_or_path)
    short = any(card.name == name for card in CARDS)
    if isinstance(name_or_path, Path) or name.endswith(SUFFIXES) or (Path(name).exists() and not short):
        if access.revision is not None:
            raise ValueError(f"revision={access.revision!r}: {name} is a local path, which has none; leave it out")
        return Path(name)
    if HUB_ID.fullmatch(name) and not is_known(name):
        return fetch_folder(name, ["*.safetensors", "*.safetensors.index.json"], access, top_only=True)
    return fetch(get_card(name), access)


def load_decoder(
    name_or_path: str | Path,
    *,
    space: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    half: torch.dtype = torch.float32,
    access: Access = USUAL,
) -> LoadedDecoder:
    """A decoder by the name of its card or a repository of the hub (fetched, as `access` says, if it is not on disk),
    from a file, or from a folder that holds one.

    Files are safetensors or archives of torch.save, in the original's naming or ours. The network is in evaluation
    mode and wants no gradients. `dtype` None is that of the file, but `half` for float16, which is how our small files
    are stored and no type to compute in. `space` must be given where the tensors fit several (16 channels:
    FLUX.1, SD3 and Qwen-Image) and neither metadata nor the name of a released folder tells.

    Raises:
        ValueError: no such model or file; a file that is damaged, no decoder, or would run code; a missing, unexpected
            or mis-shaped tensor; a space that is not known or contradicts the file.
        OSError: the model is not on disk and cannot be fetched.
    """
    checkpoint = open_checkpoint(find_weights(name_or_path, access))
    with _about(checkpoint.path):
        tensors, identity = _read(checkpoint, space)
        network = fill(decoder_on_meta(identity.settings), tensors, torch.device(device), dtype, half)
    return LoadedDecoder(**vars(identity), network=network)


def load_autoencoder(
    path: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> TinyVAE:
    """The tiny autoencoder that `save_autoencoder` wrote; the bundled one if `path` is None. `dtype` as in
    `load_decoder`.

    Raises:
        ValueError: the file is missing, damaged or no tiny autoencoder, or its tensors do not fit its settings.
    """
    checkpoint = open_checkpoint(fetch(get_card("pixdec-tiny")) if path is None else path)
    with _about(checkpoint.path):
        return fill(
            autoencoder_on_meta(checkpoint),
            NetworkTensors.as_they_are(checkpoint.tensors),
            torch.device(device),
            dtype,
        )


def network_from_reference(state_dict: Mapping[str, Tensor], config: Mapping[str, object]) -> PiD:
    """A network from the original's state dict and constructor arguments, strict; its weights are float32 copies.

    Raises:
        ValueError: a missing, unexpected or mis-shaped tensor, or an argument that is not supported.
    """
    network = _on_meta(PiD, settings_from_original(config))
    tensors = network_tensors(state_dict).dequantized()
    check_tensors(network, tensors)
    network.load_state_dict(
        {key: tensor.detach().to(torch.float32, copy=True) for key, tensor in tensors.tensors.items()}, assign=True
    )
    return network


def save_decoder(
    network: Network,
    path: str | Path,
    *,
    name: str,
    space: str,
    version: str,
    licence: str,
    kind: DecoderKind = "student",
    times: Sequence[float] = STUDENT_TIMES,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a network as safetensors with all that `load_decoder` must know in the metadata, whole or not at all.

    `space` "" and `times` () for a prior, `times` () for a teacher. `dtype` converts the weights (log_alpha stays
    float32).

    Raises:
        ValueError: facts that contradict each other or the network.
        OSError: `path` cannot be written.
    """
    identity = Identity(
        settings=network.settings,
        name=name,
        space=space,
        kind=kind,
        version=version,
        times=tuple(times),
        licence=licence,
    )
    write_weights(network.state_dict(), path, to_metadata(identity), dtype)


def save_autoencoder(
    network: TinyVAE, path: str | Path, *, name: str, licence: str, dtype: torch.dtype | None = None
) -> None:
    """Writes a tiny autoencoder as safetensors with its settings in the metadata, whole or not at all.

    Raises:
        OSError: `path` cannot be written.
    """
    metadata = {
        "pixdec": "autoencoder",
        "name": name,
        "space": "flux2",
        "licence": licence,
        "settings": settings_to_json(network.settings),
    }
    write_weights(network.state_dict(), path, metadata, dtype)


def convert(source: str | Path, target: str | Path, *, space: str | None = None) -> Identity:
    """A decoder in any form that `load_decoder` reads -> our safetensors, same values in the same dtype, metadata
    included.

    The tensors go from the mapped file to the new one without being held in memory. Returns what the decoder is.

    Raises:
        ValueError: as `load_decoder`; or `target` is not named .safetensors.
        OSError: `target` cannot be written.
    """
    if Path(target).suffix != ".safetensors":
        raise ValueError(f"{target}: converted files are safetensors; end the name with .safetensors")
    checkpoint = open_checkpoint(source)
    with _about(checkpoint.path):
        tensors, identity = _read(checkpoint, space)
        check_tensors(decoder_on_meta(identity.settings), tensors)
    write_weights(tensors.tensors, target, to_metadata(identity))
    return identity


@contextmanager
def _about(path: Path) -> Generator[None]:
    """Puts the file's name in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(checkpoint: TensorFile, space: str | None) -> tuple[NetworkTensors, Identity]:
    what = checkpoint.metadata.get("pixdec", "decoder")
    if what != "decoder":
        raise ValueError(f"no decoder but {_TAKEN_BY.get(what, what)}; see `pixdec models`")
    tensors = named_tensors(checkpoint)
    return tensors.dequantized(), identify(checkpoint, tensors, space)


def named_tensors(checkpoint: TensorFile) -> NetworkTensors:
    """A decoder's tensors under our keys."""
    if is_nano(checkpoint.metadata):
        return NetworkTensors.as_they_are(checkpoint.tensors)
    return network_tensors(checkpoint.tensors)


def decoder_on_meta(settings: PiDSettings | NanoSettings) -> Network:
    return _on_meta(Nano, settings) if isinstance(settings, NanoSettings) else _on_meta(PiD, settings)


def _on_meta(network: Callable[[S], M], settings: S) -> M:
    """A network without memory for its weights. Raises ValueError if there cannot be one of these settings."""
    try:
        with torch.device("meta"):
            return network(settings)
    except (RuntimeError, ArithmeticError) as error:
        raise ValueError(f"no network can have its settings, {settings}") from error


def autoencoder_on_meta(checkpoint: TensorFile) -> TinyVAE:
    if checkpoint.metadata.get("pixdec") != "autoencoder" or "settings" not in checkpoint.metadata:
        raise ValueError("no tiny autoencoder of pixdec; expected a file that save_autoencoder wrote")
    return _on_meta(TinyVAE, settings_from_json(checkpoint.metadata["settings"], TinyVAESettings))


def check_tensors(network: nn.Module, tensors: NetworkTensors) -> None:
    """Raises ValueError unless the tensors are exactly the network's: names, shapes, floating-point numbers."""
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    given = tensors.tensors
    missing = [tensors.name(key) for key in expected if key not in given]
    unexpected = [*tensors.unknown, *(tensors.name(key) for key in given if key not in expected)]
    shapes = [
        f"{tensors.name(key)} is {list(given[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in given and given[key].shape != shape
    ]
    kinds = [f"{tensors.name(key)} is {tensor.dtype}" for key, tensor in given.items() if tensor.dtype not in _STORED]
    problems = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes, "not floating-point": kinds}
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names)
        raise ValueError(f"its tensors do not fit the network: {found}")


def fill(
    network: M,
    tensors: NetworkTensors,
    device: torch.device,
    dtype: torch.dtype | None,
    half: torch.dtype = torch.float32,
) -> M:
    """Puts the tensors into a network on the meta device, converting one at a time."""
    check_tensors(network, tensors)
    if dtype is None:
        counts = Counter[torch.dtype]()
        for tensor in tensors.tensors.values():
            counts[tensor.dtype] += tensor.numel()
        most = counts.most_common(1)[0][0]
        dtype = {torch.bfloat16: torch.bfloat16, torch.float16: half}.get(most, torch.float32)
    elif dtype not in DTYPE_NAMES:
        raise ValueError(f"dtype={dtype}: weights can be {', '.join(map(str, DTYPE_NAMES))}")
    weights = {key: tensor.to(device, _dtype_of(key, dtype)) for key, tensor in tensors.tensors.items()}
    broken = [key for key, weight in weights.items() if not _is_finite(weight)]
    if broken:
        raise ValueError(
            f"{len(broken)} of its tensors hold NaN or infinite values: {listed(map(tensors.name, broken))}; the file "
            "is damaged or its training diverged: download it again, or take an earlier checkpoint"
        )
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def _is_finite(weight: Tensor) -> bool:
    """Whether all values are numbers. Their sum tells in one pass and without memory, but that it may overflow."""
    return weight.is_meta or bool(weight.sum().isfinite()) or bool(weight.isfinite().all())


def _dtype_of(key: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if key.endswith("log_alpha") else dtype


def write_weights(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Writes tensors as safetensors, whole or not at all; `dtype` None keeps theirs."""
    dtypes = {key: _dtype_of(key, dtype or tensor.dtype) for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        write_safetensors(temporary, tensors, dtypes, metadata)
