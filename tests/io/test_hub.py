"""The hub's refusals in one line with the way out, and downloads that are checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from pixdec.io.hub import Access, fetch_file, fetch_folder, hub_reason, loading_reason

REPOSITORY = "someone/gated"


def refused(kind: Any, status: int) -> BaseException:
    return kind("refused\nat length", response=SimpleNamespace(status_code=status, headers={}, request=None))


def wrapped(error: BaseException) -> BaseException:
    """As transformers and diffusers raise it: an OSError of their own."""
    outer = OSError("something went wrong")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["plain", "wrapped"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            refused(errors.GatedRepoError, 401),
            ("gated", "accept its terms", REPOSITORY, "hf auth login", "HF_TOKEN"),
        ),
        (refused(errors.GatedRepoError, 403), ("gated", "accept its terms at", "hf auth login", "HF_TOKEN")),
        (refused(errors.RepositoryNotFoundError, 401), ("no repository", "private", "check the name", "hf auth login")),
        (refused(errors.HfHubHTTPError, 403), ("(403)", "hf auth login", "HF_TOKEN")),
        (refused(errors.RevisionNotFoundError, 404), ("no such revision",)),
        (refused(errors.RemoteEntryNotFoundError, 404), ("no such file",)),
        (ConnectionError("no route to host\nand more"), ("no route to host;", "check the connection")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_reasons(error: BaseException, words: tuple[str, ...], wrap: Any) -> None:
    reason = hub_reason(wrap(error), REPOSITORY)
    assert "\n" not in reason
    assert all(word in reason for word in words), reason
    assert ("connection" in reason) == isinstance(error, ConnectionError)


def test_what_is_not_the_hubs_fault_is_said_as_it_is() -> None:
    assert hub_reason(wrapped(ValueError("damaged")), REPOSITORY) == "something went wrong"
    assert "only the cache" in hub_reason(errors.LocalEntryNotFoundError("not on disk"), REPOSITORY)


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = errors.LocalEntryNotFoundError("cannot reach the hub")
    error.__cause__ = errors.OfflineModeIsEnabled("offline")
    reason = hub_reason(error, REPOSITORY)
    assert "HF_HUB_OFFLINE is set" in reason
    assert "connection" not in reason


def test_a_local_path_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    error = ConnectionError("odd")
    assert loading_reason(error, tmp_path) == "odd"
    assert loading_reason(error, "./model") == "odd"
    assert "check the connection" in loading_reason(error, REPOSITORY)


@pytest.fixture
def blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download that the hub's cache keeps under its hash, as it does with large files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / hashlib.sha256(b"weights").hexdigest()

    def download(repository: str, file: str, **asked: object) -> str:
        assert asked == {"revision": "v1", "token": None, "local_files_only": False}
        link = tmp_path / file
        link.symlink_to(path)
        return str(link)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return path


def test_a_download_is_compared_with_its_hash(blob: Path) -> None:
    blob.write_bytes(b"weights")
    assert fetch_file(REPOSITORY, "model", Access("v1")).read_bytes() == b"weights"


@pytest.mark.parametrize("pinned", [False, True])
def test_another_file_than_promised_is_removed(blob: Path, pinned: bool) -> None:
    blob.write_bytes(b"weights" if pinned else b"weighty")
    with pytest.raises(OSError, match=r"has the SHA-256 .* instead of .*download it again"):
        fetch_file(REPOSITORY, "model", Access("v1"), "0" * 64 if pinned else None)
    assert not blob.exists()


def test_a_repository_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise refused(errors.RepositoryNotFoundError, 404)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(OSError, match="cannot fetch someone/gated: there is no repository") as caught:
        fetch_folder(REPOSITORY, ["*"])
    assert "\n" not in str(caught.value)
