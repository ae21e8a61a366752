"""`pixdec serve` as a process, and what it refuses before it starts."""

import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from pixdec.cli import main
from pixdec.serve.settings import Limits, ModelSettings, PipelineSettings, ServeSettings, read_settings
from tests.serve.service import picture, until

EXAMPLE = Path(__file__).parents[2] / "examples/serve/pixdec.toml"
LIMIT = 300  # seconds for what takes 3 on an idle machine


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


def test_a_file_that_is_no_decoder_ends_the_start_with_one_line(tmp_path, capfd):
    (tmp_path / "photo.png").write_bytes(picture())
    assert main(["serve", "--model", str(tmp_path / "photo.png"), "--port", "0"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "photo.png" in line


def test_the_example_shows_every_key_with_its_usual_value():
    assert read_settings(EXAMPLE) == ServeSettings()
    text = EXAMPLE.read_text()
    for table in (ServeSettings, ModelSettings, PipelineSettings, Limits):
        for key in table.model_fields:
            assert re.search(rf"^(# |\[|# \[)?{key}\b", text, re.MULTILINE), key


def test_a_key_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PIXDEC_API_KEY", "secret")
    assert read_settings(None).keys == {"environment": "secret"}
    (tmp_path / "c.toml").write_text("[keys]\nme = 'mine'")
    assert read_settings(tmp_path / "c.toml").keys == {"me": "mine"}


def test_a_busy_port_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err


def waiting(url):
    """How many works wait or run."""
    text = httpx.get(f"{url}/metrics", timeout=LIMIT).text
    return sum(map(float, re.findall(r"^pixdec_(?:queue_length|running\S+) (\S+)", text, re.MULTILINE)))


def test_a_shutdown_under_load_answers_every_request(tmp_path):
    (tmp_path / "c.toml").write_text(f"grace = {LIMIT}.0")
    command = [sys.executable, "-m", "pixdec", "serve", "--config", str(tmp_path / "c.toml"), "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert service.stdout is not None
        found = re.search(r"http://\S+", service.stdout.readline())
        assert found is not None
        url, image = found[0], picture(120, 120)
        until(lambda: httpx.get(f"{url}/readyz", timeout=LIMIT).status_code == 200)

        def ask(seed):
            fields = {"seed": seed, "steps": 4}
            return httpx.post(f"{url}/v1/upscale", files={"image": image}, data=fields, timeout=LIMIT).status_code

        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, seed) for seed in range(4)]
            until(lambda: waiting(url) == 4)
            service.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{url}/readyz", timeout=LIMIT).status_code == 503)
            assert httpx.post(f"{url}/v1/upscale", files={"image": picture()}, timeout=LIMIT).status_code == 503
        assert [answer.result() for answer in answers] == [200] * 4
        assert service.wait(LIMIT) == 0
    finally:
        service.kill()
