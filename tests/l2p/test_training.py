"""The transfer's loss and gradients against the original's, and runs that stop, resume and are shared."""

import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from l2p_reference import byte_image, distance, facts, model, needs_reference, tensors, text
from l2p_training import recipe, run_in, shards_in, start_in
from safetensors.torch import load_file

from pixdec.cli import main
from pixdec.l2p import load_model, merge, open_weights
from pixdec.l2p.model import file_name
from pixdec.sampling.flow import interpolate
from pixdec.train.draws import Draws
from pixdec.train.losses import velocity_errors
from pixdec.train.low_rank import LoraSettings
from pixdec.train.stages.l2p import PixelObjective, PixelStage, level, noise_of
from pixdec.train.stages.stage import Examples
from ring import run_ring


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("l2p")
    start_in(made)
    shards_in(made / "shards")
    return made


@pytest.fixture(scope="module")
def straight(folder: Path):
    """The losses and the result of a run that nothing stopped."""
    run = run_in(folder, "straight")
    return [step.losses["total"] for step in run.go()], load_file(folder / "straight" / "trained.safetensors")


@needs_reference
def test_losses_and_gradients():
    known, network = facts()["train"], model(16)
    images = torch.cat([byte_image(f"tiny/train{i}", 64, 128) for i in range(3)])
    noise = torch.cat([noise_of(seed, (3, 64, 128)) for seed in known["seeds"]])
    t = level(PixelObjective(), torch.tensor(known["ids"]))
    assert t.tolist() == pytest.approx(known["sigmas"], rel=1e-6)
    x_t = interpolate(images, noise, t)
    assert distance(x_t, "train.x_t") < 1e-5
    assert distance(noise - images, "train.target") < 1e-5
    network.requires_grad_(True).zero_grad()
    network.recompute = True
    try:
        each = velocity_errors(network(x_t, t, [text(n) for n in known["captions"]]), images, noise)
        each.mean().backward()
        assert each.tolist() == pytest.approx(known["losses"], rel=1e-5)
        gradients = {file_name(name): p.grad for name, p in network.named_parameters()}
        norms = next(value for value in known.values() if isinstance(value, dict))
        for name, norm in norms.items():
            assert float(gradients[name].double().norm()) == pytest.approx(norm, rel=1e-4), name
        for name in tensors():
            if name.startswith("train.grad."):
                assert distance(gradients[name.removeprefix("train.grad.")], name) < 1e-4
    finally:
        network.recompute = False
        network.requires_grad_(False).zero_grad()


@needs_reference
def test_the_stage_takes_fixed_or_fresh_noise_and_drops_prompts():
    network, images = model(16), byte_image("tiny/train0", 64, 128)
    examples = Examples(images, ["a"], embeddings=[text(7)], seeds=[11])
    try:
        seen = []
        hook = network.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[1], len(given[2][0]))))
        for step in (0, 1):
            for fixed in (True, False):
                stage = PixelStage(network, PixelObjective(1, fixed_noise=fixed))
                stage.losses(step, examples, Draws(0, step, [0], 1))
        PixelStage(network, PixelObjective(1, drop_caption=1.0), lambda _: [text(41)]).losses(
            0, examples, Draws(0, 0, [0], 1)
        )
        hook.remove()
        noise = [(x - (1 - t) * images) / t for x, t, _ in seen]
        wanted = noise_of(11, (3, 64, 128))
        assert [float((each - wanted).abs().max()) < 1e-2 for each in noise[:4]] == [True, False, True, False]
        assert [length for _, _, length in seen] == [7, 7, 7, 7, 41]
    finally:
        network.requires_grad_(False)


def test_only_what_learns_is_saved_and_merges_into_its_start(folder: Path, straight):
    _, trained = straight
    start = load_model(open_weights(folder / "start.safetensors"))
    stage = PixelStage(start, PixelObjective(1))
    assert set(trained) == set(stage.names)
    assert not any(re.match(r"layers\.[12]\.", name) for name in trained)
    saved = json.loads((folder / "straight" / "settings.json").read_text())
    assert saved["recipe"]["objective"]["shallow"] == 1
    whole = merge(open_weights(folder / "start.safetensors"), open_weights(folder / "straight" / "trained.safetensors"))
    changed = [
        key
        for key, value in whole.tensors.items()
        if not torch.equal(value, start.state_dict()[key if key.startswith("local") else f"transformer.{key}"])
    ]
    assert set(changed) <= set(trained)
    assert len(changed) > 0.9 * len(trained)
    other = open_weights(folder / "start.safetensors")
    other = replace(other, settings=replace(other.settings, side=96))
    with pytest.raises(ValueError, match=r"\(side \d+, not 96\)"):
        merge(other, open_weights(folder / "straight" / "trained.safetensors"))


def test_a_stopped_run_takes_the_same_trajectory(folder: Path, straight):
    losses, trained = straight
    first = [step.losses["total"] for step in islice(run_in(folder, "stopped").go(), 3)]
    rest = [step.losses["total"] for step in run_in(folder, "stopped").go()]
    assert first + rest[1:] == losses  # the third step was not saved, and is taken again
    again = load_file(folder / "stopped" / "trained.safetensors")
    assert all(torch.equal(again[key], trained[key]) for key in trained)


@pytest.mark.parametrize(("processes", "place"), [(2, "shared"), (1, "offload")])
def test_processes_that_share_weights_and_images_are_one(folder: Path, straight, processes: int, place: str):
    said = run_ring(Path(__file__).with_name("l2p_ring.py"), processes, folder, place, place, patience=300)
    assert [each.code for each in said] == [0] * processes, said[0].err[-2000:]
    _, trained = straight
    again = load_file(folder / place / "trained.safetensors")
    start = open_weights(folder / "start.safetensors").tensors
    moved = sum(float((trained[key] - start[key]).square().sum()) for key in trained) ** 0.5
    apart = sum(float((trained[key] - again[key]).square().sum()) for key in trained) ** 0.5
    assert apart < 0.02 * moved


def test_a_lora_on_the_frozen_blocks_becomes_their_weights(folder: Path):
    made = replace(recipe(steps=2), lora=LoraSettings(rank=2, layers=("to_q", "to_out.0")))
    assert len(list(run_in(folder, "lora", made).go())) == 2
    trained, start = load_file(folder / "lora" / "trained.safetensors"), open_weights(folder / "start.safetensors")
    names = {f"layers.{i}.attention.{layer}.weight" for i in (1, 2) for layer in ("to_q", "to_out.0")}
    assert {name for name in trained if re.match(r"layers\.[12]\.", name)} == names
    assert all(not torch.equal(trained[name], start.tensors[name]) for name in names)
    assert len(merge(start, open_weights(folder / "lora" / "trained.safetensors")).tensors) == len(start.tensors)


def test_a_dry_run_counts_and_measures(folder: Path, capsys):
    arguments = ["train", "l2p", "nano", "--dry-run", "--from", str(folder / "start.safetensors")]
    arguments += [
        "--data",
        str(folder / "shards"),
        "--data.base",
        "32",
        "--loop.batch",
        "2",
        "-o",
        str(folder / "dry"),
        "--data.streams",
        "1",
    ]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "local_decoder" in told
    assert "a step in which pixels learn" in told
    assert main(["train", "l2p", "l2p_1k", "--dry-run"]) == 0
    assert "2,548,257,795" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--from"),
        (["--from", "START", "--data.multiple", "24"], "data.multiple=24"),
        (["--from", "START", "--machine.context", "2"], "machine.context=2"),
        (["--from", "START", "--machine.shard", "--machine.offload"], "torchrun"),
        (["--from", "START", "--objective.shallow", "3"], "shallow 3"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder: Path, arguments: list, told: str, capsys):
    given = [str(folder / "start.safetensors") if each == "START" else each for each in arguments]
    whole = ["train", "l2p", "nano", "--data", str(folder / "shards"), "-o", str(folder / "refused"), *given]
    whole += ["--data.base", "32", "--loop.batch", "2"]
    assert main(whole) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]
