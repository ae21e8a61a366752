"""Files of tensors, opened without reading them: tensors are mapped, and come from disk when they are touched.

A file is told by its content, not by its suffix: safetensors, the zip archive that torch.save writes, or an array of
numpy. Bare pickles are not opened, and archives only as far as they hold plain tensors: anything else would be code.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from pixdec.io.files import first_line_of

DTYPE_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
ONLY = ""  # the name of the tensor in a file that holds one without a name

_OTHERS = {  # first bytes: what the file is, and what to do
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file in a clone; run `git lfs pull` there, or "
    "download the file itself",
    b"GGUF": "GGUF, quantized weights for other programs; take the safetensors that it was made from",
    b"\x80": "a bare pickle, which can run code when it is opened; load it where you trust it and save it as "
    "safetensors, or by torch.save as PyTorch does since 1.6",
    b"\x89PNG": "a PNG image; `pixdec upscale` takes images, here a file of tensors is expected",
    b"\xff\xd8\xff": "a JPEG image; `pixdec upscale` takes images, here a file of tensors is expected",
    b"\x89HDF": "HDF5, as Keras saves weights; save the tensors as safetensors",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"{": "JSON, no tensors",
}
_HTML = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)
_DOWNLOAD = "what a download leaves that was refused; log in (`hf auth login`), accept the terms if there are any, and"


@dataclass(frozen=True)
class TensorFile:
    """An open file. `tensors` are memory-mapped, under the file's own names, or `ONLY`; `metadata` is what safetensors
    carry, else empty; `size` in bytes."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    size: int


def open_tensors(path: str | Path) -> TensorFile:
    """Map a file of tensors.

    Raises:
        ValueError: missing, unreadable, empty, cut short, no file of tensors, or one that would run code.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            head = opened.read(256)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({first_line_of(error)})") from error
    if not head:
        raise ValueError(f"{path}: the file is empty")
    metadata: dict[str, str] = {}
    if head[8:9] == b"{":  # safetensors; the first eight bytes are a number, which may look like anything
        tensors, metadata = _safetensors(file)
    elif head.startswith(b"PK"):
        if file.suffix == ".safetensors":  # torch.load goes by the name
            raise ValueError(f"{file}: not safetensors but an archive that torch.save wrote; rename it to .pth")
        tensors = _archive(file)
    elif head.startswith(b"\x93NUMPY"):
        tensors = _array(file)
    else:
        raise ValueError(f"{file}: {_what(head)}")
    return TensorFile(file, tensors, metadata, size)


def tensors_in(data: bytes, name: str) -> TensorFile:
    """The tensors of safetensors in memory, which messages call `name`.

    Raises:
        ValueError: it is none, or damaged.
    """
    try:
        tensors, metadata = load(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return TensorFile(Path(name), tensors, metadata.get("__metadata__") or {}, len(data))
    except Exception as error:  # as below
        raise ValueError(f"{name}: no safetensors, or damaged or cut short ({first_line_of(error)})") from error


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
        name = DTYPE_NAMES[dtypes[key]]
        header[key] = {"dtype": name, "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for key in keys:
            tensor = tensors[key].detach().to("cpu", dtypes[key]).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


# A damaged file makes these libraries raise anything, IndexError and TypeError too: all of it means one thing.


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        # safetensors has no types of its own for what it opens.
        with cast("Any", safe_open(file, framework="pt", device="cpu")) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{file}: safetensors that are damaged or cut short ({first_line_of(error)})") from error


def _archive(file: Path) -> dict[str, Tensor]:
    try:
        content: object = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{file}: holds more than tensors ({found.group(1) if found else 'unknown objects'}), which could run "
            "code; not opened. Save its state dict alone, or ask for safetensors"
        ) from error
    except Exception as error:
        raise ValueError(f"{file}: a torch archive that is damaged or cut short ({first_line_of(error)})") from error
    if isinstance(content, Tensor):
        return {ONLY: content}
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


def _array(file: Path) -> dict[str, Tensor]:
    try:
        values = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        return {ONLY: torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))}
    except Exception as error:
        raise ValueError(
            f"{file}: an array of numpy that is damaged, or holds no numbers ({first_line_of(error)})"
        ) from error


def _what(head: bytes) -> str:
    """What a file of another kind is, and what to do."""
    for start, what in _OTHERS.items():
        if head.startswith(start):
            return what
    if _HTML.match(head):
        return f"a web page, {_DOWNLOAD} download it again"
    text = head.decode("ascii", "replace")
    if text.isprintable() or (text.isascii() and text.replace("\n", " ").replace("\r", " ").isprintable()):
        return f"a text file that begins {' '.join(text.split())[:40]!r}, perhaps {_DOWNLOAD} download it again"
    return "neither safetensors nor an archive that torch.save wrote; download it again if it should be one"
