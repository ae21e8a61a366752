"""`pixdec convert`: an original checkpoint → safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pixdec.cli.options import Json
from pixdec.cli.report import Report
from pixdec.io.files import prepare


@dataclass(frozen=True)
class Convert:
    """Convert a decoder's checkpoint (.pth, or .safetensors of the original) into safetensors that say what they are.

    The values stay the same, in the same precision. None may be missing, unexpected or mis-shaped.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """The checkpoint, or the folder that holds it."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """The file to write."""
    space: str | None = None
    """The latent space, where neither file nor folder tells: FLUX.1, SD3 and Qwen-Image have the same shapes."""
    json: Json = False

    def run(self) -> int:
        from pixdec.weights.load import convert

        if not Path(self.source).exists():
            raise ValueError(f"{self.source}: there is no such file or folder")
        prepare([Path(self.target)])
        identity = convert(self.source, self.target, space=self.space)
        facts = {"name": identity.name, "kind": identity.kind, "version": identity.version, "space": identity.space}
        Report(json_lines=self.json).done(
            {"input": self.source, "output": self.target, **facts},
            f"{self.target}  {identity.kind} {identity.name}, {identity.version}, {identity.space or 'no space'}",
        )
        return 0
