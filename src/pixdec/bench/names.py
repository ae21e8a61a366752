"""What stands in the table, by name. Nothing is loaded here, and torch is not imported.

Ours:
    plain                      the exact path written plainly, as the original runs (see `ours`)
    eager                      `PixelDecoder.decode` as it comes
    compiled, graphs           the same, compiled; and with CUDA graphs
Beside it, a decode of a latent, an enlargement, or one after the other:
    vae:flux1[:tiled|:sliced]  diffusers' VAE decode, also of flux2 and sdxl, at the output's own size
    tiny                       the bundled tiny decoder, at the output's own size
    vae:flux2+lanczos          a decode at output/scale, then enlarged by Pillow; likewise tiny+lanczos
    vae:flux2+real-esrgan      the same, enlarged by Real-ESRGAN x4plus with random weights
    vae:flux2+spandrel:FILE    the same, by any model file that spandrel reads
    vae:flux2+upscaler:FOLDER  the same, by a diffusers upscaling pipeline
    lanczos, real-esrgan, spandrel:FILE, upscaler:FOLDER   an image of output/scale enlarged, nothing decoded
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Ours = Literal["plain", "eager", "compiled", "graphs"]
Vae = Literal["flux1", "flux2", "sdxl"]
Way = Literal["whole", "tiled", "sliced"]
Enlarger = Literal["lanczos", "real-esrgan", "spandrel", "upscaler"]

OURS: tuple[Ours, ...] = ("plain", "eager", "compiled", "graphs")
VAES: tuple[Vae, ...] = ("flux1", "flux2", "sdxl")
RANDOM = ("random:v1", "random:v1.5")  # the released networks' size with random weights: no file
FORMS = (
    "vae:flux1, vae:flux2 or vae:sdxl (or one with :tiled or :sliced), tiny, lanczos, real-esrgan, spandrel:FILE, "
    "upscaler:FOLDER, or one that decodes + one that enlarges"
)


@dataclass(frozen=True)
class Beside:
    """What a name stands for. `decode` None: an image is given, and only enlarged. `enlarge` None: the latent is
    decoded at the output's own size. `place`: of the enlarger's file or folder."""

    decode: Vae | Literal["tiny"] | None
    way: Way
    enlarge: Enlarger | None
    place: str | None


def parse_beside(name: str) -> Beside:
    """The parts of a baseline's name.

    Raises:
        ValueError: it has no such form, or names a file that is not there.
    """
    head, plus, tail = name.partition("+") if name.startswith(("vae:", "tiny")) else ("", "", name)
    decode, way = _decode(name, head) if head else (None, "whole")
    if head and not plus:
        return Beside(decode, way, None, None)
    kind, colon, place = tail.partition(":")
    if kind not in ("lanczos", "real-esrgan", "spandrel", "upscaler") or bool(place) != (
        kind in ("spandrel", "upscaler")
    ):
        raise ValueError(f"--beside {name}: expected {FORMS}")
    if kind == "spandrel" and not Path(place).is_file():
        raise ValueError(f"--beside {name}: there is no file {place}; name a model file that spandrel reads")
    return Beside(decode, way, kind, place if colon else None)


def _decode(name: str, head: str) -> tuple[Vae | Literal["tiny"], Way]:
    if head == "tiny":
        return "tiny", "whole"
    kind, vae, *ways = head.split(":")
    way = ways[0] if ways else "whole"
    if kind != "vae" or vae not in VAES or way not in ("whole", "tiled", "sliced") or len(ways) > 1:
        raise ValueError(f"--beside {name}: expected {FORMS}")
    return vae, way
