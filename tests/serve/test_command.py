"""`pixdec serve` as a process, and what it refuses before it starts."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import pytest

from pixdec.cli import main
from tests.serve.service import picture


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batches = 3", "batches: unknown"),
        ("batch = 0", "batch"),
        ("[models.x]\nsource = 'nothing.pth'", "nothing.pth"),
        ("[models.x]\nsource = 'pixdec-nano'\ndevice = 'cuda:77'", "cuda:77"),
        ("not toml", "no TOML"),
        ("model_memory = 'much'", "much"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(tmp_path, capsys, text, said):
    (tmp_path / "c.toml").write_text(text)
    assert main(["serve", "--config", str(tmp_path / "c.toml"), "--port", "0"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_a_busy_port_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err


def metrics(url):
    return httpx.get(f"{url}/metrics").text


def test_a_shutdown_under_load_answers_every_request(tmp_path):
    (tmp_path / "c.toml").write_text("grace = 60.0")
    command = [sys.executable, "-m", "pixdec", "serve", "--config", str(tmp_path / "c.toml"), "--port", "0"]
    log = (tmp_path / "log").open("w")
    service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ})
    assert service.stdout is not None
    found = re.search(r"http://\S+", service.stdout.readline())
    assert found is not None
    url, answers = found[0], []
    end = time.monotonic() + 120
    while httpx.get(f"{url}/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.1)

    def ask(seed):
        answers.append(httpx.post(f"{url}/v1/upscale", files={"image": picture(50, 50, seed)}, timeout=90).status_code)

    threads = [threading.Thread(target=ask, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    while sum(map(float, re.findall(r"^pixdec_(?:queue_length|running\S+) (\S+)", metrics(url), re.MULTILINE))) < 4:
        assert not answers
    service.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert httpx.post(f"{url}/v1/upscale", files={"image": picture()}).status_code == 503
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert service.wait(60) == 0
