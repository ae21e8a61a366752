"""What outputs record of how they were made, and what of it an earlier run has made already.

An output's settings say what was done. What was asked for differently ("auto", or nothing at all) stands beside it
under "asked", so that the same command can tell later whether the file is the one that it would make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pixdec import __version__
from pixdec.inference.arrangement import Arrangement
from pixdec.inference.config import InferenceConfig
from pixdec.io.files import digest_of
from pixdec.io.hub import Access
from pixdec.io.images import read_settings
from pixdec.latents import latent_settings
from pixdec.weights.load import find_weights

Asked = Mapping[str, object]
"""The settings that determine an output and are known before it is made; None for what is left to the model."""


def record_of(verb: str, asked: Asked, done: Mapping[str, object]) -> dict[str, object]:
    """The settings to save with an output: what was asked for, and what was `done` in its place or besides."""
    found = {"pixdec": __version__, "verb": verb, **asked, **done}
    other = {key: asked[key] for key in done if key in asked and asked[key] != done[key]}
    return {**{key: value for key, value in found.items() if value is not None}, **({"asked": other} if other else {})}


def changed_by(config: InferenceConfig) -> dict[str, object]:
    """What of a config makes an image another one, as part of what is asked for."""
    changes = config.changes()
    return {key: changes.get(key) for key in ("tile", "quantize", "attention")}


def done_by(how: Arrangement, config: InferenceConfig) -> dict[str, object]:
    """How a network was called, as part of what was done. What "auto" led to stands in its place."""
    return {**how.record(), "memory": None if config.memory == "auto" else config.memory}


def difference(path: Path, verb: str, asked: Asked) -> str | None:
    """What keeps an output from being the one asked for; "" if it is the one, None if there is no file."""
    if not path.exists():
        return None
    try:
        made = latent_settings(path) if path.suffix == ".safetensors" else read_settings(path)
    except ValueError:
        return "already exists, and cannot be read"
    if made.get("verb") != verb:
        return f"already exists, and was not made by `pixdec {verb}`"
    other = made.get("asked")
    made = {**made, **(cast("dict[str, Any]", other) if isinstance(other, dict) else {})}
    for key, value in asked.items():  # what was not recorded was not set
        if (earlier := made.get(key)) != value:
            return f"was made with {key} {_short(earlier)}, not {_short(value)}"
    return ""


def is_made(path: Path, verb: str, asked: Asked) -> bool:
    """Whether a file is there that was made so."""
    return difference(path, verb, asked) == ""


def fingerprint(path: str | Path) -> str:
    """Tells one file from another by its content (`files.digest_of`); of a folder, by that of the files in it."""
    path = Path(path)
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(digest_of(file) for file in files)).hexdigest()[:16]


def weights_fingerprint(name_or_path: str | Path, revision: str | None = None) -> str:
    """The fingerprint of a model's weights, by name or path, which must be on this machine.

    Raises:
        ValueError, OSError: as `weights.load.find_weights`.
    """
    return fingerprint(find_weights(name_or_path, Access(revision, local_files_only=True)))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
