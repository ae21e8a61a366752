"""Files of weights: one file, a folder that holds one, or parts with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pixdec.io.tensor_files import ONLY, TensorFile, open_tensors

SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin")
RELEASED_FILE = "model_ema_bf16.pth"
_INDEX = ".index.json"
_PART = re.compile(r"-\d{5}-of-(\d{5})\.\w+$")  # as transformers, diffusers and the hub's client name the parts


def find_file(path: str | Path) -> Path:
    """`path` itself, or the one file of weights in that folder: an index if there is one.

    Raises:
        ValueError: there is no such file, or not exactly one in the folder.
    """
    path = Path(path)
    if path.is_file():
        return _index_of(path) or path
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such file or folder")
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{path}: a diffusers pipeline, for `pixdec generate --pipeline`; expected a decoder's weights"
        )
    if (path / RELEASED_FILE).is_file():
        return path / RELEASED_FILE
    indices = sorted(path.glob(f"*{_INDEX}"))
    files = indices or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:4]) or "none"
        raise ValueError(f"{path}: expected one file of weights in this folder, found {found}; name the file")
    return files[0]


def open_checkpoint(path: str | Path) -> TensorFile:
    """Map a file of weights, the one in a folder, or the parts that an index names.

    Raises:
        ValueError: missing, empty, cut short, not a checkpoint, one that would run code, or parts that are not whole.
    """
    file = find_file(path)
    if file.name.endswith(_INDEX):
        return _joined(file)
    opened = open_tensors(file)
    if ONLY in opened.tensors:
        raise ValueError(f"{file}: no state dict: it holds a tensor without a name, like a latent for `pixdec decode`")
    return opened


def places_of(file: TensorFile) -> tuple[str, str]:
    """The names that may say what a file is: its own without suffix, and its folder's."""
    path = file.path.absolute()  # links are not followed: caches link released folders to blobs that have no name
    return path.name.removesuffix(_INDEX).removesuffix(path.suffix), path.parent.name


def _index_of(part: Path) -> Path | None:
    """The index of a file that is one part of several. Raises ValueError if there is none."""
    match = _PART.search(part.name)
    if match is None or int(match.group(1)) < 2:
        return None
    indices = [index for index in part.parent.glob(f"*{_INDEX}") if part.name in _parts(index).values()]
    if len(indices) != 1:
        raise ValueError(
            f"{part}: one of {int(match.group(1))} parts, without the index ({part.name[: match.start()]}.safetensors"
            f"{_INDEX}) that says what the others hold; put it beside them"
        )
    return indices[0]


def _parts(index: Path) -> dict[str, str]:
    """Which tensor is in which file, as an index says."""
    try:
        parts: Any = json.loads(index.read_bytes())["weight_map"]
        parts = {str(key): str(name) for key, name in parts.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: not an index of weights; expected JSON with a weight_map") from error
    outside = next((name for name in parts.values() if name in ("", ".", "..") or "/" in name or "\\" in name), None)
    if outside is not None:
        raise ValueError(f"{index}: names {outside!r}; expected files beside the index")
    return cast("dict[str, str]", parts)


def _joined(index: Path) -> TensorFile:
    """All parts as one file."""
    parts = _parts(index)
    names = sorted(set(parts.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent or not names:
        raise ValueError(f"{index}: {len(absent)} of {len(names)} parts are missing: {listed(absent)}; download them")
    opened = [open_tensors(index.parent / name) for name in names]
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name, file in zip(names, opened, strict=True):
        wrong = [key for key in file.tensors if parts.get(key) != name]
        lost = [key for key, where in parts.items() if where == name and key not in file.tensors]
        if wrong or lost:
            raise ValueError(f"{index}: does not fit {name}: {listed(wrong or lost)}; download both again")
        tensors.update(file.tensors)
        metadata.update(file.metadata)
    return TensorFile(index, tensors, metadata, sum(file.size for file in opened))


def listed(names: Iterable[str], count: int = 3) -> str:
    """The first few, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
