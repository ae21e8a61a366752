"""The front of the Ray application, with a stand-in for the replicas that Ray would start; `test_ray` has real ones."""

import asyncio
import concurrent.futures
import time
from types import SimpleNamespace

import httpx2 as httpx
import pytest

from tests.serve.service import QUICK, picture, served, work

pytest.importorskip("ray", reason="Ray is not installed: pip install 'pixdec[ray]'")

from ray.exceptions import RayActorError

from pixdec.serve.ray_app import FrontEngine, Replica


class Handle:
    """Calls a replica's method as Ray's handle does; the first `deaths` calls of `run` find it dead."""

    def __init__(self, replica, deaths):
        self.replica, self.deaths = replica, deaths
        self.describe, self.run = (
            SimpleNamespace(remote=lambda *a, name=name: self(name, *a)) for name in ("describe", "run")
        )

    def __call__(self, name, *arguments):
        call = concurrent.futures.Future()
        if name == "run" and self.deaths:
            self.deaths -= 1
            call.set_exception(RayActorError())
        else:
            call.set_result(asyncio.run(getattr(self.replica, name)(*arguments)))
        return call


@pytest.mark.parametrize(("deaths", "status"), [(0, 200), (1, 200), (2, 503)])
def test_what_a_dead_replica_held_is_run_once_more(engine, client, deaths, status):
    replica = object.__new__(Replica)
    replica.engine = engine
    front = FrontEngine(QUICK, Handle(replica, deaths))
    front.wait_ready(120)
    with served(front) as url:
        answer = httpx.post(f"{url}/v1/upscale", files={"image": picture()}, timeout=300)
    assert answer.status_code == status
    if status == 200:
        assert answer.content == client.post("/v1/upscale", files={"image": picture()}).content
    front._closed.set()


def test_a_work_that_waited_too_long_for_a_replica_is_not_begun(engine):
    replica = object.__new__(Replica)
    replica.engine = engine
    assert asyncio.run(replica.run(work(0), time.time() - 1)).code == "deadline_exceeded"
