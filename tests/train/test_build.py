"""Training from Python, recipes in files, and dry runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixdec.cli import main
from pixdec.train.build import train
from pixdec.train.dry_run import parts_of
from pixdec.train.recipe_files import open_recipe
from pixdec.train.recipes import (
    RECIPES,
    DecoderRecipe,
    FolderSettings,
    LoopSettings,
    decoder_tiny,
    student_paper_2k,
)
from shardset import folder_of, photograph
from trainset import SILENT


def small() -> DecoderRecipe:
    recipe = decoder_tiny()
    return replace(
        recipe,
        network=SILENT,
        loop=LoopSettings(steps=4, batch=2),
        data=replace(recipe.data, base=64, pages=0.0),
        folder=FolderSettings(save_every=2, sheet_every=0),
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(3):
        photograph(tmp_path / "photos" / f"{i}.png", 90, 80, seed=i)
    return tmp_path / "photos"


def test_training_from_python(photos: Path, tmp_path: Path):
    steps = train(small(), photos, tmp_path / "cut")
    begun = [next(steps).losses, next(steps).losses, next(steps).losses]
    steps.close()  # stopped after the third step, of which the second was saved
    ended = [step.losses for step in train(small(), photos, tmp_path / "cut")]
    whole = [step.losses for step in train(small(), photos, tmp_path / "whole")]
    assert [*begun[:2], *ended] == whole
    assert begun[2] == whole[2]
    assert (tmp_path / "cut" / "decoder.safetensors").exists()
    assert json.loads((tmp_path / "cut" / "settings.json").read_text())["data"] == str(photos)


def test_a_run_goes_on_with_the_images_it_began_with(tmp_path: Path):
    photos = folder_of(tmp_path / "photos", 2, ((64, 64),))
    next(train(small(), photos, tmp_path / "run"))
    folder_of(photos, 3, ((64, 64),))
    with pytest.raises(ValueError, match="run on other images than"):
        next(train(small(), photos, tmp_path / "run"))


TOML = """
recipe = "tiny"
space = "flux1"
times = [0.9, 0.4, 0.0]
[loop]
steps = 7
betas = [0.8, 0.9]
[objective.levels]
shift = "v1.5"
[objective.conditions.degrade]
jpeg = 0.5
[network.backbone]
reference = "none"
[network.adapter]
latent_channels = 16
"""


def test_a_recipe_in_toml(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    recipe, tiny = open_recipe("decoder", str(path)), decoder_tiny()
    assert isinstance(recipe, DecoderRecipe)
    assert recipe.network.adapter is not None
    assert (recipe.space, recipe.times, recipe.network.adapter.latent_channels) == ("flux1", (0.9, 0.4, 0.0), 16)
    assert recipe.network.backbone == replace(tiny.network.backbone, reference=None)
    assert recipe.loop == replace(tiny.loop, steps=7, betas=(0.8, 0.9))
    assert (recipe.objective.levels.shift, recipe.objective.conditions.degrade.jpeg) == ("v1.5", 0.5)
    assert (recipe.data, recipe.machine, recipe.folder) == (tiny.data, tiny.machine, tiny.folder)
    path.write_text('recipe = "tiny"')
    assert open_recipe("decoder", str(path)) == tiny


PYTHON = """
from dataclasses import replace
from pixdec.train.recipes import decoder_tiny

def recipe():
    return replace(decoder_tiny(), name="mine")
"""


def test_a_recipe_in_python_and_flags_over_it(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "mine.py"
    path.write_text(PYTHON)
    assert open_recipe("decoder", str(path)) == replace(decoder_tiny(), name="mine")
    assert main(["train", "decoder", str(path), "--dry-run", "--network.backbone.depth=1"]) == 0
    whole = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| all"))
    one = replace(decoder_tiny().network.backbone, depth=1)
    parts = parts_of(replace(decoder_tiny(), network=replace(decoder_tiny().network, backbone=one)))
    assert f"{sum(part.parameters for part in parts):,}" in whole


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[loop]\nsteps = 3", 'expected recipe = "…"'),
        ("a.toml", 'recipe = "huge"', "unknown recipe; expected one of paper-2k, v1-5, tiny"),
        ("a.toml", 'recipe = "tiny"\n[loop]\nstep = 3', "unknown field 'step'"),
        ("a.toml", 'recipe = "tiny"\n[loop]\nsteps = "many"', "steps='many'"),
        ("a.toml", 'recipe = "tiny"\n[loop]\nsteps = 0', "steps=0: expected at least 1"),
        ("a.toml", "recipe = ", "Invalid value"),
        ("a.py", "recipe = 3", "TypeError"),
        ("a.py", "x = 3", "a function recipe()"),
        ("a.py", "def recipe():\n    return 3", "returns a int; expected a DecoderRecipe"),
        ("a.py", "raise RuntimeError('no')", "RuntimeError (no)"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / name).write_text(text)
    assert main(["train", "decoder", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert f"{name}: " in said
    assert message in said
    assert len(said.splitlines()) == 1
    assert main(["train", "decoder", str(tmp_path / "absent.toml")]) == 2


@pytest.mark.parametrize(("stage", "name"), [(s, name) for s in ("prior", "decoder", "student") for name in RECIPES[s]])
def test_every_recipe_can_be_counted(stage: str, name: str):
    recipe = RECIPES[stage][name]()
    parts = parts_of(recipe)
    first = [part for part in parts if part.network == stage]
    learning = sum(part.learning for part in first)
    if name == "tiny":
        assert 5e6 < sum(part.parameters for part in first) < 1e7
    else:
        assert 1.25e9 < sum(part.parameters for part in first) < 1.45e9
    assert (learning < sum(part.parameters for part in first)) == (name == "v1_5")
    assert sum(part.bytes for part in first) == 4 * sum(part.parameters for part in first) + 16 * learning


def test_what_a_student_needs():
    parts = parts_of(student_paper_2k())
    assert {part.network for part in parts} == {"student", "fake", "discriminator", "teacher"}
    assert not any(part.learning for part in parts if part.network == "teacher")


def test_a_dry_run_takes_a_step_and_keeps_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    monkeypatch.setitem(RECIPES["decoder"], "small", small)  # pyright: ignore[reportArgumentType]
    assert main(["train", "decoder", "small", "--dry-run", "--data", str(photos), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for expected in ("| decoder | patch_blocks |", "a step in which decoder learn", "4 steps: ", "peak memory of this"):
        assert expected in said
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert torch.equal(torch.get_rng_state(), before)
