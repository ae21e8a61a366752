"""`pixdec page`: what is given is shared, what cannot be is told."""

import webbrowser
from urllib.parse import parse_qs, urlsplit

import pytest

from pixdec.cli import main
from pixdec.serve import server
from tests.serve.service import picture


@pytest.fixture
def started(monkeypatch):
    """The calls of `serve`, which is not run."""
    calls = []

    def serve(settings, *, port, given, listening_at):
        calls.append((settings, [path.name for path in given]))
        listening_at("http://127.0.0.1:1234")
        return 0

    monkeypatch.setattr(server, "serve", serve)
    return calls


@pytest.fixture
def opened(monkeypatch):
    addresses = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    return addresses


def test_images_and_latents_are_opened(started, opened, tmp_path):
    (tmp_path / "ä b.png").write_bytes(picture())
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert main(["page", str(tmp_path / "ä b.png"), str(tmp_path / "a.safetensors")]) == 0
    [(settings, given)] = started
    assert given == ["ä b.png", "a.safetensors"]
    assert list(settings.models) == ["pixdec-nano"]
    assert parse_qs(urlsplit(opened[0]).fragment) == {"given": ["ä b.png/a.safetensors"]}


def test_what_is_no_image_is_told_and_the_others_are_opened(started, opened, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "notes.txt").write_text("no image")
    assert main(["page", str(tmp_path / "notes.txt"), str(tmp_path / "a.png"), str(tmp_path / "gone.latent")]) == 0
    assert started[0][1] == ["a.png"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "notes.txt" in said[0]
    assert "gone.latent" in said[1]


def test_nothing_starts_for_no_image_at_all(started, opened, tmp_path):
    assert main(["page", str(tmp_path / "gone.png")]) == 2
    assert started == opened == []


def test_without_a_browser_the_whole_address_is_printed(started, opened, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(picture())
    assert main(["page", "--no-browser", str(tmp_path / "a.png")]) == 0
    assert opened == []
    assert "http://127.0.0.1:1234/#given=a.png " in capsys.readouterr().out


def test_without_images(started, opened):
    assert main(["page"]) == 0
    assert started[0][1] == []
    assert opened == ["http://127.0.0.1:1234/"]
