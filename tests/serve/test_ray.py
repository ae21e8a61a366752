"""A Ray cluster of two workers, started here: the service on it, and folders shared out over it."""

import os
from pathlib import Path

import pytest

from pixdec.cli import main
from tests.serve.service import picture

pytest.importorskip("ray", reason="Ray is not installed: pip install 'pixdec[ray]'")

import ray
from ray.cluster_utils import Cluster

from pixdec.generation.ray import on_ray

LIMIT = 300  # seconds for what takes 30 on an idle machine


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:  # a machine that is busy is not a proxy that hangs
        for check in ("READY", "HEALTH"):
            patch.setenv(f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S", str(LIMIT))
        patch.setenv("RAY_raylet_start_wait_time_s", str(LIMIT))
        yield from _cluster()


def _cluster():
    each = {"num_cpus": 1, "object_store_memory": 100 << 20}
    started = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    started.add_node(**each)
    ray.init(started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


def dying(folder):
    """Dies over 1 once, and over 2 every time; cannot do 3."""

    def do(item):
        if item == 2 or (item == 1 and not (folder / "died").exists()):
            (folder / "died").touch()
            os._exit(1)
        if item == 3:
            raise ValueError("3: is wrong")
        return item * 10

    return lambda: do


def test_what_kills_a_worker_is_done_once_more_and_then_a_failure(cluster, tmp_path):
    found = {item: str(each) for item, each in on_ray(dying(tmp_path), range(6), "auto")}
    assert found == {0: "0", 1: "10", 2: "its worker died over it twice", 3: "3: is wrong", 4: "40", 5: "50"}


def test_what_cannot_be_opened_is_said_once(cluster):
    def missing():
        raise ValueError("x: no such model")

    with pytest.raises(ValueError, match="no such model"):
        list(on_ray(missing, range(6), "auto"))


def test_a_folder_is_enlarged_to_the_same_bytes_and_goes_on(cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "there"):
        Path(folder).mkdir()
    for i in range(3):
        Path(f"in/{i}.png").write_bytes(picture(12, 12, i))
    Path("in/broken.png").write_bytes(picture()[:-40])
    assert main(["upscale", "in", "-o", "here/"]) == 2
    Path("there/0.png").write_bytes(Path("here/0.png").read_bytes())
    capsys.readouterr()
    assert main(["upscale", "in", "-o", "there/", "--ray", "auto", "--json"]) == 2
    said = capsys.readouterr()
    assert said.err.count("broken.png") == 1 and said.out.count('"skipped"') == 1
    made = sorted(Path("here").iterdir())
    assert [file.name for file in made] == ["0.png", "1.png", "2.png"]
    assert [file.read_bytes() for file in made] == [Path("there", file.name).read_bytes() for file in made]


def test_no_cluster_is_one_line(tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(picture())
    command = "upscale", f"{tmp_path}/x.png", "-o", f"{tmp_path}/y.png", "--ray", "x:1", "--plan"
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("pixdec: --ray x:1: --plan")
