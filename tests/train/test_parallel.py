"""Two gloo processes train as one does, however the work is laid on them."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from pair import EXACT, VARIANTS, given, new_network

from pixdec import devices
from pixdec.models.execution import Context
from pixdec.models.pid import PiD
from pixdec.train import parallel
from pixdec.train.parallel import MachineSettings, Share, World, join, precision, prepare
from ring import run_ring

PAGE = Path(__file__).parents[2] / "docs" / "many-devices.md"


def run(part: str, processes: int, folder: Path) -> dict:
    said = run_ring(Path(__file__).with_name("pair.py"), processes, part, folder)
    assert [each.code for each in said] == [0] * processes, said
    return torch.load(folder / f"{part}.pt", weights_only=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Two processes, which save a checkpoint; one, which resumes from it and saves; two, which resume from that."""
    folder = tmp_path_factory.mktemp("pair")
    return {part: run(part, processes, folder) for part, processes in (("pair", 2), ("one", 1), ("back", 2))}


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_find_the_gradients_of_one(found: dict, name: str):
    kind, height, _, machine = VARIANTS[name]
    two, one = found["pair"][name], found["one"][(kind, height)]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["gradients"].keys() == one["gradients"].keys()
    assert any(key.endswith("log_alpha") for key in one["gradients"])
    for key, gradient in one["gradients"].items():
        assert (two["gradients"][key] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-11, key
    assert not two["early"]
    assert two["kept"] / one["kept"] == pytest.approx(0.5 if machine.shard else 1.0, abs=0.01)


def test_a_run_goes_from_two_processes_to_one_and_back(found: dict):
    straight, resumed = found["one"]["trajectory"], found["back"]["resumed"]
    losses = [
        loss for part in (found["pair"]["trajectory"], found["one"]["resumed"], resumed) for loss in part["losses"]
    ]
    assert len(losses) == 6
    assert losses == pytest.approx(straight["losses"], rel=1e-5)
    for what in ("weights", "average"):
        for name, value in straight[what].items():
            assert (resumed[what][name] - value).abs().max() < 1e-5, name


def test_what_must_stay_float32_does_in_a_sharded_network(found: dict):
    """Noise levels, sinusoids, rotary tables and the gates' log_alpha: a plain network in bfloat16 keeps them."""
    sharded, plain = found["pair"]["bfloat16"], found["one"]["bfloat16"]
    assert set(sharded["types"].values()) == {"torch.float32"}
    assert plain["types"]["backbone.patch_embed.weight"] == "torch.bfloat16"
    assert torch.equal(sharded["velocity"], plain["velocity"])


def test_a_sharded_network_takes_its_averaged_weights_and_gives_them_back(found: dict):
    averaged = found["pair"]["averaged"]
    assert torch.allclose(averaged["shown"], averaged["expected"], atol=1e-6)
    assert (averaged["own"] - averaged["expected"]).abs().max() > 1e-5
    assert averaged["back"]


def test_condition_and_velocity_can_be_called_apart(found: dict):
    sharded, plain = found["pair"]["apart"], found["one"]["apart"]
    assert sharded.keys() == plain.keys()
    for name, gradient in plain.items():
        assert (sharded[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_a_teacher_can_be_looked_into(found: dict):
    for seen in found["pair"]["looked into"]:
        for value, expected in zip(seen, found["one"]["looked into"], strict=True):
            assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("changes", [{"recompute": True}, {"recompute": True, "compile": True}])
def test_recomputation_and_compilation_change_neither_names_nor_gradients(
    changes: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parallel, "BACKEND", "aot_eager")
    networks = [new_network("text"), new_network("text")]
    prepare({"decoder": networks[1]}, [], dataclasses.replace(EXACT, **changes), World())
    assert networks[1].state_dict().keys() == networks[0].state_dict().keys()
    calls = [count_calls(network) for network in networks]
    for network in networks:
        network(*given()).square().mean().backward()
    for (name, one), other in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-6), name
    assert len(calls[0]) == 1
    assert "compile" in changes or len(calls[1]) == 2


def count_calls(network: PiD) -> list[int]:
    calls: list[int] = []
    network.backbone.patch_blocks[0].image.mlp.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_precision_is_bfloat16_only_where_that_is_quick(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")

    def product(machine: MachineSettings) -> torch.dtype:
        with precision(machine, cpu):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    monkeypatch.setattr(devices, "has_bfloat16_units", lambda: True)
    assert product(MachineSettings()) == torch.bfloat16
    assert product(MachineSettings(precision="float32")) == torch.float32
    monkeypatch.setattr(devices, "has_bfloat16_units", lambda: False)
    assert product(MachineSettings()) == torch.float32


def test_frozen_networks_are_kept_in_what_is_computed_in(monkeypatch: pytest.MonkeyPatch):
    for units, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "has_bfloat16_units", lambda units=units: units)
        teacher, network = new_network("text"), new_network("text")
        prepare({"decoder": network}, [teacher], MachineSettings(), World())
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert teacher.backbone.patch_embed.weight.dtype == expected
        assert teacher.pixel_gate.log_alpha.dtype == torch.float32


def test_a_batch_is_shared_evenly_or_not_at_all():
    assert [list(Share(rank, 2).places(4)) for rank in range(2)] == [[0, 1], [2, 3]]
    assert [list(Share(rank, 2).places(8, 1, 2)) for rank in range(2)] == [[4, 5], [6, 7]]
    with pytest.raises(ValueError, match="a batch of 4 on 3 processes"):
        Share(0, 3).places(4)


def test_bands_are_as_even_as_can_be():
    context = Context(0, 4, lambda band, axis, sizes: band)
    assert context.bands(8) == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert [len(band) for band in context.bands(27)] == [6, 7, 7, 7]
    with pytest.raises(ValueError, match="3 rows of patches cannot be shared by 4 processes"):
        context.bands(3)


def test_what_does_not_fit_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu") == World()
    with pytest.raises(ValueError, match=r"machine\.context=2 on 1 process:"):
        join("cpu", 2)
    with pytest.raises(ValueError, match=r"machine\.context=0: expected at least 1"):
        MachineSettings(context=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"machine\.context=3 on 2 processes"):
        join("cpu", 3)
    with pytest.raises(ValueError, match="--device mps with several processes"):
        join("mps")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="process 1 on a machine with 0 CUDA devices"):
            join("cuda")


def test_the_page_gives_commands_that_a_shell_reads(tmp_path: Path):
    scripts = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert any("#SBATCH" in script for script in scripts)
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_the_settings_of_the_page_are_those_of_the_code():
    fields = {field.name for field in dataclasses.fields(MachineSettings)}
    assert set(re.findall(r"--machine\.(\w+)", PAGE.read_text())) <= fields
    assert all(f"`machine.{field}`" in PAGE.read_text() for field in fields)
