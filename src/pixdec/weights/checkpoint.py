"""Files of weights, opened without reading them: tensors are mapped into memory and come from disk when they are
touched.

A file is told by its content, not by its suffix: safetensors, or the zip archive that torch.save writes. Bare pickles
are not opened, and archives only as far as they hold plain tensors: anything else in them would be code.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pixdec.io.files import first_line_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_DTYPE_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
FLOATS = tuple(_DTYPE_NAMES)
RELEASED_FILE = "model_ema_bf16.pth"


@dataclass(frozen=True)
class Checkpoint:
    """An open file. `tensors` are memory-mapped, under the file's own keys; `metadata` is what safetensors carry,
    else empty."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def places(self) -> tuple[str, str]:
        """The names that may say what the file is: its own without suffix, and its folder's."""
        path = self.path.absolute()  # links are not followed: caches link released folders to blobs that have no name
        return path.stem, path.parent.name


def find_file(path: str | Path) -> Path:
    """`path` itself, or the one file of weights in that folder.

    Raises:
        ValueError: there is no such file, or not exactly one in the folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such file or folder")
    if (path / RELEASED_FILE).is_file():
        return path / RELEASED_FILE
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:4]) or "none"
        raise ValueError(f"{path}: expected one file of weights in this folder, found {found}; name the file")
    return files[0]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Map a file of weights, or the one in a folder.

    Raises:
        ValueError: missing, empty, truncated, not a checkpoint, or one that would run code.
    """
    file = find_file(path)
    with file.open("rb") as opened:
        head = opened.read(9)
    if not head:
        raise ValueError(f"{file}: the file is empty")
    if head[8:] == b"{":  # safetensors; the first eight bytes are a number, which may look like anything
        return Checkpoint(file, *_open_safetensors(file))
    if head.startswith(b"PK"):
        if file.suffix == ".safetensors":  # torch.load goes by the name
            raise ValueError(f"{file}: not safetensors but an archive that torch.save wrote; rename it to .pth")
        return Checkpoint(file, _open_archive(file), {})
    if head[:1] == b"\x80":
        raise ValueError(
            f"{file}: a bare pickle, which can run code when it is opened; "
            "expected safetensors or an archive that torch.save wrote (its default since 1.6)"
        )
    raise ValueError(f"{file}: not a checkpoint; expected safetensors or an archive that torch.save wrote")


def _open_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        # safetensors has no types of its own for what it opens.
        with cast("Any", safe_open(file, framework="pt", device="cpu")) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: safetensors that are damaged or cut short ({first_line_of(error)})") from error


def _open_archive(file: Path) -> dict[str, Tensor]:
    try:
        content: object = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: holds more than tensors ({_refused(error)}), which could run code; not opened. "
            "Save its state dict alone, or ask for safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: a torch archive that is damaged or cut short ({first_line_of(error)})") from error
    entries = _entries(content)
    for wrapper in ("state_dict", "model"):  # as training loops commonly save it
        entries = _entries(entries.get(wrapper)) or entries
    tensors = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors or len(tensors) != len(entries):
        others = [str(key) for key in entries if key not in tensors]
        what = f"entries such as {', '.join(others[:3])}" if others else type(content).__name__
        raise ValueError(f"{file}: not a state dict: it holds {what}; expected only names and tensors")
    return tensors


def _entries(content: object) -> Mapping[object, object]:
    return cast("Mapping[object, object]", content) if isinstance(content, Mapping) else {}


def _refused(error: Exception) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    return match.group(1) if match else "unknown objects"


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]
) -> None:
    """Writes tensors as `dtypes` one after the other, so that no more than one is converted or copied at a time.

    The library's own writer wants all of them at once, and makes files that only their owner may read. Layout: 8
    bytes of header length, a JSON header padded to 8 bytes, the data; wide numbers come first so that all are
    aligned.
    """
    keys = sorted(tensors, key=lambda key: (-dtypes[key].itemsize, key))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key in keys:
        start, end = end, end + tensors[key].numel() * dtypes[key].itemsize
        name = _DTYPE_NAMES[dtypes[key]]
        header[key] = {"dtype": name, "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for key in keys:
            tensor = tensors[key].detach().to("cpu", dtypes[key]).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


def network_keys(tensors: Iterable[str]) -> dict[str, str]:
    """Picks the keys of one network: its bare key -> the key in the file.

    Released files put `net.` in front; training checkpoints hold `net_ema.` beside it, which is preferred, and
    `fake_score.` and `discriminator.`, which are left out; PixelDiT's have `core.` and a `pos_embed`, which is left
    out too (specification §8). torch.compile adds `_orig_mod.` anywhere. Keys without the chosen prefix stay as they
    are, for the caller to refuse.

    Raises:
        ValueError: two keys of the file come to the same.
    """
    clean = {full: full.replace("_orig_mod.", "") for full in tensors}
    prefix = next((p for p in ("net_ema.", "net.") if any(key.startswith(p) for key in clean.values())), "")
    dropped = ("fake_score.", "discriminator.", *(["net."] if prefix == "net_ema." else []))
    names: dict[str, str] = {}
    for full, key in clean.items():
        bare = key.removeprefix(prefix).removeprefix("core.")
        if key.startswith(dropped) or bare == "pos_embed":
            continue
        if bare in names:
            raise ValueError(f"both {names[bare]} and {full} are the network's {bare}; keep one")
        names[bare] = full
    return names


def listed(names: Iterable[str], count: int = 3) -> str:
    """The first few, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
