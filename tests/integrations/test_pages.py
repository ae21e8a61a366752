"""The script on each page of docs/pipelines runs: on the real pipeline class, with small components in place of the
named weights, a small image, and caption embeddings in place of captions."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import diffusers
import pytest
from PIL import Image

from pixdec.decoder import PixelDecoder
from pixdec.weights.catalog import CARDS

PAGES = Path(__file__).resolve().parents[2] / "docs" / "pipelines"
BY_PAGE = {"flux1": "flux", "flux2": "flux2-klein"}
BY_NAME = {case.name: case for case in cases.ALL}


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md")))
def test_the_script_runs(
    page: str, decoder_of: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = BY_NAME[BY_PAGE.get(page, page)]
    script = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)[0]
    script = re.sub(r"height=\d+", f"height={cases.HEIGHT}", script)
    script = re.sub(r"width=\d+", f"width={cases.WIDTH}", script)
    script = re.sub(r' *negative_prompt=".*?",\n', "", script)
    script, captions = re.subn(r'prompt=".*?"', "**embeddings", script)
    assert captions == 1
    pipe, decoder = case.build(), decoder_of(case.space)
    named: list[str] = []

    def pretrained(name: str, **_: Any) -> Any:
        named.append(name)
        return decoder if name in {card.name for card in CARDS} else pipe

    monkeypatch.setattr(type(pipe), "from_pretrained", pretrained)
    monkeypatch.setattr(PixelDecoder, "from_pretrained", pretrained)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "enable_model_cpu_offload", lambda self: None)
    monkeypatch.chdir(tmp_path)
    text = ("prompt", "pooled_prompt", "negative", "max_sequence_length", "text_encoder")
    embeddings = {key: value for key, value in case.arguments().items() if key.startswith(text)}
    accepted = inspect.signature(type(pipe).__call__).parameters
    for key in [key for key in embeddings if key.endswith("embeds") and f"negative_{key}" in accepted]:
        embeddings.setdefault(f"negative_{key}", embeddings[key])  # for guidance, which asks for them
    exec(compile(script, f"{page}.md", "exec"), {"embeddings": embeddings})
    assert Image.open("fox.png").size == (4 * cases.WIDTH, 4 * cases.HEIGHT)
    card = next(card for card in CARDS if card.name == named[1])
    assert card.space == "rgb" or case.space in card.spaces
    assert f"pid-{case.space}" in (PAGES / f"{page}.md").read_text() or card.name in named
