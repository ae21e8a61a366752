"""files: whole files or none, found below a folder, and errors in one line."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from pixdec.io.files import files_below, first_line_of, reason_of, replacing


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    with replacing(tmp_path / "out.png") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert not (tmp_path / "out.png").exists()
    assert names(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"new"


def test_takes_a_path_as_text(tmp_path: Path) -> None:
    with replacing(str(tmp_path / "out.bin")) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "out.bin").read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_removes_the_new(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out.png").write_bytes(b"old")
    with pytest.raises(error), replacing(tmp_path / "out.png") as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert names(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^mine$"), replacing(tmp_path / "out.png"):
        raise ValueError("mine")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "out.png") as temporary:
            temporary.write_bytes(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.png").stat().st_mode) == 0o644


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to(tmp_path / "store" / "real.bin")
    with replacing(tmp_path / "link.bin") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "store" / "real.bin").read_bytes() == b"new"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on file size stands in for a full disk: the write fails half-way with an OSError in both cases."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "out.bin"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="cannot write") as caught, replacing(target) as temporary:
            temporary.write_bytes(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.errno, int)
    assert names(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    line = r"cannot write .*out\.png: the folder .*absent does not exist"
    with pytest.raises(FileNotFoundError, match=line), replacing(tmp_path / "absent" / "out.png"):
        pytest.fail("the block must not run")


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a folder"), replacing(tmp_path):
        pytest.fail("the block must not run")


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OSError, match="not a regular file"), replacing(os.devnull):
        pytest.fail("the block must not run")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="cannot write"), replacing(tmp_path / "out.png") as temporary:
            temporary.write_bytes(b"new")
    finally:
        tmp_path.chmod(0o755)


def test_files_below_are_those_with_a_suffix_that_nothing_hides(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.png", "a-b/d.jpg", "a/notes.txt", ".e.png", "a/.cache/f.png", "g"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert files_below(tmp_path, {".png", ".jpg"}) == [Path("a/c.png"), Path("a-b/d.jpg"), Path("b.PNG")]
    assert files_below(tmp_path / "a" / ".cache", {".png"}) == [Path("f.png")]  # asked for by name


@pytest.mark.parametrize(
    ("error", "whole", "first"),
    [
        (ValueError("two\n  lines"), "two lines", "two"),
        (ValueError("\n one\n\nmore"), "one more", "one"),
        (ValueError(), "ValueError", "ValueError"),
        (OSError(28, "Disk full", "x"), "Disk full", "[Errno 28] Disk full: 'x'"),
        (OSError("cut short"), "cut short", "cut short"),
    ],
)
def test_errors_in_one_line(error: Exception, whole: str, first: str) -> None:
    assert (reason_of(error), first_line_of(error)) == (whole, first)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a/x.png", "b/y.png", ".c/z.png", "a/._x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    scan = os.scandir

    def forbidden(path: str):
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.warns(UserWarning, match=r"b: this folder cannot be read and is left out \(Permission denied\)"):
        assert files_below(tmp_path, {".png"}) == [Path("a/x.png")]
