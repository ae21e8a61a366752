"""Where a run begins: any decoder or prior that can be loaded, or another run's checkpoint, into a network to train.

A decoder that begins with a prior's weights keeps its fresh adapter, whose heads are zero: it begins as the prior.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from pixdec.io.files import first_line_of
from pixdec.models.nano import Nano
from pixdec.models.pid import PiD, PiDSettings
from pixdec.train.checkpoints import checkpoints, read_average, read_network
from pixdec.weights.catalog import CARDS
from pixdec.weights.identify import UNKNOWN_LICENCE, AmbiguousSpaceError
from pixdec.weights.load import load_decoder
from pixdec.weights.network_settings import settings_from_json

_STAGES = ("student", "decoder", "prior")
EXPORTED = [f"{stage}.safetensors" for stage in _STAGES]  # what a run that ended has left
_OWN = ("adapter.", "gates.", "pixel_gate.")  # what a decoder has and a prior has not


@dataclass(frozen=True)
class Start:
    """What a network began with, for the record: its name, and the licence that goes over to what is made of it."""

    name: str
    licence: str


# Weights by our names, and the settings of their network: None for a checkpoint that lies outside its run's folder.
_Found = tuple[Start, Mapping[str, Tensor], PiDSettings | None]


def start_from(network: PiD, path_or_name: str | Path) -> Start:
    """Fills `network`, freshly initialised, with the weights of `path_or_name`, all or none, whatever their dtype.

    A name of `pixdec models`, a file or folder that `load_decoder` reads, the folder of a run (its exported weights, or
    the averaged ones of its last checkpoint if it has not ended), or one checkpoint of a run.

    Tensors must be exactly the network's, but for the adapter of a decoder that begins with a prior. Settings that
    leave no trace in tensors must agree too; another rotary reference, as for a step to larger images, is a warning.

    Raises:
        ValueError: a tensor or setting that does not fit, the first one named; or as `load_decoder`.
        OSError: as `load_decoder`.
    """
    start, tensors, settings = _find(path_or_name, network.state_dict().keys())
    try:
        _check_tensors(network, tensors)
        if settings is not None:
            _check_settings(network.settings, settings)
    except ValueError as error:
        raise ValueError(f"{path_or_name}: {error}") from error
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key in tensors:
                tensor.copy_(tensors[key])
    return start


def _find(path_or_name: str | Path, wanted: Set[str]) -> _Found:
    path = Path(path_or_name)
    if path.is_dir() and not any(card.name == str(path_or_name) for card in CARDS):
        if (path / ".metadata").exists():
            return _of_checkpoint(path, wanted)
        exported = next((path / name for name in EXPORTED if (path / name).exists()), None)
        if exported is not None:
            return _of_decoder(exported)
        if saved := checkpoints(path):
            return _of_checkpoint(saved[-1], wanted)
    return _of_decoder(path_or_name)


def _of_decoder(path_or_name: str | Path) -> _Found:
    try:
        loaded = load_decoder(path_or_name)
    except ValueError as error:
        if not isinstance(error.__cause__, AmbiguousSpaceError):
            raise
        loaded = load_decoder(path_or_name, space=error.__cause__.possible[0])  # shapes and settings are the same
    if isinstance(loaded.network, Nano):
        raise ValueError(f"{path_or_name} is not a PiD network, which is what starts here; see `pixdec models`")
    return Start(loaded.name, loaded.licence), loaded.network.state_dict(), loaded.network.settings


def _of_checkpoint(folder: Path, wanted: Set[str]) -> _Found:
    """The averaged weights; those that did not learn, which have no average, as they are."""
    record, settings = folder.parent / "settings.json", None
    try:
        tensors = read_average(folder)
        if not wanted <= tensors.keys():
            for stage in _STAGES:
                tensors = {**read_network(folder, stage), **tensors}
        if record.exists():
            recipe = json.loads(record.read_text())["recipe"]
            settings = settings_from_json(json.dumps(recipe["network"]), PiDSettings)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, CheckpointException) as error:
        reason = first_line_of(error)
        known = reason.startswith(str(folder))
        raise ValueError(reason if known else f"{folder}: not a checkpoint that can be read ({reason})") from error
    if any(".lora_A." in key for key in tensors):
        raise ValueError(f"{folder}: a run that trains a LoRA; begin with what it began with")
    return Start(folder.resolve().parent.name, UNKNOWN_LICENCE), tensors, settings


def _check_tensors(network: PiD, theirs: Mapping[str, Tensor]) -> None:
    ours = network.state_dict()
    from_prior = network.adapter is not None and not any(key.startswith(_OWN) for key in theirs)
    missing = [key for key in ours if key not in theirs and not (from_prior and key.startswith(_OWN))]
    odd = [key for key, tensor in ours.items() if key in theirs and theirs[key].shape != tensor.shape]
    more = [key for key in theirs if key not in ours]
    if odd:
        key = odd[0]
        problem = f"{key} is {list(theirs[key].shape)} there and {list(ours[key].shape)} in this recipe's network"
    elif missing:
        problem = f"{missing[0]} is missing there"
    elif more:
        problem = f"this recipe's network has no {more[0]}"
    else:
        return
    raise ValueError(f"{problem}; take the recipe it was made with, or set --network.… to its settings")


def _check_settings(ours: PiDSettings, theirs: PiDSettings) -> None:
    """What the same tensors would mean something else by."""
    mine, other = asdict(ours), asdict(theirs)
    if theirs.adapter is None:
        del mine["adapter"], other["adapter"]
    for where, here, there in differences(mine, other):
        if where == "backbone.reference":
            warnings.warn(
                f"begins with weights for the rotary reference {there} and goes on with {here}, where positions turn "
                f"at other rates; set --network.{where} to keep them",
                UserWarning,
                stacklevel=4,
            )
        else:
            raise ValueError(f"its network has {where}={there!r}, this recipe's {here!r}; set --network.{where}")


def differences(mine: object, theirs: object, where: str = "") -> Iterator[tuple[str, object, object]]:
    """Where two settings differ, as JSON has them: the name of the field, ours, theirs."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in {**mine, **theirs}:
            yield from differences(mine.get(key), theirs.get(key), f"{where}.{key}" if where else str(key))
    elif mine != theirs:
        yield where, mine, theirs
