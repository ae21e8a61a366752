"""Two gloo processes decode an image together as one does alone."""

from pathlib import Path

import pytest
import torch

from ring import run_ring


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("sharers")
    said = run_ring(Path(__file__).with_name("sharers.py"), 2, folder)
    assert [each.code for each in said] == [0, 0], said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", ["v1", "v1.5"])
def test_an_image_on_two_processes_is_that_of_one(found: list[dict], kind: str):
    alone, shared = (found[0][how][kind]["image"] for how in ("alone", "shared"))
    assert shared.shape == (2, 3, 80, 32)
    assert shared.std() > 0.1
    assert (shared - alone).abs().max() <= 1e-5 * alone.abs().max()
    assert torch.equal(shared, found[1]["shared"][kind]["image"]), "every process has the same whole image"


@pytest.mark.parametrize("kind", ["v1", "v1.5"])
def test_each_process_computes_its_rows_only(found: list[dict], kind: str):
    """Five rows of two patches, in each of two steps."""
    assert [each["shared"][kind]["tokens"] for each in found] == [[4, 4], [6, 6]]
    assert [each["alone"][kind]["tokens"] for each in found] == [[10, 10]] * 2


def test_in_bfloat16_it_is_off_by_that_precision(found: list[dict]):
    alone, shared = (found[0][how]["bfloat16"]["image"] for how in ("alone", "shared"))
    assert (shared - alone).norm() < 0.02 * alone.norm()
    assert torch.equal(shared, found[1]["shared"]["bfloat16"]["image"])


@pytest.mark.parametrize("kind", ["nano", "v1"])
@pytest.mark.parametrize(("columns", "calls"), [(2, [6, 6]), (1, [4, 2])])
def test_shared_tiles_are_those_of_one_process_to_the_bit(found: list[dict], kind: str, columns: int, calls: list[int]):
    """Two steps of six tiles, and of three, of which the last is the first process's."""
    alone = found[0]["alone"]["tiles"][kind][columns]
    shared = [each["shared"]["tiles"][kind][columns] for each in found]
    assert alone["calls"] == 2 * alone["tiles"] == sum(calls)
    assert [each["calls"] for each in shared] == calls
    assert alone["image"].std() > 0.1
    for each in shared:
        assert torch.equal(each["image"], alone["image"])


def test_what_cannot_be_shared_is_one_line_on_every_process(found: list[dict]):
    for each in found:
        refused = each["refused"]
        assert refused["rows"].startswith("1 rows of patches cannot be shared by 2 processes")
        assert refused["windows"].startswith("an image on 2 processes: this network's attention is windowed")
        assert "tiles" in refused["windows"]
        assert refused["teams"].startswith("3 of 2 processes for each image")
        assert refused["device"].startswith("mps with several processes: expected cpu or cuda")
        assert not any("\n" in line for line in refused.values())


def test_afterwards_a_process_decodes_alone(found: list[dict]):
    assert all(each["shared"][kind]["after"] for each in found for kind in ("v1", "v1.5"))
    assert torch.equal(found[1]["after"]["image"], found[1]["alone"]["v1"]["image"])
