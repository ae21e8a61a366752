"""pixdec generate: what it refuses, and how each failure speaks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from klein_pipeline import diffusers, hollow, klein, one_process, tiny, written

from pixdec.generation.pipeline import pipeline_errors

__all__ = ["hollow", "klein", "one_process"]

Run = Callable[..., Any]
Names = Callable[[Path], list[str]]


def test_memory_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match="out of memory on cpu; try --offload"), pipeline_errors("cpu"):
        torch.empty(2**50)
    with pytest.raises(ValueError, match="the pipeline failed: KeyError: 'latents'"), pipeline_errors("cpu"):
        {}["latents"]


# ---- refused before anything is loaded

WRONG: list[tuple[list[object], list[str]]] = [
    ([], ["expected --prompt TEXT or --prompts FILE: neither is given"]),
    (["--prompt", "x", "--prompts", "p.txt"], ["both are given"]),
    (["--prompt", " "], ["--prompt is empty"]),
    (["--prompts", "none.txt"], ["none.txt: there is no such file"]),
    (["--prompt", "x", "--decoder", "pixdec-nan"], ["pixdec-nan", "did you mean pixdec-nano"]),
    (["--prompt", "x", "--decoder", "pixdec-tiny"], ["pixdec-tiny", "no decoder"]),
    (["--prompt", "x", "--steps", 3, "--stop-after", 4], ["--stop-after 4", "3 steps"]),
    (["--prompt", "x", "--stop-after", 51], ["--stop-after 51", "50 steps, Flux2KleinPipeline's own number"]),
    (["--prompt", "x", "--stop-after", 0], ["--stop-after 0", "at least 1"]),
    (["--prompt", "x", "--stop-after", "soon"], ["soon"]),
    (["--prompt", "x", "--decoder-steps", 0], ["--decoder-steps 0"]),
    (["--prompt", "x", "--images-per-prompt", 1001], ["--images-per-prompt 1001", "1 to 1000"]),
    (["--prompt", "x", "--seed", -1], ["--seed -1"]),
    (["--prompt", "x", "--height", 100], ["height 100", "multiple of 16"]),
    (["--prompt", "x", "--negative", "y"], ["Flux2KleinPipeline takes no negative_prompt"]),
    (["--prompt", "x", "--device", "quantum"], ["--device quantum"]),
    (["--prompt", "x", "--memory", "lots"], ["--memory lots", "'8GB'"]),
    (["--prompt", "x", "--tile", 60], ["--tile 60", "take 64"]),
    (["--prompt", "x", "--device", "cpu", "--quantize", "fp8"], ["--quantize fp8 on cpu", "CUDA"]),
    (["--prompt", "x", "--device", "cpu", "--compile", "graphs"], ["--compile graphs on cpu", "CUDA"]),
    (["--prompt", "x", "-o", "fox.gif"], ["fox.gif", ".png"]),
    (["--prompt", "x", "-o", "taken/out"], ["cannot create the folder taken"]),
    (["--prompt", "x", "-o", "taken"], ["taken: it is a file, expected a folder"]),
    (["--prompts", "p.txt", "-o", "fox.png"], ["fox.png", "expected a folder"]),
    (["--prompts", "two.jsonl"], ["two.jsonl:2", "'Fox'", "two.jsonl:1"]),
    (["--prompts", "meet.jsonl", "--images-per-prompt", 2], ["meet.jsonl:2", "'fox-2'", "meet.jsonl:1"]),
    (["--prompts", "bad.jsonl"], ["bad.jsonl:2: not JSON"]),
    (["--prompts", "side.jsonl"], ["side.jsonl:1: width 40", "multiple of 16"]),
    (["--prompt", "x", "--pipeline", "empty"], ["empty: there is no model_index.json"]),
    (["--prompt", "x", "--pipeline", "no/such/folder"], ["no/such/folder: there is no such folder"]),
    (
        ["--prompt", "x", "--pipeline", "someone/klein"],
        ["cannot fetch model_index.json of someone/klein: ", "HF_HUB_OFFLINE"],
    ),
    (["--prompt", "x", "--pipeline", "single.safetensors"], ["single.safetensors: a single file", "from_single_file"]),
    (["--prompt", "x", "--pipeline", "models/absent.safetensors"], ["models/absent.safetensors: there is no such"]),
    (["--prompt", "x", "--pipeline", "future"], ["future: a NextPipeline", "diffusers"]),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: " ".join(map(str, value)))
def test_bad_input_is_refused_before_anything_is_loaded(
    run: Run,
    names: Names,
    hollow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("future").mkdir()
    Path("future/model_index.json").write_text('{"_class_name": "NextPipeline"}')
    Path("taken").touch()
    written(Path("p.txt"), "a red fox")
    written(Path("two.jsonl"), {"prompt": "x", "name": "fox"}, {"prompt": "y", "name": "Fox"})
    written(Path("meet.jsonl"), {"prompt": "x", "name": "fox"}, {"prompt": "y", "name": "fox-2"})
    written(Path("bad.jsonl"), {"prompt": "x"}, '{"prompt": }')
    written(Path("side.jsonl"), {"prompt": "x", "width": 40})
    Path("single.safetensors").write_bytes(b"weights")
    before = names(tmp_path)
    common: list[object] = [] if "--pipeline" in arguments else ["--pipeline", hollow]
    common += [] if "-o" in arguments else ["-o", "out"]
    run("generate", *common, *arguments).refused(*words)
    assert names(tmp_path) == before
    assert not Path("out").exists()


def test_a_pipeline_of_another_space_is_refused_before_its_weights_are_read(run: Run, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=tiny.sd3(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae_sd3(),
        **{f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")},
    )
    pipe.save_pretrained(tmp_path / "sd3")
    for weights in (tmp_path / "sd3").rglob("*.safetensors"):
        weights.unlink()
    common = ("generate", "--pipeline", tmp_path / "sd3", "--prompt", "x", "-o", tmp_path / "out")
    run(*common).refused("StableDiffusion3Pipeline makes latents of sd3, and pixdec-nano decodes flux2")
    run(*common, "--stop-after", 29).refused("--stop-after 29", "28 steps")
    run(*common, "--latents-only").refused("sd3", "cannot be loaded")  # its latents could be made


@pytest.mark.parametrize(
    ("kind", "space", "arguments", "words"),
    [
        ("QwenImagePipeline", "qwen-image", ["--guidance", 4], ["--prompt", "guides only against a negative prompt"]),
        ("QwenImagePipeline", "qwen-image", ["--guidance", 4, "--negative", " "], ["cannot be loaded"]),
        ("QwenImagePipeline", None, [], ["there is no pipe.vae", "name it"]),
        ("FluxPipeline", "flux1", ["--negative", "y"], ["heeds a negative prompt only with true_cfg_scale"]),
        ("FluxPipeline", "flux1", ["--guidance", 4], ["cannot be loaded"]),
        ("StableDiffusionXLPipeline", "sdxl", ["--negative", "y", "--guidance", 4], ["cannot be loaded"]),
        ("WanPipeline", "qwen-image", [], ["WanPipeline makes a video"]),
    ],
)
def test_arguments_that_a_pipeline_would_ignore(
    run: Run, tmp_path: Path, kind: str, space: str | None, arguments: list[object], words: list[str]
) -> None:
    written(tmp_path / "model_index.json", {"_class_name": kind, "vae": [None, None]})
    common = ["generate", "--pipeline", tmp_path, "--prompt", "x", "-o", tmp_path / "out", "--latents-only"]
    run(*common, *(["--space", space] if space else []), *arguments).refused(*words)


def test_a_pipeline_that_cannot_be_loaded(run: Run, names: Names, hollow: Path, tmp_path: Path) -> None:
    run("generate", "--pipeline", hollow, "--prompt", "x", "-o", tmp_path / "out").refused("hollow: cannot be loaded")
    assert names(tmp_path / "out") == []
