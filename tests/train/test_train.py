"""Training: golden losses, exact resumption, steps that are not finite, schedules."""

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont
from torch import nn

from pixdec.models.pid import PiD
from pixdec.train.checkpoints import State
from pixdec.train.data.degrade import DegradeSettings, degrade
from pixdec.train.data.synthetic import _font, draw_page
from pixdec.train.draws import Draws, LevelSettings
from pixdec.train.loop import LoopSettings, learning_rate, train
from pixdec.train.stages.decoder import DecoderSettings, DecoderStage
from pixdec.train.stages.prior import PriorSettings, PriorStage
from pixdec.train.stages.stage import Conditioner, ConditionSettings, Stage
from trainset import SILENT, WORDY, embed, examples, pictures, tiny_encoder

LOOP = LoopSettings(steps=20, batch=4, learning_rate=2e-3, warmup=2, seed=3)
OBJECTIVE = DecoderSettings(
    levels=LevelSettings(mean=-1.81, std=1.3, high=0.25),
    conditions=ConditionSettings(DegradeSettings(scale=4), clean=0.6, drop_latent=0.0),
)


def new_stage() -> DecoderStage:
    torch.manual_seed(0)
    return DecoderStage(PiD(SILENT).initialize(0), OBJECTIVE, Conditioner(OBJECTIVE.conditions, [tiny_encoder()]))


def run(stage: Stage, state: State, steps: int, settings: LoopSettings = LOOP) -> list[float]:
    def losses_at(step: int, part: int) -> dict[str, torch.Tensor]:
        each = settings.batch // settings.parts
        places = range(part * each, part * each + each)
        shown = examples(step)
        shown = type(shown)(shown.images[places.start : places.stop], shown.captions[places.start : places.stop])
        return stage.losses(step, shown, Draws(settings.seed, step, places, settings.batch))

    taken = zip(range(steps), train(state, losses_at, settings, stage.turn), strict=False)
    return [progress.losses["total"] for _, progress in taken]


def test_decoder_golden_losses():
    stage = new_stage()
    losses = run(stage, State(stage.networks, LOOP), 20)
    assert losses[0] == pytest.approx(GOLDEN_DECODER[0], rel=1e-3)
    assert losses[-1] == pytest.approx(GOLDEN_DECODER[1], rel=2e-2)


def test_prior_golden_losses():
    torch.manual_seed(0)
    stage = PriorStage(PiD(replace(WORDY, adapter=None)).initialize(0), PriorSettings(), embed)
    losses = run(stage, State(stage.networks, LOOP), 20)
    assert losses[0] == pytest.approx(GOLDEN_PRIOR[0], rel=1e-3)
    assert losses[-1] == pytest.approx(GOLDEN_PRIOR[1], rel=2e-2)


def test_a_resumed_run_takes_the_same_trajectory(tmp_path: Path):
    stage = new_stage()
    straight = State(stage.networks, LOOP)
    uninterrupted = run(stage, straight, 8)
    stage = new_stage()
    first = State(stage.networks, LOOP)
    head = run(stage, first, 5)
    first.save(tmp_path / "step-5")
    stage = new_stage()
    second = State(stage.networks, LOOP)
    second.load(tmp_path / "step-5")
    assert second.step == 5
    assert head + run(stage, second, 3) == uninterrupted
    for name, weights in straight.average.weights.items():
        assert torch.equal(weights, second.average.weights[name]), name


def test_parts_of_a_batch_make_the_same_step():
    whole, parted = new_stage(), new_stage()
    settings = LoopSettings(steps=20, batch=4, parts=2, learning_rate=2e-3, warmup=2, seed=3)
    one, two = State(whole.networks, LOOP), State(parted.networks, settings)
    assert run(parted, two, 2, settings) == pytest.approx(run(whole, one, 2), rel=1e-5)
    for (name, a), b in zip(whole.network.named_parameters(), parted.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_step_that_is_not_finite(nonfinite: str):
    network = nn.Linear(2, 1)
    settings = LoopSettings(steps=20, batch=1, nonfinite=nonfinite)  # pyright: ignore[reportArgumentType]
    state = State({"network": network}, settings)
    before = network.weight.detach().clone()

    def losses_at(step: int, part: int) -> dict[str, torch.Tensor]:
        return {"total": (network(torch.ones(2)) * (float("nan") if step == 0 else 1.0)).sum()}

    steps = train(state, losses_at, settings)
    if nonfinite == "stop":
        with pytest.raises(FloatingPointError, match="step 0"):
            next(steps)
        assert torch.equal(network.weight, before)
        return
    assert next(steps).skipped
    assert torch.equal(network.weight, before)
    assert not next(steps).skipped
    assert not torch.equal(network.weight, before)


def test_a_run_that_skips_all_stops():
    network = nn.Linear(2, 1)
    settings = LoopSettings(steps=100, batch=1, nonfinite="skip")
    steps = train(
        State({"network": network}, settings), lambda *_: {"total": network.weight.sum() * float("inf")}, settings
    )
    with pytest.raises(FloatingPointError, match="step 20"):
        list(steps)


def test_only_the_networks_whose_turn_it_is_learn():
    networks = {"one": nn.Linear(1, 1), "two": nn.Linear(1, 1)}
    settings = LoopSettings(steps=3, batch=1)
    state = State(networks, settings)
    values = [{name: float(network.weight.detach()) for name, network in networks.items()}]

    def losses_at(step: int, part: int) -> dict[str, torch.Tensor]:
        return {"total": networks["two"](networks["one"](torch.ones(1))).sum()}

    for _ in train(state, losses_at, settings, lambda step: ("two",) if step else ("one",)):
        values.append({name: float(network.weight.detach()) for name, network in networks.items()})
    moved = [{name for name in networks if a[name] != b[name]} for a, b in pairwise(values)]
    assert moved == [{"one"}, {"two"}, {"two"}]
    assert state.average.count == 1, "the first network's average follows its own steps"


def test_learning_rate():
    settings = LoopSettings(steps=100, batch=1, learning_rate=1.0, warmup=10, decay=0.5)
    assert learning_rate(settings, 0) == pytest.approx(0.1)
    assert learning_rate(settings, 30) == 1.0
    assert learning_rate(settings, 75) == pytest.approx(0.5)
    assert learning_rate(settings, 99) < 0.01


@pytest.mark.parametrize(
    ("change", "message"), [({"steps": 0}, "steps=0"), ({"parts": 3}, "parts=3"), ({"batch": 0}, "batch=0")]
)
def test_settings_that_cannot_be(change: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        LoopSettings(**{"steps": 1, "batch": 4, **change})


def test_degrade_is_bicubic_and_rounded():
    images = pictures(0, 64)
    low = degrade(images, 4)
    assert low.shape == (4, 3, 16, 16)
    assert torch.allclose(((low + 1) * 127.5).round(), (low + 1) * 127.5, atol=1e-4)
    flat = torch.full((1, 3, 32, 32), 0.2)
    assert (degrade(flat, 4) - 0.2).abs().max() <= 1 / 255


def test_pages_have_ink():
    pages = [np.asarray(draw_page(np.random.default_rng(i), 64)) for i in range(8)]
    assert all(page.shape == (64, 64, 3) for page in pages)
    assert sum(page.std() > 10 for page in pages) >= 6
    assert np.array_equal(pages[3], np.asarray(draw_page(np.random.default_rng(3), 64)))


def test_pages_need_no_fonts_of_the_machine():
    """Only Pillow's own font, which it holds as bytes."""
    font = _font(30)
    assert font.layout_engine == ImageFont.Layout.BASIC
    assert isinstance(font.path, io.BytesIO)


GOLDEN_DECODER = (1.3405, 1.3222)
GOLDEN_PRIOR = (1.3471, 1.2679)
