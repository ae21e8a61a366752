"""Latent files that also say how they were made: what a later run needs to know whether it can use one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pixdec.files import replacing

if TYPE_CHECKING:
    from pixdec.latents import Latent


def save_latent(latent: Latent, path: str | Path, *, settings: Mapping[str, object]) -> None:
    """Write what `Latent.save` writes, and `settings` (JSON) into the metadata beside it. `Latent.load` reads it.

    Raises:
        OSError: `path` cannot be written.
    """
    from safetensors.torch import save

    metadata = {
        "pixdec": "latent",
        "space": latent.space.name,
        "sigma": json.dumps([float(level) for level in latent.sigma]),
        "settings": json.dumps(settings),
    }
    data = save({"latent": latent.tensor.detach().cpu().contiguous()}, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def latent_settings(path: str | Path) -> dict[str, object]:
    """The settings that `save_latent` wrote; empty if there are none.

    Raises:
        ValueError: not a readable safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with cast("Any", safe_open(path, framework="pt")) as opened:  # safetensors has no types for what it opens
            text = (opened.metadata() or {}).get("settings", "")
        found: object = json.loads(text) if text else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable latent file ({error})") from error
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}
