"""Where the caption encoder's files come from: a repository of the Hugging Face hub or a local folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pixdec.io.files import digest_of, first_line_of
from pixdec.io.hub import HUB_ID, Access, fetch_folder

GEMMA: Final = "google/gemma-2-2b-it"

_FILES: Final = ("*.json", "tokenizer.model", "*.safetensors")  # what the encoder reads; no pickles


class EncoderUnavailableError(ValueError):
    """A caption has to be encoded and the encoder cannot be had: one line that says why and what to fetch."""


def identity(source: str | Path, revision: str = "main") -> str:
    """Name the weights and the tokenizer behind `source` such that another content has another name.

    For a hub repository this is its id and revision, so it needs no network and is the same on every machine. For a
    folder it is a fingerprint of the files: copying or moving the folder does not change it. Weights are sampled, not
    read whole (5 GB on every look-up): a fine-tuned, merged or quantised copy differs, a single edited number may not.

    Raises:
        EncoderUnavailableError: `source` is neither an existing folder nor of the form `owner/name`.
    """
    folder = local_folder(source)
    if folder is None:
        return f"{source}@{revision}"
    digest = hashlib.sha256()
    for file in sorted(_matching(folder)):
        digest.update(f"{file.name}\0".encode() + digest_of(file))
    return f"folder:{digest.hexdigest()}"


def local_folder(source: str | Path) -> Path | None:
    """The folder `source` names, or None when it is the id of a hub repository.

    Raises:
        EncoderUnavailableError: it is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        return None
    raise EncoderUnavailableError(
        f"no caption encoder at {str(source)!r}: expected a folder that holds Gemma-2 or a hub id such as {GEMMA!r}"
    )


def fetch(source: str | Path, revision: str = "main") -> Path:
    """The folder that holds the files of `source`; a hub repository is downloaded once, into the hub's own cache.

    Raises:
        EncoderUnavailableError: not a folder and not downloadable, or not the files of a Gemma-2 model.
    """
    folder = local_folder(source)
    if folder is None:
        try:
            folder = fetch_folder(str(source), list(_FILES), Access(revision))
        except OSError as error:
            raise EncoderUnavailableError(
                f"the caption encoder: {error}; or name a local folder that holds it"
            ) from error
    _check_gemma2(folder)
    return folder


def _check_gemma2(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file() or not any(folder.glob("*.safetensors")):
        raise EncoderUnavailableError(
            f"the folder {folder} holds no caption encoder: expected Gemma-2's config.json, tokenizer and *.safetensors"
        )
    try:
        settings: Any = json.loads(config.read_bytes())
        kind = settings["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderUnavailableError(
            f"{config} is not the configuration of a model ({first_line_of(error)})"
        ) from error
    if kind != "gemma2":
        raise EncoderUnavailableError(
            f"the caption encoder in {folder} is a {kind!r} model; expected 'gemma2' ({GEMMA})"
        )


def _matching(folder: Path) -> Iterable[Path]:
    return (file for pattern in _FILES for file in folder.glob(pattern) if file.is_file())
