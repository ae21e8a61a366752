"""Checkpoints: exact, whole or not at all, of these networks and no others; averaged weights, and back."""

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from pair import BATCH, EXACT, Training, new_network

from pixdec.train.checkpoints import PowerAverage, State, checkpoints, read_average, read_network
from pixdec.train.loop import LoopSettings, train
from pixdec.train.parallel import World

LOOP = LoopSettings(steps=4, batch=BATCH, learning_rate=2e-3, warmup=2, weight_decay=0.01)


def new_training() -> Training:
    return Training("text", 48, EXACT, World(), LOOP)


def steps(training: Training, count: int) -> list[tuple[float, float]]:
    taken = (next(stepping) for stepping in [training.steps()] for _ in range(count))
    return [(progress.losses["total"], progress.gradient_norm) for progress in taken]


def tensors(state: State) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_resumed_run_takes_the_same_trajectory_to_the_bit(tmp_path: Path):
    straight, first, second = new_training(), new_training(), new_training()
    expected = steps(straight, 4)
    taken = steps(first, 2)
    first.state.save(tmp_path / "step-00000002")
    assert steps(first, 2) == expected[2:]  # a save changes nothing
    second.state.load(tmp_path / "step-00000002")
    assert second.state.step == 2
    assert taken + steps(second, 2) == expected
    assert_same(tensors(second.state), tensors(straight.state))
    assert second.state.average.count == 4


def test_a_network_whose_turn_has_not_come_resumes_too(tmp_path: Path):
    """And parameters that have no part in the loss: neither has moments when the checkpoint is written."""

    def run(state: State, until: int) -> None:
        def losses_at(step: int, part: int) -> dict[str, Tensor]:
            one, two = (network[0](torch.full((2,), float(step))) for network in state.networks.values())
            return {"total": (one * two).sum()}

        settings = LoopSettings(steps=6, batch=1, learning_rate=0.1)
        for progress in train(state, losses_at, settings, lambda step: ("b",) if step > 3 else ("a",)):
            if progress.step == until:
                break

    def new() -> State:
        torch.manual_seed(0)
        parts = {name: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for name in ("a", "b")}
        return State(parts, LoopSettings(steps=6, batch=1))

    straight, first, second = new(), new(), new()
    run(straight, 6)
    run(first, 3)
    first.save(tmp_path / "step-00000003")
    second.load(tmp_path / "step-00000003")
    run(second, 6)
    assert_same(tensors(second), tensors(straight))
    moments = tensors(straight)
    assert moments["optimizers.b.0.weight.step"] == 2
    assert moments["optimizers.b.1.weight.step"] == 0


@pytest.fixture
def small() -> Iterator[State]:
    torch.manual_seed(0)
    network = nn.Linear(64, 64)
    network.bias.requires_grad_(False)
    yield State({"decoder": network}, LoopSettings(steps=1, batch=1, learning_rate=0.1))


def learn(state: State) -> None:
    for _, progress in zip(range(2), train(state, squares(state), LOOP), strict=False):
        assert not progress.skipped


def squares(state: State) -> Callable[[int, int], dict[str, Tensor]]:
    return lambda step, part: {"total": state.first(torch.ones(64)).square().sum()}


def test_weights_and_average_can_be_read_alone(small: State, tmp_path: Path):
    learn(small)
    small.save(tmp_path / "step-00000002")
    assert_same(read_network(tmp_path / "step-00000002", "decoder"), dict(small.first.state_dict()))
    average = read_average(tmp_path / "step-00000002")
    assert_same(average, small.average.weights)
    assert not torch.equal(average["weight"], small.first.weight)
    assert_same(small.full_average(), {"weight": average["weight"], "bias": small.first.bias.detach()})


def test_averaged_weights_are_there_for_a_while(small: State):
    learn(small)
    before = tensors(small)
    with pytest.raises(KeyError), small.averaged():
        assert torch.equal(small.first.weight, small.average.weights["weight"])
        assert not torch.equal(small.first.weight, before["networks.decoder.weight"])
        raise KeyError
    assert_same(tensors(small), before)


@contextmanager
def a_full_disk(after: int) -> Iterator[None]:
    """No file may grow beyond `after` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["step-00000001", "step-00000002"])
def test_a_full_disk_leaves_the_last_checkpoint(small: State, tmp_path: Path, name: str):
    small.save(tmp_path / "step-00000001")
    before = tensors(small)
    learn(small)
    with a_full_disk(10_000), pytest.raises(OSError, match=f"cannot write .*{name}: .*") as error:
        small.save(tmp_path / name)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    small.load(tmp_path / "step-00000001")
    assert_same(tensors(small), before)
    learn(small)
    small.save(tmp_path / name)
    assert checkpoints(tmp_path)[-1].name == name


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from pixdec.train.checkpoints import State
from pixdec.train.loop import LoopSettings
torch.manual_seed(0)
state = State({"decoder": torch.nn.Linear(64, 64)}, LoopSettings(steps=1, batch=1, learning_rate=0.1))
folder = Path(sys.argv[1])
state.step = 1
state.save(folder / "step-00000001")
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # when the weights are written and the contents are not
state.step = 2
state.save(folder / "step-00000002")
"""


def test_a_killed_save_leaves_the_last_checkpoint(tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
    state = State({"decoder": nn.Linear(64, 64)}, LoopSettings(steps=1, batch=1, learning_rate=0.1))
    state.load(checkpoints(tmp_path)[-1])
    assert state.step == 1
    state.save(tmp_path / "step-00000003")  # and clears up
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_checkpoint_takes_the_place_of_another(small: State, tmp_path: Path):
    small.save(tmp_path / "step-00000001")
    learn(small)
    small.save(tmp_path / "step-00000001")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert_same(read_network(tmp_path / "step-00000001", "decoder"), dict(small.first.state_dict()))


def test_checkpoints_of_other_networks_are_refused_before_a_weight_is_touched(small: State, tmp_path: Path):
    folder = tmp_path / "step-00000001"
    small.save(folder)
    for networks, problem in (
        ({"prior": nn.Linear(64, 64)}, r"it lacks average\.bias"),
        ({"decoder": nn.Linear(64, 64, bias=False)}, r"it has unknown networks\.decoder\.bias"),
        ({"decoder": nn.Linear(64, 32)}, r"it lacks average\.bias"),
        (
            {"decoder": frozen_bias(nn.Linear(32, 64))},
            r"networks\.decoder\.weight is \[64, 64\] there and \[64, 32\] here",
        ),
    ):
        state = State(networks, LoopSettings(steps=1, batch=1, learning_rate=0.1))
        before = tensors(state)
        with pytest.raises(ValueError, match=f"step-00000001: not a checkpoint of this run's networks, {problem}"):
            state.load(folder)
        assert_same(tensors(state), before)


def frozen_bias(network: nn.Linear) -> nn.Linear:
    network.bias.requires_grad_(False)
    return network


def test_a_damaged_checkpoint_is_named(small: State, tmp_path: Path):
    folder = tmp_path / "step-00000001"
    small.save(folder)
    data = next(folder.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(ValueError, match="step-00000001: cannot be read, resume from an older one"):
        small.load(folder)


def test_the_average_weighs_recent_values():
    """The profile is n^gamma: the average of 1, 2, …, n tends to n·(gamma+1)/(gamma+2)."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    average = PowerAverage(network)
    for n in range(2, 2001):
        nn.init.constant_(network.weight, float(n))
        average.update(network)
    assert float(average.weights["weight"]) / 2000 == pytest.approx(7.94 / 8.94, rel=1e-2)


def test_gates_stay_precise_in_a_checkpoint(tmp_path: Path):
    network = new_network("text")
    state = State({"decoder": network}, LoopSettings(steps=1, batch=1, learning_rate=0.1))
    state.save(tmp_path / "step-00000000")
    value = read_network(tmp_path / "step-00000000", "decoder")["pixel_gate.log_alpha"]
    assert value.dtype == torch.float32
    assert torch.equal(value, network.pixel_gate.log_alpha)


class Harmful:
    """A pickle that runs a command when it is read."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.place}",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path):
    state = State({"network": nn.Linear(2, 1)}, LoopSettings(steps=1, batch=1))
    state.save(tmp_path / "step-00000001")
    for content in (pickle.dumps(Harmful(tmp_path / "ran")), b"", b"\x80\x04garbage", pickle.dumps([1])):
        (tmp_path / "step-00000001" / ".metadata").write_bytes(content)
        for read in (state.load, read_average):
            with pytest.raises(ValueError, match="step-00000001: not a checkpoint that can be read") as refused:
                read(tmp_path / "step-00000001")
            assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
