"""The same bytes whatever happens around a request."""

import contextlib
import os
import signal
import socket

import httpx2 as httpx
import pytest

from benchmarks.serve import aborts, fuzz, sizes, storm
from pixdec.serve.engine import Engine
from pixdec.serve.jobs import ServiceError
from tests.serve.service import QUICK, arrived, picture, served, until, work


@pytest.fixture(scope="module")
def alone(engine):
    return [engine.run(work(seed)).data for seed in range(4)]


def test_the_same_bytes_alone_and_in_batches_with_cancelled_neighbors(engine, monkeypatch):
    sizes = []
    monkeypatch.setattr(engine, "on_batch", sizes.append)
    assert aborts(engine, 40)["differ"] == 0
    assert max(sizes) == QUICK.batch


def test_memory_is_flat_over_random_sizes(engine):
    assert sizes(engine, 30)["grown_mb"] < 100


def test_hostile_bodies_are_refused_and_leave_nothing(engine, url):
    found = fuzz(url, 300)
    assert all(status < 500 for status in found["statuses"]), found
    assert found["files_left"] == []
    assert engine.run(work(0)).size == (48, 48)


def test_a_storm_of_clients_that_hang_up_passes(engine, url):
    assert storm(url, engine, 20)["status"] == 200


def test_a_cancelled_job_stops_within_a_step(engine):
    seen = []
    with engine.lock:  # it is not begun before it is watched
        job = engine.submit(work(0, 150, 150))
        job.watch(lambda event, more: (seen.append(job.step), job.step == 1 and engine.cancel(job)))
    with pytest.raises(ServiceError, match="cancelled"):
        job.wait(120)
    engine.run(work(1))
    assert max(seen) == 1


def test_a_client_that_goes_stops_its_work(engine, url):
    before = set(engine.jobs)
    request = httpx.Request("POST", f"{url}/v1/upscale", files={"image": picture(250, 250)}, data={"steps": 4})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port)) as client:
        client.sendall(f"POST /v1/upscale HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        job = arrived(engine, before)
        until(lambda: job.state == "running")
    with pytest.raises(ServiceError, match="cancelled"):
        job.wait(120)


def test_health_answers_during_a_decode_and_slow_clients_block_nobody(engine, client, url):
    host, port = url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for each in slow:
        each.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n")
    job = engine.submit(work(0, 250, 250))
    until(lambda: job.state == "running")
    for _ in range(5):
        assert client.get("/healthz").status_code == 200
    assert not job.ended  # which takes a hundred times as long
    engine.cancel(job)
    for each in slow:
        each.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(engine, client, alone, how):
    job = engine.submit(work(2, 100, 100))
    until(lambda: job.state == "running")
    os.kill(engine.workers[0].process.pid, how)
    until(lambda: client.get("/readyz").status_code == 503, seconds=30)
    assert client.get("/readyz").json()["missing"]
    refused = client.post("/v1/upscale", files={"image": picture()})
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert job.wait(120).size == (400, 400)  # done by the next worker
    assert engine.run(work(3)).data == alone[3]


def test_metrics_tell_what_happened(engine, client):
    engine.run(work(0))
    text = client.get("/metrics").text
    for name in (
        'stage="decode"',
        "pixdec_queue_length 0.0",
        "pixdec_batch_size_bucket",
        "pixdec_images_total",
        "pixdec_ready 1.0",
    ):
        assert name in text


def test_a_deadline_and_a_full_queue(engine):
    """An engine without workers that run: nothing is ever taken from its queue."""
    idle = Engine(QUICK.model_copy(update={"queue": 2}))
    idle.workers[0].missing = lambda: None
    idle._watch.start()
    first = idle.submit(work(0), deadline=0.1)
    with pytest.raises(ServiceError) as late:
        first.wait(120)
    assert (late.value.code, first.state) == ("deadline_exceeded", "expired")
    idle.speeds["pixdec-nano"] = 1
    idle.submit(work(0))
    with pytest.raises(ServiceError) as full:
        idle.submit(work(0), deadline=1)
    assert (full.value.status, full.value.retry_after) == (429, 30)
    idle._closed.set()


def test_keys_and_origins(engine):
    locked = Engine(QUICK.model_copy(update={"keys": {"me": "secret"}, "origins": ("https://a.example",)}))
    locked.workers, locked.models, locked.submit = engine.workers, engine.models, engine.submit
    with served(locked) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        mine = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models", headers=mine).status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == 200
        for origin, allowed in (("https://a.example", True), ("https://b.example", False), ("null", False)):
            answer = httpx.get(f"{url}/healthz", headers={"Origin": origin})
            assert ("access-control-allow-origin" in answer.headers) == allowed


@pytest.mark.parametrize(
    "path", ["/page/../settings.py", "/page/%2e%2e/settings.py", "/page/..%2fsettings.py", "//etc/passwd"]
)
def test_no_path_leads_out_of_the_page(client, path):
    assert client.get(path).status_code in (400, 404)


def test_strange_headers(client):
    assert client.get("/healthz", headers={"X-Request-Id": "a b<script>"}).headers["x-request-id"].isalnum()
    assert client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    with contextlib.suppress(httpx.ReadError):  # it hangs up on who goes on after the answer
        assert client.get("/healthz", headers={"X-Long": "x" * 200_000}).status_code == 400
    assert client.get("/healthz").status_code == 200
