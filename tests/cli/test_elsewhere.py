"""--ray, with a stand-in for the cluster: what its workers would be sent goes through pickle, and is done here. A real
cluster is in tests/serve/test_ray.py."""

import pickle

import pytest
import torch

from pixdec.generation import ray
from pixdec.latents import Latent
from tests.cli.klein_pipeline import klein, written

__all__ = ["klein"]


@pytest.fixture
def sent(monkeypatch):
    items = []

    def on_ray(open, todo, address):
        items.extend(todo)
        do = pickle.loads(pickle.dumps(open))()
        yield from ray.one_by_one(do, pickle.loads(pickle.dumps(list(todo))))

    monkeypatch.setattr(ray, "on_ray", on_ray)
    return items


def same(one, other):
    files = sorted(file.name for file in one.iterdir())
    assert files == sorted(file.name for file in other.iterdir())
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)


def test_latents(run, sent, tmp_path):
    Latent(torch.randn(2, 128, 2, 3), "flux2", 0.1, statistics=False).save(tmp_path / "two.safetensors")
    here, there = (("decode", tmp_path, "-o", tmp_path / name, "--device", "cpu") for name in ("here", "there"))
    assert run(*here).code == run(*there, "--ray", "x:1").code == 0
    same(tmp_path / "here", tmp_path / "there")
    assert len(sent) == 2
    assert run(*there, "--ray", "x:1").code == 0
    assert len(sent) == 2


def test_prompts_and_the_one_that_fails(run, sent, klein, tmp_path):
    prompts = written(tmp_path / "p.txt", "a red fox", "a boat", "snow")
    common = ("generate", "--pipeline", klein, "--prompts", prompts, "--steps", 2, "--height", 32, "--width", 48)
    common += ("--guidance", 1, "--device", "cpu", "--dtype", "float32")
    here = run(*common, "-o", tmp_path / "here")
    there = run(*common, "-o", tmp_path / "there", "--ray", "x:1")
    assert (here.code, here.err) == (2, there.err)
    same(tmp_path / "here", tmp_path / "there")
    assert len(sent) == 3
    run(*common, "-o", tmp_path / "x", "--ray", "x:1", "--offload").refused("offload")
