"""The third stage: its losses by hand, what learns when, and that a run can be stopped and resumed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from pixdec.models.pid import PiD, PiDSettings
from pixdec.sampling.flow import clean, expand, interpolate
from pixdec.text import NEGATIVE_PROMPT
from pixdec.train.checkpoints import State
from pixdec.train.draws import Draws, noise_levels
from pixdec.train.features import watching
from pixdec.train.loop import LoopSettings, train
from pixdec.train.stages.stage import Conditioner, Conditions, ConditionSettings
from pixdec.train.stages.student import StudentSettings, StudentStage
from trainset import SILENT, WORDY, embed, examples, network, tiny_encoder

TIMES = (0.999, 0.866, 0.634, 0.342, 0.0)
PLAIN = ConditionSettings(clean=0.5, drop_caption=0.0, drop_latent=0.0)
BARE = StudentSettings(conditions=PLAIN, ratio=2, guidance=1.0, gan=0.0, block=1)
WHOLE = replace(BARE, gan=0.05, gan_warmup=4, pixel=0.1)
LOOP = LoopSettings(steps=20, batch=4, learning_rate=2e-3, warmup=2, seed=3)
NULL = embed([NEGATIVE_PROMPT])


def draws(step: int, places: Sequence[int] = range(4)) -> Draws:
    return Draws(0, step, places, 4)


def stage(
    shape: PiDSettings = WORDY, settings: StudentSettings = BARE, teacher: PiD | None = None, student: PiD | None = None
) -> StudentStage:
    reads = shape.backbone.text_width is not None
    conditioner = Conditioner(settings.conditions, [tiny_encoder()], embed if reads else None)
    return StudentStage(student or network(shape), teacher or network(shape), settings, conditioner, TIMES)


def flat(shape: PiDSettings, *colour: float) -> PiD:
    """A network whose backbone puts out one colour everywhere."""
    made = PiD(shape).initialize(0)
    with torch.no_grad():
        made.backbone.final_linear.bias.copy_(torch.tensor(colour))
    return made


def repaint(net: PiD, *colour: float) -> None:
    with torch.no_grad():
        net.backbone.final_linear.bias.copy_(torch.tensor(colour))


def conditions_of(made: StudentStage, step: int, d: Draws) -> Conditions:
    return made.conditioner(examples(step), d)


def down_to(d: Draws, colour: Tensor) -> Tensor:
    """What a student whose velocity is one colour makes of the noise that is drawn."""
    last = int(d.common() * 4)
    x_t = d.normal(3, 64, 64)
    for t, following in pairwise(TIMES[: last + 1]):
        x0 = x_t - t * colour[:, None, None]
        x_t = (1 - following) * x0 + following * d.normal(3, 64, 64)
    return x_t - TIMES[last] * colour[:, None, None]


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


# ---- the losses, by hand


def test_distribution_matching_of_images_by_hand():
    """x0 networks that see one colour whatever they are shown: the student's is 0.1, 0.2, 0.3, black 0.2 away on
    average; the fake score's is 0.3 redder than the teacher's: direction 1.5 in red."""
    shape = replace(WORDY, prediction="x0")
    made = stage(shape, BARE, flat(shape, 0, 0, 0), flat(shape, 0.1, 0.2, 0.3))
    repaint(made.fake, 0.3, 0, 0)
    losses = made.losses(1, examples(0), draws(1))
    assert set(losses) == {"total", "distribution_matching"}
    assert losses["total"].item() == pytest.approx(0.5 * 1.5**2 / 3, rel=1e-4)
    losses["total"].backward()
    # The bias moves every pixel alike: the sum over pixels of direction / N is 1.5/3 in red.
    assert made.network.backbone.final_linear.bias.grad.tolist() == pytest.approx([0.5, 0, 0], abs=1e-4)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_distribution_matching_of_velocities_by_hand(step: int):
    """At x_t = (1−t)·x + t·eps a velocity v is an x0 of x_t − t·v."""
    student, teacher, fake = (torch.tensor(c) for c in ((0.2, 0.0, -0.1), (0.1, 0.3, 0.2), (0.4, 0.1, 0.2)))
    made = stage(WORDY, BARE, flat(WORDY, *teacher.tolist()), flat(WORDY, *student.tolist()))
    repaint(made.fake, *fake.tolist())
    losses = made.losses(step, examples(step), draws(step))
    d = draws(step)
    conditions_of(made, step, d)
    x = down_to(d, student)
    t, noise = noise_levels(BARE.levels, d, 64, 64), d.normal(3, 64, 64)
    total = 0.0
    for each, level, eps in zip(x, t, noise, strict=True):
        x_t = (1 - level) * each + level * eps
        scale = (each - (x_t - level * teacher[:, None, None])).abs().mean()
        total += 0.5 * float(((level * (teacher - fake) / scale) ** 2).mean()) / 4
    assert losses["total"].item() == pytest.approx(total, rel=1e-4)


def test_score_matching_by_hand():
    colour, fake = torch.tensor([0.2, 0.0, -0.1]), torch.tensor([0.4, 0.1, 0.2])
    made = stage(WORDY, replace(BARE, score_matching=2.0), flat(WORDY, 0, 0, 0), flat(WORDY, *colour.tolist()))
    repaint(made.fake, *fake.tolist())
    losses = made.losses(2, examples(2), draws(2))
    d = draws(2)
    conditions_of(made, 2, d)
    x = down_to(d, colour)
    noise_levels(BARE.levels, d, 64, 64)
    expected = (fake[:, None, None] - (d.normal(3, 64, 64) - x)).square().mean().item()
    assert set(losses) == {"total", "score_matching"}
    assert losses["score_matching"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["total"].item() == pytest.approx(2 * expected, rel=1e-5)


def test_adversarial_losses_by_hand():
    """A discriminator of one opinion, logit 0.7, which the weights of its features do not change."""
    made = stage(WORDY, replace(BARE, gan=0.5, gan_warmup=4))
    assert made.discriminator is not None
    nn.init.zeros_(made.discriminator.logit.weight)
    nn.init.constant_(made.discriminator.logit.bias, 0.7)
    yes, no = math.log1p(math.exp(-0.7)), math.log1p(math.exp(0.7))
    critic = made.losses(0, examples(0), draws(0))
    assert critic["discriminator"].item() == pytest.approx(yes + no, rel=1e-5)
    assert critic["r1"].item() == 0
    assert critic["total"].item() == pytest.approx(critic["score_matching"].item() + yes + no, rel=1e-5)
    for step, share in ((1, 0.25), (3, 0.75), (9, 1.0)):
        student = made.losses(step, examples(step), draws(step))
        assert student["gan"].item() == pytest.approx(yes, rel=1e-5)
        expected = student["distribution_matching"].item() + 0.5 * share * yes
        assert student["total"].item() == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_sees_the_teachers_tokens():
    """Of the noised real image, of the student's at the same level with the same noise, and of the real one moved."""
    made = stage(WORDY, replace(BARE, gan=0.05, r1=200.0, r1_noise=0.1))
    losses = made.losses(0, examples(0), draws(0))
    images, d = examples(0).images, draws(0)
    given = conditions_of(made, 0, d)
    discriminator = made.discriminator
    assert discriminator is not None
    with torch.no_grad():
        x = made._make(images, given, d)
        t, noise = noise_levels(BARE.levels, d, 64, 64), d.normal(3, 64, 64)
        moved = 0.1 * d.normal(3, 64, 64)
        logits = list[Tensor]()
        for image in (images, x, images):
            with watching(made.teacher, 1) as seen:
                x_t = (1 - expand(t, image)) * image + expand(t, image) * noise + (moved if logits[1:] else 0)
                made.teacher(x_t, t, given.text, given.latent, given.sigma)
            logits.append(discriminator(seen.tokens().transpose(1, 2).reshape(4, 24, 4, 4)))
    real, fake, real_moved = logits
    judged = (F.softplus(-real).mean() + F.softplus(fake).mean()).item()
    penalty = (real - real_moved).square().mean().item()
    assert penalty > 0
    assert losses["discriminator"].item() == pytest.approx(judged, rel=1e-5)
    assert losses["r1"].item() == pytest.approx(penalty, rel=1e-3)
    total = losses["score_matching"].item() + judged + 200 * penalty
    assert losses["total"].item() == pytest.approx(total, rel=1e-4)


def test_the_adversarial_gradient_is_that_of_the_whole_chain():
    """The loss that is passed on by hand has the gradient that one graph through the teacher has."""
    made = stage(WORDY, replace(BARE, gan=1.0, gan_warmup=0, distribution_matching=0.0))
    made.losses(1, examples(1), draws(1))["total"].backward()
    got = gradients(made.network)
    made.network.zero_grad()
    d = draws(1)
    given = conditions_of(made, 1, d)
    x = made._make(examples(1).images, given, d)
    t, noise = noise_levels(BARE.levels, d, 64, 64), d.normal(3, 64, 64)
    with watching(made.teacher, 1) as seen:
        made.teacher(interpolate(x, noise, t), t, given.text, given.latent, given.sigma)
    assert made.discriminator is not None
    F.softplus(-made.discriminator(seen.grid(64, 64, 16))).mean().backward()
    expected = gradients(made.network)
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, rtol=1e-3, atol=1e-8), name


def test_the_distance_to_the_real_image():
    shape = replace(WORDY, prediction="x0")
    made = stage(shape, replace(BARE, pixel=2.0), flat(shape, 0, 0, 0), flat(shape, 0.5, 0.5, 0.5))
    losses = made.losses(1, examples(1), draws(1))
    image = examples(1).images
    assert losses["pixel"].item() == pytest.approx((0.5 - image).abs().mean().item(), rel=5e-3)
    total = losses["distribution_matching"] + 2 * losses["pixel"]
    assert losses["total"].item() == pytest.approx(total.item(), rel=1e-5)


# ---- what the three networks make of each other


@pytest.mark.parametrize("shape", [WORDY, SILENT, replace(WORDY, prediction="x0")], ids=["velocity", "silent", "x0"])
def test_no_gradient_while_teacher_and_fake_score_agree(shape: PiDSettings):
    """As they do at first: exactly none, in every weight of the student."""
    made = stage(shape)
    losses = made.losses(1, examples(1), draws(1))
    assert losses["total"].item() == 0
    losses["total"].backward()
    found = gradients(made.network)
    assert found
    assert all(not gradient.any() for gradient in found.values())
    with torch.no_grad():
        made.fake.backbone.final_linear.bias.add_(0.1)
    made.losses(1, examples(1), draws(1))["total"].backward()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert any(gradient.any() for gradient in found.values())


def test_guidance_is_the_teachers_and_by_text():
    """v_null + 3·(v − v_null), in the student's turn; the fake score is told the caption and nothing else."""
    made = stage(WORDY, replace(BARE, guidance=3.0))
    calls = dict[str, list[Tensor]](teacher=[], fake=[])
    made.teacher.register_forward_pre_hook(lambda _, inputs: calls["teacher"].append(inputs[2]))
    made.fake.register_forward_pre_hook(lambda _, inputs: calls["fake"].append(inputs[2]))
    loss = made.losses(1, examples(1), draws(1))["distribution_matching"].item()
    d = draws(1)
    given = conditions_of(made, 1, d)
    assert given.text is not None
    assert [len(calls[name]) for name in ("teacher", "fake")] == [2, 1]
    assert torch.equal(calls["teacher"][0], given.text)
    assert torch.equal(calls["teacher"][1], NULL.expand(4, -1, -1))
    assert torch.equal(calls["fake"][0], given.text)
    with torch.no_grad():
        x = made._make(examples(1).images, given, d)
        t, noise = noise_levels(BARE.levels, d, 64, 64), d.normal(3, 64, 64)
        x_t = interpolate(x, noise, t)
        with_text, without = (
            made.teacher(x_t, t, text, given.latent, given.sigma) for text in (given.text, NULL.expand(4, -1, -1))
        )
        guided = clean(x_t, 3 * with_text - 2 * without, t)
        direction = (clean(x_t, with_text, t) - guided) / (x - guided).abs().mean((1, 2, 3), keepdim=True)
    assert loss > 0
    assert loss == pytest.approx(0.5 * direction.square().mean().item(), rel=1e-3)


def test_without_guidance_the_teacher_is_called_once():
    made = stage(WORDY, replace(BARE, guidance=1.0, gan=0.05))
    calls = list[object]()
    made.teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    made.losses(1, examples(1), draws(1))
    assert len(calls) == 1
    made.losses(0, examples(0), draws(0))
    assert len(calls) == 4


# ---- the student's steps


class Calls:
    """The levels and noisy images that a network was called with, and what it put out."""

    def __init__(self, net: PiD):
        self.levels, self.inputs, self.outputs, self.graded = [], [], [], []
        net.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs.append(inputs[0])
        self.levels.append(inputs[1])
        self.outputs.append(output.detach())
        self.graded.append(output.requires_grad)


def test_the_rollout_walks_down_the_students_times():
    made = stage(SILENT)
    lengths = list[int]()
    for step in range(30):
        calls = Calls(made.network)
        given = conditions_of(made, step, d := draws(step))
        x = made._make(examples(step).images, given, d)
        seen = torch.stack(calls.levels)
        assert torch.equal(seen, torch.tensor(TIMES[: len(seen)])[:, None].expand(-1, 4))
        assert calls.graded == [False] * (len(seen) - 1) + [True]
        assert torch.allclose(x, clean(calls.inputs[-1], calls.outputs[-1], calls.levels[-1]))
        lengths.append(len(seen))
    assert all(lengths.count(length) >= 3 for length in (1, 2, 3, 4))


def test_the_rollout_is_the_samplers():
    """The same noise gives the image that a decode stopped there would show."""
    from pixdec.sampling.samplers import student

    made = stage(SILENT)
    given = conditions_of(made, 1, d := draws(1))
    with torch.no_grad():
        x = made._make(examples(1).images, given, d)
    conditions_of(made, 1, d := draws(1))
    last = int(d.common() * 4)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return made.network(x_t, t, None, given.latent, given.sigma)

    with torch.no_grad():
        steps = list(student(denoise, lambda shape: d.normal(*shape[1:]), x.shape, TIMES))
    assert torch.allclose(steps[last].x0, x.clamp(-1, 1), atol=1e-5)


def test_noised_steps_begin_at_the_real_image():
    made = stage(SILENT, replace(BARE, rollout="noised"))
    counts = dict.fromkeys(TIMES[:-1], 0)
    for step in range(20):
        calls = Calls(made.network)
        given = conditions_of(made, step, d := draws(step))
        made._make(examples(step).images, given, d)
        (levels,), (inputs,) = calls.levels, calls.inputs
        for level in levels.tolist():
            counts[min(counts, key=lambda t: abs(t - level))] += 1
        assert set(levels.tolist()) <= set(torch.tensor(TIMES[:-1]).tolist())
        conditions_of(made, step, d := draws(step))
        d.uniform()
        assert torch.allclose(inputs, interpolate(examples(step).images, d.normal(3, 64, 64), levels))
    assert all(count >= 10 for count in counts.values())


@pytest.mark.parametrize("rollout", ["self", "noised"])
def test_both_turns_make_the_same_images(rollout: str):
    """What the fake score learns is what it is asked for: of equal draws both make equal images."""
    for step in range(1, 4):
        seen = list[Calls]()
        for ratio in (step + 1, step + 2):
            made = stage(SILENT, replace(BARE, rollout=rollout, ratio=ratio))
            assert made.turn(step) == (("student",) if ratio == step + 1 else ("fake",))
            seen.append(Calls(made.network))
            made.losses(step, examples(step), draws(step))
        student, critic = seen
        assert len(student.inputs) == len(critic.inputs)
        assert torch.equal(student.inputs[-1], critic.inputs[-1])
        assert torch.equal(student.outputs[-1], critic.outputs[-1])


@pytest.mark.parametrize("step", [0, 1])
def test_a_batch_may_be_shared_out(step: int):
    made = stage(SILENT, WHOLE)
    shown = examples(step)
    whole = made.losses(step, shown, draws(step))
    halves = [
        made.losses(step, replace(shown, images=shown.images[p], captions=shown.captions[p]), draws(step, range(4)[p]))
        for p in (slice(0, 2), slice(2, 4))
    ]
    for name, value in whole.items():
        assert value.item() == pytest.approx((halves[0][name] + halves[1][name]).item() / 2, rel=1e-4), name


# ---- who learns when


def test_the_students_turns():
    made = stage(SILENT, replace(BARE, ratio=6))
    turns = [made.turn(step) for step in range(18)]
    assert [i for i, turn in enumerate(turns) if turn == ("student",)] == [5, 11, 17]
    assert turns.count(("fake",)) == 15
    assert list(made.networks) == ["student", "fake"]
    assert stage(SILENT, WHOLE).turn(0) == ("fake", "discriminator")
    assert made.network is made.networks["student"]


UNUSED = ("adapter.aux_rgb", "patch_blocks.1.text.")  # nobody reads what the last block makes of the text


@pytest.mark.parametrize("shape", [SILENT, WORDY], ids=["silent", "wordy"])
def test_gradients_stay_where_they_belong(shape: PiDSettings):
    made = stage(shape, WHOLE)
    with torch.no_grad():
        made.fake.backbone.final_linear.bias.add_(0.1)
    made.losses(1, examples(1), draws(1))["total"].backward()
    assert made.discriminator is not None
    assert not gradients(made.fake)
    assert not gradients(made.discriminator)
    assert not gradients(made.teacher)
    _complete(made.network)
    made.network.zero_grad(set_to_none=True)
    made.losses(0, examples(0), draws(0))["total"].backward()
    assert not gradients(made.network)
    assert not gradients(made.teacher)
    _complete(made.fake)
    assert made.discriminator is not None
    assert all(gradient.any() for gradient in gradients(made.discriminator).values())
    assert len(gradients(made.discriminator)) == 6


def _complete(net: PiD) -> None:
    """Every weight that is used has a gradient, the base decoder's excepted."""
    found = gradients(net)
    for name, parameter in net.named_parameters():
        if name.startswith("base."):
            assert not parameter.requires_grad
            assert name not in found
        elif not any(part in name for part in UNUSED):
            assert name in found, name
            assert found[name].isfinite().all(), name


def test_optimizers_move_only_in_their_turn():
    made = stage(WORDY, replace(WHOLE, ratio=3))
    state = State(made.networks, LOOP)
    teacher = _weights(made.teacher)
    before = {name: _weights(net) for name, net in made.networks.items()}
    for step, _ in zip(range(6), _run(made, state), strict=False):
        after = {name: _weights(net) for name, net in made.networks.items()}
        learns = made.turn(step)
        for name in made.networks:
            assert torch.equal(before[name], after[name]) == (name not in learns), (step, name)
        before = after
    assert torch.equal(teacher, _weights(made.teacher))
    assert state.average.count == 2


def _weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def _run(made: StudentStage, state: State) -> Iterator[float]:
    def losses_at(step: int, part: int) -> dict[str, Tensor]:
        return made.losses(step, examples(step), Draws(LOOP.seed, step, range(4), 4))

    for progress in train(state, losses_at, LOOP, made.turn):
        yield progress.losses["total"]


# ---- runs


@pytest.mark.parametrize("name", ["silent", "wordy"])
def test_golden_losses(name: str):
    settings = replace(WHOLE, guidance=1.0 if name == "silent" else 3.0, ratio=4)
    made = stage(SILENT if name == "silent" else WORDY, settings)
    losses = list(_run(made, State(made.networks, LOOP)))
    assert len(losses) == 20
    assert losses[0] == pytest.approx(GOLDEN[name][0], rel=1e-3)
    assert losses[-2:] == pytest.approx(GOLDEN[name][1:], rel=2e-2)


@pytest.mark.parametrize(("shape", "stop"), [(SILENT, 2), (WORDY, 5)], ids=["silent", "wordy"])
def test_a_resumed_run_takes_the_same_trajectory(tmp_path: Path, shape: PiDSettings, stop: int):
    """Also where it stopped before the student learnt for the first time."""
    settings = replace(WHOLE, ratio=4)
    made = stage(shape, settings)
    straight = State(made.networks, LOOP)
    uninterrupted = [loss for _, loss in zip(range(9), _run(made, straight), strict=False)]

    first = stage(shape, settings)
    state = State(first.networks, LOOP)
    head = [loss for _, loss in zip(range(stop), _run(first, state), strict=False)]
    state.save(tmp_path / "step-1")

    second = stage(shape, settings)
    resumed = State(second.networks, LOOP)
    resumed.load(tmp_path / "step-1")
    assert resumed.step == stop
    tail = [loss for _, loss in zip(range(9 - stop), _run(second, resumed), strict=False)]
    assert head + tail == uninterrupted
    for name, net in straight.networks.items():
        assert torch.equal(_weights(net), _weights(resumed.networks[name])), name
    for name, weights in straight.average.weights.items():
        assert torch.equal(weights, resumed.average.weights[name]), name


def test_a_broken_step_stops_before_the_weights_change():
    made = stage(SILENT, replace(WHOLE, ratio=2))
    state = State(made.networks, LOOP)
    steps = _run(made, state)
    next(steps)
    with torch.no_grad():
        made.fake.backbone.final_linear.bias.fill_(math.nan)
    before = _weights(made.network)
    with pytest.raises(FloatingPointError, match="step 1"):
        next(steps)
    assert torch.equal(before, _weights(made.network))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "ring"), 1), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("step", [0, 1])
def test_sharded_networks_have_the_same_gradients(step: int):
    """Weights that are gathered for each call, and losses whose graph crosses the teacher in the middle."""
    made = [stage(WORDY, replace(WHOLE, guidance=3.0)) for _ in range(2)]
    for each in made:
        with torch.no_grad():
            each.fake.backbone.final_linear.bias.add_(0.1)
    plain, sharded = made
    assert sharded.discriminator is not None
    mesh = distributed.init_device_mesh("cpu", (1,))
    for net in (sharded.network, sharded.fake, sharded.teacher):
        for block in (*net.backbone.patch_blocks, *net.backbone.pixel_blocks):
            fully_shard(block, mesh=mesh)
        scalars = {p for p in net.parameters() if p.ndim == 0}  # which cannot be sharded
        fully_shard(net, mesh=mesh, ignored_params=scalars)
    fully_shard(sharded.discriminator, mesh=mesh)
    for each in made:
        each.losses(step, examples(step), draws(step))["total"].backward()
    for name in ("student", "fake", "discriminator"):
        expected, got = gradients(plain.networks[name]), gradients(sharded.networks[name])
        assert set(expected) == set(got)
        assert bool(expected) == (name in plain.turn(step))
        for key, gradient in got.items():
            assert isinstance(gradient, DTensor) == (expected[key].ndim > 0)
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            assert torch.allclose(whole, expected[key], rtol=1e-4, atol=1e-7), key


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1}, "ratio=1: expected at least 2"),
        ({"rollout": "real"}, "rollout='real'"),
        ({"gan": -1.0}, "gan=-1.0: expected at least 0"),
        ({"r1_noise": -0.1}, "r1_noise"),
        ({"pixel": -1.0}, "pixel"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, float | str], message: str):
    with pytest.raises(ValueError, match=message):
        replace(BARE, **change)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"guidance=3\.0: this teacher reads no text"):
        stage(SILENT, replace(BARE, guidance=3.0))
    with pytest.raises(ValueError, match="block=7: the teacher has 2 patch blocks"):
        stage(SILENT, replace(BARE, gan=0.05, block=7))
    with pytest.raises(ValueError, match="the student has no latent adapter"):
        stage(WORDY, BARE, student=PiD(replace(WORDY, adapter=None)))
    with pytest.raises(ValueError, match="the student's text is None wide, the teacher's 12"):
        stage(WORDY, BARE, student=network(SILENT))
    with pytest.raises(ValueError, match=r"degrade\.scale=2: the student decodes 4x"):
        stage(SILENT, replace(BARE, conditions=replace(PLAIN, degrade=replace(PLAIN.degrade, scale=2))))
    one = network(SILENT)
    with pytest.raises(ValueError, match="one network"):
        stage(SILENT, BARE, one, one)
    conditioner = Conditioner(PLAIN, [tiny_encoder()])
    with pytest.raises(ValueError, match="nothing embeds the negative prompt"):
        StudentStage(network(WORDY), network(WORDY), replace(BARE, guidance=3.0), conditioner, TIMES)
    for times in ((0.9, 0.1), (0.5, 0.9, 0.0), (1.5, 0.0), (0.0,)):
        with pytest.raises(ValueError, match="fall from at most 1 to 0"):
            StudentStage(network(WORDY), network(WORDY), BARE, conditioner, times)


# The first, and those of the last steps of the critic and of the student.
GOLDEN = {"silent": (3.2286, 3.1302, 0.1105), "wordy": (3.7314, 3.2783, 0.1060)}
