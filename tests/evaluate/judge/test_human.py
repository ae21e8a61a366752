"""The page for a person: blind, balanced, resumable, and the same records as any judge's."""

from __future__ import annotations

import io
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode, urljoin

import numpy as np
import pytest
from judge_stub import picture
from PIL import Image

from pixdec.evaluate.judge.asking import judge_pairs
from pixdec.evaluate.judge.endpoint import FakeJudge
from pixdec.evaluate.judge.human import Session, serve
from pixdec.evaluate.judge.pairs import Views, find_pairs
from pixdec.evaluate.judge.rates import summarize
from pixdec.evaluate.judge.rounds import read_rounds

Folders = tuple[Path, Path]
WHOLE = Views(max_side=64, crops=0)


@contextmanager
def served(session: Session) -> Iterator[str]:
    """The address of a page that is being served; it must have ended by itself when the block is left."""
    found, ready = list[str](), threading.Event()
    thread = threading.Thread(target=serve, args=(session, 0, lambda url: (found.append(url), ready.set())))
    thread.start()
    assert ready.wait(5)
    yield found[0]
    thread.join(5)
    assert not thread.is_alive()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()


def look(url: str, page: str) -> list[Image.Image]:
    """The two images that a page shows."""
    images = list[Image.Image]()
    for source in re.findall(r'<img src="([^"]+)"', page):
        with urllib.request.urlopen(urljoin(url, source), timeout=5) as response:
            images.append(Image.open(io.BytesIO(response.read())).convert("RGB"))
    return images


def choose(url: str, page: str, choice: str) -> str:
    """Send a choice as the form does; the page that follows."""
    question = re.search(r'name="question" value="(\d+)"', page)
    assert question is not None
    with urllib.request.urlopen(url, urlencode({"question": question[1], "choice": choice}).encode(), 5) as response:
        return response.read().decode()


def sharper(images: list[Image.Image]) -> str:
    detail = [float(np.abs(np.diff(np.asarray(image).astype(float), axis=1)).mean()) for image in images]
    return "A" if detail[0] > detail[1] else "B"


def test_a_person_with_good_eyes(folders: Folders, tmp_path: Path) -> None:
    session = Session(find_pairs(folders[0], [folders[1]]), "anna", tmp_path / "judge.jsonl", WHOLE)
    with served(session) as url:
        page = get(url)
        for _ in range(4):
            assert not re.search(r"ours|theirs|\d\.png\"? alt=\"(ours|theirs)", page)  # blind
            page = choose(url, page, sharper(look(url, page)))
        assert "Done" in page
    row = summarize(tmp_path)["rows"][0]
    assert (row["judge"], row["valid"], row["win_rate"], row["first_rate"]) == ("human:anna", 4, 1.0, 0.5)
    list(judge_pairs(find_pairs(folders[0], [folders[1]]), FakeJudge(), tmp_path / "judge.jsonl"))
    agreement = summarize(tmp_path)["agreement"]  # of the same table
    assert [(set(each["judges"]), each["share"]) for each in agreement] == [({"human:anna", "fake"}, 1.0)]


def test_a_session_goes_on_and_stays_balanced(folders: Folders, tmp_path: Path) -> None:
    for seed in range(10, 16):
        picture(seed).save(folders[0] / f"{seed}.png")
        picture(seed).save(folders[1] / f"{seed}.png")
    pairs, file = find_pairs(folders[0], [folders[1]]), tmp_path / "judge.jsonl"
    for count in (3, 4, 3):
        session = Session(pairs, "anna", file, WHOLE)
        for _ in range(count):
            index = session.next()
            assert index is not None
            session.choose(index, "A")
    assert Session(pairs, "anna", file, WHOLE).next() is None
    assert Session(pairs, "ben", file, WHOLE).next() == 0
    rounds = read_rounds(file)
    assert (len(rounds), sum(each.ours_first for each in rounds)) == (10, 5)
    assert len({each.pair for each in rounds}) == 10


def test_going_back_replaces_the_answer(folders: Folders, tmp_path: Path) -> None:
    session = Session(find_pairs(folders[0], [folders[1]]), "anna", tmp_path / "judge.jsonl", WHOLE)
    with served(session) as url:
        after = choose(url, get(url), "A")
        back = re.search(r'<a href="(\?question=\d+)"', after)
        assert back is not None
        page = choose(url, get(url + back[1]), "B")
        while "Done" not in page:
            page = choose(url, page, "A")
    row = summarize(tmp_path)["rows"][0]
    assert (row["valid"], len(read_rounds(tmp_path / "judge.jsonl"))) == (4, 5)


def test_who_does_not_know_the_address_sees_and_changes_nothing(folders: Folders, tmp_path: Path) -> None:
    session = Session(find_pairs(folders[0], [folders[1]]), "anna", tmp_path / "judge.jsonl", WHOLE)
    with served(session) as url:
        root, answer = urljoin(url, "/"), urlencode({"question": "0", "choice": "A"}).encode()
        for wrong, data, status in [
            (root, None, 404),
            (root + "0-A.png", None, 404),
            (root, answer, 404),
            (root + "guess/", answer, 404),
            (url + "9-A.png", None, 404),
            (url, b"question=0&choice=C", 400),
            (url, b"question=77&choice=A", 400),
            (url, b"nonsense", 400),
        ]:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(wrong, data, 5)
            assert caught.value.code == status
        assert not (tmp_path / "judge.jsonl").exists()
        for index in range(4):
            session.choose(index, "A")
        assert "Done" in get(url)


def test_damaged_pairs_are_left_out(folders: Folders, tmp_path: Path) -> None:
    (folders[1] / "0.png").write_bytes((folders[1] / "0.png").read_bytes()[:200])
    picture(1, 20, 20).save(folders[1] / "1.png")
    (folders[1] / "2.png").unlink()
    session = Session(find_pairs(folders[0], [folders[1]]), "anna", tmp_path / "judge.jsonl", WHOLE)
    while (index := session.next()) is not None:
        session.choose(index, "B")
    assert sorted(each.title[0] for each in session.failed) == ["0", "1", "2"]
    assert [each.pair for each in read_rounds(tmp_path / "judge.jsonl")] == ["3"]


def test_a_taken_port_and_a_missing_name(folders: Folders, tmp_path: Path) -> None:
    pairs = find_pairs(folders[0], [folders[1]])
    session = Session(pairs, "anna", tmp_path / "judge.jsonl", WHOLE)
    with served(session) as url:
        port = int(re.findall(r":(\d+)/", url)[0])
        with pytest.raises(OSError, match=f"port {port}"):
            serve(session, port)
        for index in range(4):
            session.choose(index, "A")
        get(url)
    with pytest.raises(ValueError, match="name"):
        Session(pairs, " ", tmp_path / "judge.jsonl")
