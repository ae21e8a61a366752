"""`pixdec env`: what an issue should say about the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pixdec.cli.options import Json


@dataclass(frozen=True)
class Env:
    """Print versions, processor and devices, ready to be pasted into an issue."""

    json: Json = False

    def run(self) -> int:
        from pixdec.devices import environment

        found = environment()
        print(json.dumps(found) if self.json else "\n".join(f"{name}: {value}" for name, value in found.items()))
        return 0
