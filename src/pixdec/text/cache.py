"""Caption embeddings on disk, so that a repeated caption never loads the 5 GB encoder again."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor

from pixdec.io.files import cache_folder, write_whole
from pixdec.io.tensor_files import open_tensors

_KIND: Final = "caption embedding"


def default_folder() -> Path:
    """`captions` in the cache folder."""
    return cache_folder() / "captions"


class EmbeddingCache:
    """A folder of embeddings, one safetensors file each, named by the hash of all that determines the embedding.

    Each file carries its own key and the hash of its values: a truncated, damaged or misplaced one is noticed, said in
    a warning, and counts as not there. Files may be copied between machines, and several processes may share a folder.

    Args:
        folder: made when the first embedding is stored; None is `default_folder()`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder).expanduser()

    def path(self, key: str) -> Path:
        """The file of the embedding with this key, there or not."""
        return self.folder / f"{key}.safetensors"

    def load(self, key: str, shape: tuple[int, int]) -> Tensor | None:
        """The embedding (T, E), bfloat16 on the CPU; None when there is none, or none that is whole."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            return _read(path, key, shape)
        except ValueError as error:
            warnings.warn(f"ignoring the cached caption embedding {path}: {error}", stacklevel=2)
            return None

    def store(self, key: str, embedding: Tensor) -> None:
        """Keep an embedding (T, E), bfloat16. An unwritable folder is a warning: nothing is lost but time."""
        embedding = embedding.detach().cpu().contiguous()
        metadata = {"pixdec": _KIND, "key": key, "sha256": _digest(embedding)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.path(key), save({"embedding": embedding}, metadata))
        except OSError as error:
            warnings.warn(f"the caption embedding is not cached: {error}; set PIXDEC_CACHE to a folder", stacklevel=2)


def _read(path: Path, key: str, shape: tuple[int, int]) -> Tensor:
    file = open_tensors(path)
    metadata, embedding = file.metadata, file.tensors.get("embedding")
    if metadata.get("pixdec") != _KIND or metadata.get("key") != key or embedding is None:
        raise ValueError("it is not the embedding its name promises")
    if embedding.dtype != torch.bfloat16 or tuple(embedding.shape) != shape:
        raise ValueError(f"it holds {embedding.dtype} {tuple(embedding.shape)}, expected torch.bfloat16 {shape}")
    if metadata.get("sha256") != _digest(embedding):
        raise ValueError("its values do not match their checksum")
    return embedding


def _digest(embedding: Tensor) -> str:
    return hashlib.sha256(embedding.view(torch.uint8).numpy().tobytes()).hexdigest()
