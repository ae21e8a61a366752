"""`pixdec inspect`: what a checkpoint, latent or image is."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro

from pixdec.cli.options import Json
from pixdec.cli.report import tell
from pixdec.io.files import one_line

Facts = dict[str, object]


@dataclass(frozen=True)
class Inspect:
    """Say what a file is: a checkpoint (version, latent space, parameters, settings), a LoRA (of which model), a latent
    (space, noise level, statistics), or an image and the settings it was made with.

    A file with a defect is described as far as possible, its defect is named on stderr, and the exit code is 2.
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A checkpoint or the folder that holds one, a LoRA, a latent, or an image."""
    json: Json = False

    def run(self) -> int:
        from pixdec.io.images import READABLE

        path = Path(self.file)
        facts = _image(path) if path.suffix.lower() in READABLE else _tensors(path)
        if self.json:
            print(json.dumps(facts))
        else:
            for name, value in _flat({key: value for key, value in facts.items() if key != "problem"}):
                print(f"{name}: {value}")
        if facts.get("problem"):
            tell(f"{self.file}: {one_line(facts['problem'])}")
            return 2
        return 0


def _image(path: Path) -> Facts:
    from pixdec.io.images import image_size, read_settings

    width, height = image_size(path)
    facts: Facts = {"file": str(path), "kind": "image", "bytes": path.stat().st_size, "width": width, "height": height}
    return {**facts, "settings": read_settings(path) or None}


def _tensors(path: Path) -> Facts:
    from pixdec.weights.describe import describe

    found = describe(path)
    stated = ("kind", "name", "base", "role", "version", "space", "scale", "licence")
    facts: Facts = {"file": str(found.path), **{name: getattr(found, name) for name in stated}, "bytes": found.size}
    counted = ("tensors", "parameters", "dtypes", "problem")
    facts |= {name: getattr(found, name) for name in counted}
    if found.kind == "latent":
        return _latent(found.path, facts)
    if found.problem is None and found.kind in ("decoder", "autoencoder", "lora", "pixel"):
        facts["settings"] = asdict(found.settings) if is_dataclass(found.settings) else found.settings
    return facts


def _latent(path: Path, facts: Facts) -> Facts:
    """The facts of a latent, in place of those of a checkpoint."""
    from pixdec.latents import Latent, check_latent

    facts = {key: facts[key] for key in ("file", "kind", "space", "bytes", "dtypes")}
    try:
        latent = Latent.load(path, statistics=False)
        values = latent.tensor.float()
        factor = latent.space.factor
        facts |= {
            "shape": list(latent.tensor.shape),
            "image": f"{latent.tensor.shape[3] * factor}x{latent.tensor.shape[2] * factor}",
            "sigma": [round(float(level), 6) for level in latent.sigma],
            "mean": round(float(values.mean()), 4),
            "std": round(float(values.std(correction=0)), 4),
            "min": round(float(values.min()), 4),
            "max": round(float(values.max()), 4),
        }
        check_latent(latent.tensor, latent.space, sigma=latent.sigma)
    except ValueError as error:
        facts["problem"] = str(error).removeprefix(f"{path}: ")
    return facts


def _flat(facts: Mapping[str, object], prefix: str = "") -> Generator[tuple[str, object]]:
    """Nested facts as "outer.inner" and value, without those that are None."""
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, object]", value), f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(item) for item in cast("list[object]", value))
        elif value is not None:
            yield f"{prefix}{key}", value
