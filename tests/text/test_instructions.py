"""The constants are the bytes the weights were trained with."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from pixdec.text import CHI_PROMPT, NEGATIVE_PROMPT

REFERENCE = Path(__file__).resolve().parents[2] / "../shared/reference"
DIGESTS = {
    "chi_prompt.txt": "62b9ab89eebb0ac5ee4d264bf96bf19d2b81f504bc3852500efeaf5a34d638b1",
    "negative_prompt.txt": "3fbcee537cdf91145d41ac74b4c7a5c9f3f4132c1bc1b6dfcab4fed0a9984f86",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_files_are_intact(name: str) -> None:
    assert hashlib.sha256(files("pixdec.text").joinpath(name).read_bytes()).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_the_files_are_those_of_the_reference(name: str) -> None:
    if not (REFERENCE / name).exists():
        pytest.skip("the folder of reference data is not there")
    assert files("pixdec.text").joinpath(name).read_bytes() == (REFERENCE / name).read_bytes()


def test_the_constants_are_the_files() -> None:
    texts = {"chi_prompt.txt": CHI_PROMPT, "negative_prompt.txt": NEGATIVE_PROMPT}
    for name, text in texts.items():
        assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[name]
    assert CHI_PROMPT.endswith("User Prompt: ")  # the caption follows at once
