"""The two texts the released weights were trained with, kept as files beside this module, byte for byte."""

from __future__ import annotations

from importlib.resources import files
from typing import Final


def _read(name: str) -> str:
    # Bytes, then UTF-8: reading as text would translate line endings, and with them the tokens.
    return files("pixdec.text").joinpath(name).read_bytes().decode("utf-8")


CHI_PROMPT: Final = _read("chi_prompt.txt")
"""The instruction that stands before every caption ("complex human instruction"); ends in `User Prompt: `."""

NEGATIVE_PROMPT: Final = _read("negative_prompt.txt")
"""The caption of the unconditional branch under guidance; encoded like any other caption, instruction included."""
