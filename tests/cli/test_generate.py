"""pixdec generate: a real FLUX.2 klein pipeline of small random components, from a folder, and the tiny decoder."""

from __future__ import annotations

import gc
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from klein_pipeline import diffusers, hollow, klein, one_process, written
from transformers import Qwen3ForCausalLM

from pixdec.decoder import PixelDecoder
from pixdec.generation.prompts import read_prompts
from pixdec.integrations.diffusers import generate
from pixdec.io.images import read_image, read_settings
from pixdec.latents import Latent
from pixdec.models.pid import PiD

__all__ = ["hollow", "klein", "one_process"]

Run = Callable[..., Any]
Names = Callable[[Path], list[str]]

SIZE = {"height": 32, "width": 48}
BASIC = ("--steps", 3, "--stop-after", 2, "--height", 32, "--width", 48, "--guidance", 1)
BASIC += ("--device", "cpu", "--dtype", "float32")


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(read_image(path))


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file()}


# ---- one image


def test_an_image_is_what_the_call_in_python_gives(run: Run, names: Names, klein: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = run("generate", "--pipeline", klein, "--prompt", "A red fox!", "-o", out, "--seed", 5, *BASIC, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert names(out) == ["00000-a-red-fox.png"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(klein)
    expected = generate(
        pipe,
        PixelDecoder.from_pretrained(),
        prompt="A red fox!",
        num_inference_steps=3,
        stop_after=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5),
        decoder_seed=5,
        **SIZE,
    )[0]
    image = out / "00000-a-red-fox.png"
    assert np.array_equal(pixels(image), np.asarray(expected))
    (record,) = outcome.records
    assert (record["input"], record["output"]) == ("00000-a-red-fox", str(image))
    assert (record["width"], record["height"]) == (192, 128)
    assert read_settings(image) == record["settings"]
    assert (
        record["settings"].items()
        >= {
            "verb": "generate",
            "pipeline": str(klein),
            "prompt": "A red fox!",
            "seed": 5,
            "generator_steps": 3,
            "stop_after": 2,
            "guidance": 1.0,
            "model": "pixdec-nano",
            "steps": 2,
            "space": "flux2",
        }.items()
    )
    assert 0 < record["settings"]["sigma"] < 1


def test_images_of_one_prompt_into_a_named_file(run: Run, names: Names, klein: Path, tmp_path: Path) -> None:
    out = tmp_path / "fox.webp"
    common = ("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", out, *BASIC)
    assert run(*common).code == 0
    assert run(*common, "--images-per-prompt", 2).code == 0
    assert names(tmp_path) == ["fox-2.webp", "fox.webp"]
    assert [read_settings(tmp_path / name)["seed"] for name in ("fox.webp", "fox-2.webp")] == [0, 1]
    assert not np.array_equal(pixels(out), pixels(tmp_path / "fox-2.webp"))
    again = ("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", tmp_path / "x.webp", *BASIC, "--seed", 1)
    assert run(*again).code == 0  # the second, made alone
    assert np.array_equal(pixels(tmp_path / "x.webp"), pixels(tmp_path / "fox-2.webp"))


# ---- many


def test_a_run_goes_on_where_it_ended(run: Run, names: Names, klein: Path, hollow: Path, tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.txt", "# animals", "a red fox", "", "a blue fox", "snow")
    out, pipeline = tmp_path / "out", tmp_path / "pipeline"
    pipeline.symlink_to(klein)
    common = ("generate", "--pipeline", pipeline, "--prompts", prompts, "-o", out, *BASIC)
    assert run(*common).code == 0
    images = ["00000-a-red-fox.png", "00001-a-blue-fox.png", "00002-snow.png"]
    assert names(out) == images
    assert [read_settings(out / name)["seed"] for name in images] == [0, 1000, 2000]
    first, before = pixels(out / images[1]), stamps(out)
    (out / images[1]).unlink()
    assert run(*common).code == 0
    assert np.array_equal(pixels(out / images[1]), first)
    assert {name: stamps(out)[name] for name in (images[0], images[2])} == {
        name: before[name] for name in (images[0], images[2])
    }
    pipeline.unlink()
    pipeline.symlink_to(hollow)  # where nothing is missing, nothing is loaded
    before = stamps(out)
    outcome = run(*common, "--json")
    assert (outcome.code, stamps(out)) == (0, before)
    assert outcome.records[0] == {"input": "00000-a-red-fox", "output": str(out / images[0]), "skipped": True}


def test_other_settings_stop_the_run_or_with_again_replace(run: Run, klein: Path, hollow: Path, tmp_path: Path) -> None:
    prompts, out = written(tmp_path / "p.txt", "a red fox", "snow"), tmp_path / "out"
    common = ("generate", "--pipeline", klein, "--prompts", prompts, "-o", out, *BASIC)
    assert run(*common).code == 0
    before = stamps(out)
    run(*common, "--decoder-steps", 1).refused("00000-a-red-fox.png", "steps 2, not 1", "1 more", "--again")
    run(*common, "--seed", 1).refused("seed 0, not 1")
    run("generate", "--pipeline", hollow, "--prompts", prompts, "-o", out, *BASIC).refused("pipeline", "--again")
    written(prompts, "a red fox", "the snow")
    (out / "00000-a-red-fox.png").touch()
    assert run(*common).code == 0  # another prompt has another name
    written(
        prompts, {"prompt": "a red fox", "name": "00000-a-red-fox", "seed": 0}, {"prompt": "x", "name": "00001-snow"}
    )
    jsonl = prompts.rename(tmp_path / "p.jsonl")
    common = ("generate", "--pipeline", klein, "--prompts", jsonl, "-o", out, *BASIC)
    run(*common).refused("00001-snow.png", "prompt 'snow', not 'x'")
    kept = stamps(out)["00000-a-red-fox.png"]
    assert run(*common, "--again").code == 0
    assert stamps(out)["00000-a-red-fox.png"] == kept
    assert stamps(out)["00001-snow.png"] != before["00001-snow.png"]
    assert read_settings(out / "00001-snow.png")["prompt"] == "x"


def test_how_the_decoder_is_run_is_recorded_and_compared_where_it_changes_the_image(
    run: Run, klein: Path, tmp_path: Path
) -> None:
    image = tmp_path / "fox.png"
    common = ("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", image, *BASIC)
    assert run(*common, "--memory", "3GB").code == 0
    whole, told = pixels(image), read_settings(image)
    assert (told.get("tile"), told.get("quantize"), told["memory"]) == (None, None, "3GB")
    before = stamps(tmp_path)
    assert run(*common).code == 0  # the same image without it
    assert stamps(tmp_path) == before
    run(*common, "--tile", 40).refused("fox.png", "tile None, not 40", "--again")
    run(*common, "--quantize", "int8").refused("fox.png", "quantize None, not 'int8'", "--again")
    assert run(*common, "--tile", 40, "--again").code == 0
    assert read_settings(image)["tile"] == 40
    assert not np.array_equal(pixels(image), whole)
    run(*common).refused("tile 40, not None")


def test_a_file_of_someone_else_is_not_overwritten(run: Run, klein: Path, photo: Any, tmp_path: Path) -> None:
    photo(tmp_path / "fox.png")
    common = ("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", tmp_path / "fox.png", *BASIC)
    run(*common).refused("fox.png", "was not made by `pixdec generate`")
    (tmp_path / "fox.png").write_text("no image")
    run(*common).refused("fox.png", "cannot be read")


def test_failures_are_one_line_each_and_retried(run: Run, names: Names, klein: Path, tmp_path: Path) -> None:
    pipeline = shutil.copytree(klein, tmp_path / "pipeline")
    prompts = written(tmp_path / "p.txt", "a boat", "a red fox", "the blue boat")
    common = ("generate", "--pipeline", pipeline, "--prompts", prompts, "-o", tmp_path / "out", *BASIC)
    outcome = run(*common)
    assert outcome.code == 2
    assert outcome.err == (
        "pixdec: 00000-a-boat: the pipeline failed: TemplateError: no boats\n"
        "pixdec: 00002-the-blue-boat: the pipeline failed: TemplateError: no boats\n"
    )
    assert names(tmp_path / "out") == ["00001-a-red-fox.png"]
    before = stamps(tmp_path / "out")
    template = pipeline / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("'boat' in", "'goat' in"))
    assert run(*common).code == 0
    assert stamps(tmp_path / "out").items() > before.items()
    assert len(names(tmp_path / "out")) == 3


def test_lines_have_settings_of_their_own(run: Run, klein: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "a red fox", "name": "wide", "width": 64, "seed": 7},
        {"prompt": "a red fox", "name": "as the options say"},
    ]
    prompts, out = written(tmp_path / "p.jsonl", *lines), tmp_path / "out"
    assert run("generate", "--pipeline", klein, "--prompts", prompts, "-o", out, *BASIC, "--format", "jpg").code == 0
    wide, plain = (read_image(out / f"{line['name']}.jpg").size for line in lines)
    assert (wide, plain) == ((256, 128), (192, 128))
    assert read_settings(out / "wide.jpg").items() >= {"seed": 7, "width": 64, "height": 32}.items()
    assert read_settings(out / "as the options say.jpg")["seed"] == 1000


# ---- latents


def test_saved_latents_decode_to_the_same_images(run: Run, names: Names, klein: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", out, *BASIC, "--seed", 3)
    assert run(*common, "--save-latents").code == 0
    assert names(out) == ["00000-a-red-fox.png", "00000-a-red-fox.safetensors"]
    latent = out / "00000-a-red-fox.safetensors"
    assert run("decode", latent, "-o", tmp_path / "later.png").code == 0  # the seed is in it
    assert np.array_equal(pixels(tmp_path / "later.png"), pixels(out / "00000-a-red-fox.png"))
    before = stamps(out)
    latent.unlink()
    assert run(*common, "--save-latents").code == 0  # only the latent is missing
    assert stamps(out)["00000-a-red-fox.png"] == before["00000-a-red-fox.png"]
    assert float(Latent.load(latent).sigma) == pytest.approx(read_settings(out / "00000-a-red-fox.png")["sigma"], 1e-4)


def test_latents_only_needs_no_decoder_and_images_come_later(
    run: Run, names: Names, klein: Path, hollow: Path, bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, out = tmp_path / "pipeline", tmp_path / "out"
    pipeline.symlink_to(klein)
    common = ("generate", "--pipeline", pipeline, "--prompt", "a red fox", "-o", out, *BASIC)
    with monkeypatch.context() as without:
        without.setattr("pixdec.weights.catalog.BUNDLED", tmp_path)  # where there is no decoder
        outcome = run(*common, "--latents-only", "--json")
    assert (outcome.code, names(out)) == (0, ["00000-a-red-fox.safetensors"])
    assert outcome.records[0]["shape"] == [1, 128, 2, 3]
    pipeline.unlink()
    pipeline.symlink_to(hollow)
    assert run(*common).code == 0  # the pipeline is not needed for it
    assert names(out) == ["00000-a-red-fox.png", "00000-a-red-fox.safetensors"]
    reference = tmp_path / "x.png"
    arguments = ("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", reference, *BASIC)
    assert run(*arguments).code == 0
    assert np.array_equal(pixels(reference), pixels(out / "00000-a-red-fox.png"))


def in_memory(*kinds: type[torch.nn.Module]) -> int:
    """How many networks of these kinds there are with weights."""
    gc.collect()
    networks = [each for each in gc.get_objects() if issubclass(type(each), kinds) and vars(each)]
    return sum(not next(network.parameters()).is_meta for network in networks)


def test_offload_keeps_generator_and_decoder_apart(
    run: Run, names: Names, klein: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    generator = (Qwen3ForCausalLM, diffusers.Flux2Transformer2DModel, diffusers.AutoencoderKLFlux2)

    def watched(owner: Any, what: str) -> None:
        load = owner.from_pretrained

        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            made = load(*args, **kwargs)
            if args[1:2] != ("meta",):
                seen.append((what, in_memory(*generator) - before[0], in_memory(PiD) - before[1]))
            return made

        monkeypatch.setattr(owner, "from_pretrained", from_pretrained)

    prompts = written(tmp_path / "p.txt", "a red fox", "a boat", "snow")
    common = ("generate", "--pipeline", klein, "--prompts", prompts, *BASIC)
    before = in_memory(*generator), in_memory(PiD)
    watched(diffusers.DiffusionPipeline, "generator")
    watched(PixelDecoder, "decoder")
    outcome = run(*common, "-o", tmp_path / "apart", "--offload")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert seen == [("generator", 3, 0), ("decoder", 0, 1)]
    seen.clear()
    assert run(*common, "-o", tmp_path / "resident").code == 2
    assert seen == [("decoder", 0, 1), ("generator", 3, 1)]
    images = ["00000-a-red-fox.png", "00002-snow.png"]
    assert names(tmp_path / "apart") == images == names(tmp_path / "resident")
    assert not (tmp_path / "apart" / ".pixdec-latents").exists()
    for name in images:
        assert np.array_equal(pixels(tmp_path / "apart" / name), pixels(tmp_path / "resident" / name))


def test_offload_killed_in_between_goes_on(
    run: Run, names: Names, klein: Path, hollow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, out = tmp_path / "pipeline", tmp_path / "out"
    pipeline.symlink_to(klein)
    prompts = written(tmp_path / "p.txt", "a red fox", "snow")
    common = ("generate", "--pipeline", pipeline, "--prompts", prompts, "-o", out, *BASIC, "--offload")
    load_decoder = PixelDecoder.from_pretrained

    def killed(*args: Any, **kwargs: Any) -> PixelDecoder:
        if args[1] != "meta":
            raise KeyboardInterrupt
        return load_decoder(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PixelDecoder, "from_pretrained", killed)
        assert run(*common).code == 130
    hidden = [".pixdec-latents/00000-a-red-fox.safetensors", ".pixdec-latents/00001-snow.safetensors"]
    assert names(out) == hidden
    pipeline.unlink()
    pipeline.symlink_to(hollow)
    assert run(*common).code == 0
    assert names(out) == ["00000-a-red-fox.png", "00001-snow.png"]
    assert not (out / ".pixdec-latents").exists()


def test_a_waiting_latent_of_other_settings_is_not_decoded(run: Run, names: Names, klein: Path, tmp_path: Path) -> None:
    stale, out = tmp_path / "stale.safetensors", tmp_path / "out"
    common = ("generate", "--pipeline", klein, "--prompts", written(tmp_path / "p.txt", "a boat", "snow"), *BASIC)
    run("generate", "--pipeline", klein, "--prompt", "a red fox", "-o", stale, *BASIC, "--latents-only")
    (out / ".pixdec-latents").mkdir(parents=True)
    for name in ("00000-a-boat", "00001-snow"):
        shutil.copy(stale, out / ".pixdec-latents" / f"{name}.safetensors")
    outcome = run(*common, "-o", out, "--offload")
    assert (outcome.code, outcome.err.count("no boats")) == (2, 1)
    assert names(out) == [".pixdec-latents/00000-a-boat.safetensors", "00001-snow.png"]
    assert run(*common, "-o", tmp_path / "fresh").code == 2
    assert np.array_equal(pixels(out / "00001-snow.png"), pixels(tmp_path / "fresh" / "00001-snow.png"))


# ---- decoders that read text


def test_captions_are_embedded_once_and_before_anything_is_loaded(
    run: Run, klein: Path, hollow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixdec.models.adapter import AdapterSettings
    from pixdec.models.pid import PiDSettings
    from pixdec.models.pixdit import PixDiTSettings
    from pixdec.text import CaptionEmbeddings
    from pixdec.weights.load import save_decoder

    backbone = PixDiTSettings(hidden=16, heads=2, depth=1, pixel_width=4, pixel_hidden=16, pixel_heads=2)
    adapter = AdapterSettings(latent_channels=128, latent_factor=16, width=8, blocks=1)
    decoder = tmp_path / "reads-text.safetensors"
    torch.manual_seed(0)
    network = PiD(PiDSettings(backbone, adapter)).initialize()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_decoder(network, decoder, name="reads-text", space="flux2", version="v1", licence="Apache-2.0")
    monkeypatch.setenv("PIXDEC_CACHE", str(tmp_path / "cache"))
    common = ("generate", "--prompt", "a red fox", *BASIC, "--decoder", decoder, "--decoder-steps", 1)
    run(*common, "--pipeline", hollow, "-o", tmp_path / "out").refused("'a red fox' has no embedding", "gemma")
    embeddings = CaptionEmbeddings()
    values = torch.randn(300, 2304, generator=torch.Generator().manual_seed(0)).bfloat16()
    for caption, embedding in (("a red fox", values), ("snow", -values)):
        embeddings.cache.store(embeddings.key(caption), embedding)
    assert run(*common, "--pipeline", klein, "-o", tmp_path / "fox.png").code == 0
    expected = PixelDecoder.from_pretrained(decoder, device="cpu")
    run(*common, "--pipeline", klein, "-o", tmp_path / "z.safetensors", "--latents-only")
    latent = Latent.load(tmp_path / "z.safetensors")
    told, other = (expected.decode(latent, caption, steps=1)[0] for caption in ("a red fox", "snow"))
    assert np.array_equal(pixels(tmp_path / "fox.png"), np.asarray(told))
    assert not np.array_equal(np.asarray(told), np.asarray(other))
    model = ("--model", decoder, "--steps", 1, "--device", "cpu")
    assert run("decode", tmp_path / "z.safetensors", "-o", tmp_path / "later.png", *model).code == 0
    assert np.array_equal(pixels(tmp_path / "later.png"), np.asarray(told))  # the prompt is in the latent


# ---- the page about it

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "generate.md").read_text()


def test_the_prompts_of_the_page_are_prompts(tmp_path: Path) -> None:
    lines = [row[4:] for row in PAGE.splitlines() if row.startswith('    {"prompt"')]
    prompts = read_prompts(written(tmp_path / "p.jsonl", *lines))
    assert [prompt.name for prompt in prompts] == ["lighthouse", None]


def test_a_latent_written_as_on_the_page_is_decoded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, script = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.replace("32, 32", "8, 8"), "generate.md", "exec"), {})
    outcome = run("decode", "mine.safetensors", "-o", "mine.png", "--steps", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert read_image("mine.png").size == (512, 512)
