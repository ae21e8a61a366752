"""Images made by the hundred: prompts through a generator and a decoder, and small images enlarged.

    from pixdec.generation import GenerationSettings, generate_many

    settings = GenerationSettings(pipeline="black-forest-labs/FLUX.2-klein-4B")
    for result in generate_many(["a lighthouse at dawn", "a red fox"], "images/", settings):
        print(result.image or result.error)

The same run again goes on where it ended: what exists with the same settings is not made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pixdec.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from pixdec.generation.enlarge import UpscaleSettings, upscale
    from pixdec.generation.generate import Generation, generate_many
    from pixdec.generation.items import Result
    from pixdec.generation.prompts import Prompt, read_prompts

_HOMES = {
    "Generation": "generate",
    "Result": "items",
    "generate_many": "generate",
    "Prompt": "prompts",
    "read_prompts": "prompts",
    "UpscaleSettings": "enlarge",
    "upscale": "enlarge",
}


def __getattr__(name: str) -> Any:  # the command line reads the settings, and must not import torch for that
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = [
    "Generation",
    "GenerationSettings",
    "Prompt",
    "Result",
    "UpscaleSettings",
    "generate_many",
    "read_prompts",
    "upscale",
]
