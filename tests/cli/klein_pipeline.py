"""A FLUX.2 klein pipeline of small random components in a folder, and what tests of `pixdec generate` share."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

diffusers = pytest.importorskip("diffusers", reason="pixdec generate needs diffusers")
sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))

import tiny  # noqa: E402
import torch  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}{% if 'boat' in message['content'] %}{{ raise_exception('no boats') }}{% endif %}"
    "user {{ message['content'] }} {% endfor %}think"
)


@functools.cache
def saved_klein(folder: Path) -> Path:
    """The folder, written by `save_pretrained` once a session. Its chat template refuses boats."""
    tokenizer = copy.deepcopy(tiny.tokenizer(16))
    tokenizer.chat_template = TEMPLATE
    config = Qwen3Config(
        hidden_size=tiny.TEXT,
        intermediate_size=32,
        num_hidden_layers=27,  # klein reads the 27th's output
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=64,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=tiny.vae_flux2(),
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=tiny.flux2(False),
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder."""
    return saved_klein(tmp_path_factory.getbasetemp() / "klein")


@pytest.fixture
def hollow(klein: Path, tmp_path: Path) -> Path:
    """The same without weights: whoever loads it fails."""
    return shutil.copytree(klein, tmp_path / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment on import
    yield


def written(path: Path, *lines: str | dict[str, object]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path
