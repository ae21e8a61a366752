"""A Ray cluster of two nodes with room for a worker each, started here: folders shared out over it, and the service."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
import torch

from pixdec.cli import main
from pixdec.latents import Latent
from tests.serve.service import picture, until

pytest.importorskip("ray", reason="Ray is not installed: pip install 'pixdec[ray]'")

import ray
from ray import serve
from ray.cluster_utils import Cluster

from pixdec.generation.ray import on_ray
from pixdec.serve.ray_app import app

LIMIT = 300  # seconds for what takes 30 on an idle machine


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:  # a machine that is busy is not a process that hangs
        for name in ("READY", "HEALTH"):
            patch.setenv(f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S", str(LIMIT))
        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        try:
            made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
            made.add_node(**node)
        except Exception as error:  # it gives its own processes 30 s
            pytest.skip(f"no Ray cluster starts here: {error}")
        yield made
        made.shutdown()


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
    found = {item: str(each) for item, each in on_ray(dying(tmp_path), range(6), cluster.address)}
    assert found == {0: "0", 1: "10", 2: "its worker died over it twice", 3: "3: is wrong", 4: "40", 5: "50"}


def test_what_cannot_be_opened_is_said_once(cluster):
    def missing():
        raise ValueError("x: no such model")

    with pytest.raises(ValueError, match="no such model"):
        list(on_ray(missing, range(6), cluster.address))


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
    assert main(["upscale", "in", "-o", "there/", "--ray", cluster.address, "--json"]) == 2
    said = capsys.readouterr()
    assert said.err.count("broken.png") == 1 and said.out.count('"skipped"') == 1
    made = sorted(Path("here").iterdir())
    assert [file.name for file in made] == ["0.png", "1.png", "2.png"]
    assert [file.read_bytes() for file in made] == [Path("there", file.name).read_bytes() for file in made]


def test_latents_are_decoded_to_the_same_bytes(cluster, tmp_path):
    Latent(torch.rand(2, 3, 8, 8), "rgb", 0.1).save(tmp_path / "two.safetensors")
    for name, more in (("here", []), ("there", ["--ray", cluster.address])):
        assert main(["decode", f"{tmp_path}/two.safetensors", "-o", f"{tmp_path}/{name}/", *more]) == 0
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()


def test_no_cluster_is_one_line(tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(picture())
    command = "upscale", f"{tmp_path}/x.png", "-o", f"{tmp_path}/y.png", "--ray", "x:1", "--plan"
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("pixdec: --ray x:1: --plan")


@pytest.fixture
def url(cluster, tmp_path):
    ray.init(cluster.address, log_to_driver=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    (tmp_path / "c.toml").write_text("batch = 1\nmodel_memory = '1GB'")
    serve.run(app({"config": str(tmp_path / "c.toml"), "replicas": "2"}), name="mine")  # as `serve run` does
    address = f"http://127.0.0.1:{port}"
    until(lambda: httpx.get(f"{address}/readyz", timeout=LIMIT).status_code == 200, LIMIT)
    yield address
    serve.shutdown()
    ray.shutdown()


def replicas():
    named = {each.pid: " ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)}
    return [pid for pid, name in named.items() if name.startswith("ray::ServeReplica:mine:Replica")]


def test_a_replica_that_is_killed_under_load_loses_nothing(url):
    """Each holds two of eight works, as many as it may, when the first is done."""

    def ask(seed):
        file, fields = {"image": picture(80, 80)}, {"seed": seed, "steps": 4}
        answer = httpx.post(f"{url}/v1/upscale", files=file, data=fields, timeout=LIMIT)
        assert answer.status_code == 200, answer.text
        done.append(seed)
        return answer.content, httpx.get(f"{url}/v1/jobs/{answer.headers['x-job-id']}", timeout=LIMIT).json()

    done, pids = [], replicas()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, i % 2) for i in range(8)]
        until(lambda: done, LIMIT)
        os.kill(pids[0], signal.SIGKILL)
        found = [each.result() for each in asked]
    assert len({data for data, _ in found}) == 2
    assert {job["state"] for _, job in found} == {"done"}
    attempts = [job["attempts"] for _, job in found]
    assert max(attempts) == 2 and attempts.count(2) <= 2, attempts


def test_what_a_lost_machine_held_is_done_by_another(cluster):
    def slow():
        def do(item):
            time.sleep(0.2)
            return item

        return do

    (lost,) = cluster.worker_nodes
    found = []
    for item, each in on_ray(slow, range(12), cluster.address):
        if not found:
            cluster.remove_node(lost, allow_graceful=False)
        found.append((item, each))
    assert sorted(found) == [(item, item) for item in range(12)]
