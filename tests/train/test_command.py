"""`pixdec train`: a run and its folder, resumption after any stop, and what goes wrong in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.cli import main
from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.train.checkpoints import checkpoints, read_average

SMALL = [
    "--network.backbone.hidden=24", "--network.backbone.heads=2", "--network.backbone.depth=2",
    "--network.backbone.pixel-width=4", "--network.backbone.pixel-hidden=24", "--network.backbone.pixel-heads=2",
    "--network.adapter.width=8", "--network.adapter.blocks=1",
    "--data.base=90", "--data.fit.zoom=1.2", "--folder.sheet-images=2", "--loop.batch=2", "--device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(6):
        coarse = rng.integers(0, 255, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((110 + i, 90), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


Train = Callable[..., int]


@pytest.fixture
def train(photos: Path, capfd: pytest.CaptureFixture[str]) -> Train:
    def call(folder: Path, *more: str, stage: str = "decoder", data: Path | None = None) -> int:
        return main(["train", stage, "tiny", "--data", str(data or photos), "-o", str(folder), *SMALL, *more])

    return call


def metrics(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_and_its_folder(train: Train, tmp_path: Path):
    folder = tmp_path / "run"
    assert train(folder, "--loop.steps=4", "--folder.save-every=2", "--folder.sheet-every=3") == 0
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["recipe"]["network"]["backbone"]["hidden"] == 24
    assert settings["recipe"]["loop"]["steps"] == 4
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
    assert [path.name for path in checkpoints(folder)] == ["step-00000002", "step-00000004"]
    assert sorted(path.name for path in (folder / "sheets").iterdir()) == ["00000003.webp", "00000004.webp"]
    assert Image.open(folder / "sheets" / "00000003.webp").size == (3 * 64, 2 * 64)
    assert list((folder / "tensorboard").glob("events*"))
    average = read_average(folder / "step-00000004")
    decoder = PixelDecoder.from_pretrained(folder / "decoder.safetensors", device="cpu", dtype=torch.float32)
    weights = decoder.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    assert decoder.model.name == "run"
    latent = ImageEncoder.from_pretrained(device="cpu").encode(torch.zeros(1, 3, 32, 32))
    assert decoder.decode(latent)[0].size == (128, 128)


def test_a_killed_run_goes_on_to_the_same_end(train: Train, photos: Path, tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = ["--loop.steps=30", "--folder.save-every=4", "--folder.sheet-every=0"]
    assert train(whole, *steps) == 0
    command = [sys.executable, "-m", "pixdec", "train", "decoder", "tiny", "--data", str(photos), "-o", str(cut)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*command, *SMALL, *steps], env=environment)
    while process.poll() is None and len(checkpoints(cut)) == 0:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed: take more steps"
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 29, "los')  # half a line, as a kill may leave
    assert train(cut, *steps) == 0
    assert metrics(cut) == metrics(whole)
    assert (cut / "decoder.safetensors").read_bytes()[-4096:] == (whole / "decoder.safetensors").read_bytes()[-4096:]
    one, two = (PixelDecoder.from_pretrained(f / "decoder.safetensors", device="cpu") for f in (whole, cut))
    for name, weights in one.network.state_dict().items():
        assert torch.equal(weights, two.network.state_dict()[name]), name
    assert not list(cut.glob(".*partial"))


def test_a_run_that_is_done_has_nothing_to_do(train: Train, tmp_path: Path):
    assert train(tmp_path, "--loop.steps=2", "--folder.sheet-every=0") == 0
    before = metrics(tmp_path)
    assert train(tmp_path, "--loop.steps=2", "--folder.sheet-every=0") == 0
    assert metrics(tmp_path) == before


def test_another_recipe_needs_another_folder(train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert train(tmp_path, "--loop.steps=2", "--folder.sheet-every=0") == 0
    capfd.readouterr()
    assert train(tmp_path, "--loop.steps=2", "--loop.learning-rate=0.5", "--folder.sheet-every=0") == 2
    said = capfd.readouterr().err
    assert "recipe.loop.learning_rate=0.001" in said
    assert "0.5" in said
    assert train(tmp_path, "--loop.steps=2", "--folder.sheet-every=1") == 0, "the folder's habits may change"


def test_packed_shards(train: Train, photos: Path, tmp_path: Path):
    assert main(["data", "pack", str(photos), "-o", str(tmp_path / "shards"), "--shard-mb", "0.02"]) == 0
    folder = tmp_path / "run"
    data = ["--data.pages=0.2", "--loop.parts=2", "--folder.sheet-every=2"]
    assert train(folder, "--loop.steps=2", *data, data=tmp_path / "shards") == 0
    assert (folder / "decoder.safetensors").exists()


def test_one_json_object_for_each_step(train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert train(tmp_path, "--loop.steps=2", "--json", "--folder.sheet-every=0") == 0
    steps = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[0]["losses"]["total"] > 0


def test_the_latents_of_another_autoencoder(train: Train, tmp_path: Path):
    from diffusers import AutoencoderKL

    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    vae = AutoencoderKL(3, 3, *blocks, (8, 8, 8, 8), latent_channels=16, norm_num_groups=4)
    vae.save_pretrained(tmp_path / "vae")
    settings = ["--network.adapter.latent-channels=16", "--network.adapter.latent-factor=8"]
    settings += ["--network.adapter.unpack=1"]
    places = ["--space=flux1", f"--encoder={tmp_path / 'vae'}"]
    assert train(tmp_path / "run", *places, *settings, "--loop.steps=2", "--folder.sheet-every=2") == 0
    decoder = PixelDecoder.from_pretrained(tmp_path / "run" / "decoder.safetensors", device="cpu")
    assert (decoder.space.name, decoder.scale) == ("flux1", 4)


def test_the_name_of_the_last_release(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    command = ["train", "decoder", "nano", "--network.deblock", "8", "--dry-run", "--network.backbone.depth=1"]
    command += ["--data.crops.size", "64", "--data.crops.candidates=1"]
    assert main(command) == 0
    said = capfd.readouterr()
    assert "nano is now called tiny" in said.err
    for note in ("--network.deblock does nothing", "--data.crops.size is called --data.base now"):
        assert note in said.err
    assert "patch_blocks" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "artist", "tiny"], "train artist: expected a stage, one of prior, decoder, student"),
        (["train", "decoder"], "name a recipe; expected one of paper-2k, v1-5, tiny"),
        (["train", "decoder", "giant"], "unknown recipe; expected one of"),
        (["train", "decoder", "tiny"], "--data"),
        (["train", "decoder", "tiny", "--data", "{nowhere}", "-o", "{out}"], "no such folder"),
        (["train", "decoder", "tiny", "--data", "{photos}", "-o", "{out}", "--loop.batch", "0"], "batch=0"),
        (["train", "decoder", "tiny", "--data", "{photos}", "-o", "{out}", "--from", "{nowhere}"], "{nowhere}"),
        (["train", "decoder", "tiny", "--data", "{photos}", "-o", "{out}", "--encoder", "{nowhere}"], "{nowhere}"),
        (
            ["train", "decoder", "tiny", "--data", "{photos}", "-o", "{out}", "--encoder", "taef2:{nowhere}"],
            "{nowhere}",
        ),
        (["train", "student", "tiny", "--data", "{photos}", "-o", "{out}"], "--teacher"),
        (["train", "decoder", "tiny", "--data", "{photos}", "-o", "{out}", "--device", "hal"], "--device hal"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: list[str], message: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    places = {"photos": photos, "out": tmp_path / "out", "nowhere": tmp_path / "nowhere"}
    given = [argument.format(**places) for argument in arguments]
    if arguments[2:3] == ["tiny"]:
        given.append("--data.base=90")
    try:
        code = main(given)
    except SystemExit as stop:
        code = stop.code
    said = capfd.readouterr().err
    assert code == 2
    assert message.format(**places) in said
    assert len(re.findall(r"\n", said)) == 1, said
