"""cli.jobs: which input goes to which output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pixdec.cli.targets import Job, Kinds, plan
from pixdec.io.files import prepare

IMAGES = {".png", ".jpg", ".webp"}


def planned(inputs: list[Path | str], output: Path | str, suffix: str = ".png") -> list[Job]:
    return plan([str(i) for i in inputs], str(output), Kinds("images", IMAGES, sorted(IMAGES), suffix))


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_one_file_to_one_file(tmp_path: Path) -> None:
    jobs = planned([tmp_path / "a.jpg"], tmp_path / "out.WEBP")
    assert jobs == [Job(tmp_path / "a.jpg", tmp_path / "out.WEBP")]


@pytest.mark.parametrize("output", ["out", "out/", "out.png/", "results.v2/"])
def test_one_file_to_a_folder(tmp_path: Path, output: str) -> None:
    folder = f"{tmp_path}/{output}"
    assert planned([tmp_path / "a.tar.jpg"], folder, ".webp") == [
        Job(tmp_path / "a.tar.jpg", Path(folder) / "a.tar.webp")
    ]


def test_a_folder_that_exists_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "v1.png").mkdir()
    assert planned([tmp_path / "a.jpg"], tmp_path / "v1.png")[0].target == tmp_path / "v1.png" / "a.png"


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_folder_is_mirrored(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    touch(source / "b.JPG", source / "x" / "y" / "a.png", source / "notes.txt", source / ".hidden.png")
    touch(source / ".cache" / "c.png")
    assert planned([source], out) == [
        Job(source / "b.JPG", out / "b.png"),
        Job(source / "x" / "y" / "a.png", out / "x" / "y" / "a.png"),
    ]


def test_files_and_folders_mix(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "b.png")
    jobs = planned([tmp_path / "a.png", tmp_path / "in"], tmp_path / "out")
    assert [job.target.name for job in jobs] == ["a.png", "b.png"]


def test_what_an_earlier_run_wrote_below_the_input_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "out" / "a.png")
    assert planned([tmp_path], tmp_path / "out") == [Job(tmp_path / "a.jpg", tmp_path / "out" / "a.png")]


@pytest.mark.parametrize(
    ("inputs", "output", "says"),
    [
        ([], "out", "no input; name images"),
        (["a.jpg"], "out.gif", "expected a suffix of .jpg, .png, .webp; if it is a folder, end it with /"),
        (["a.jpg", "b.jpg"], "out.png", "expected a folder"),
        (["in"], "out.png", "expected a folder"),
        (["a.jpg", "b.jpg"], "file", "expected a folder"),
        (["a.jpg", "x/a.png"], "out", "both a.jpg and x/a.png would be written there"),
        (["a.jpg", "in"], "out", "both a.jpg and in/a.webp would be written there"),
        (["a.png"], "a.png", "would overwrite the input a.png"),
        (["a.png", "b.png"], ".", "would overwrite the input a.png"),
        (["a.jpg", "out/a.png"], "out", "would overwrite the input out/a.png"),
        (["empty"], "out", "empty: no images in this folder; looked for .jpg, .png, .webp"),
    ],
)
def test_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], output: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(Path("in/a.webp"), Path("file"))
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        planned([*inputs], output)
    assert "\n" not in str(caught.value)


def test_a_link_to_an_input_is_not_overwritten(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match="would overwrite the input"):
        planned([tmp_path / "a.png"], tmp_path / "out")


def test_prepare_creates_folders(tmp_path: Path) -> None:
    prepare([tmp_path / "x" / "y" / "a.png", tmp_path / "x" / "b.png"])
    assert (tmp_path / "x" / "y").is_dir()


def test_prepare_refuses_what_cannot_be_written(tmp_path: Path) -> None:
    touch(tmp_path / "file")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"cannot create the folder .*file/x"):
        prepare([tmp_path / "file" / "x" / "a.png"])
    with pytest.raises(OSError, match=r"cannot create the folder .*file"):
        prepare([tmp_path / "file" / "a.png"])
    with pytest.raises(OSError, match=r"folder\.png: it is a folder"):
        prepare([tmp_path / "folder.png"])
