"""Runs of a judge: what is asked, what is kept, what a second run asks again, when a run ends early."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_stub import Stub, picture, said
from PIL import Image

from pixdec.evaluate.judge.asking import GIVE_UP, Asking, Price, judge_pairs, plan
from pixdec.evaluate.judge.endpoint import Endpoint, FakeJudge, Judge
from pixdec.evaluate.judge.pairs import BLURRED, SAME, Failed, Pair, View, Views, find_pairs
from pixdec.evaluate.judge.prompt import PROMPT
from pixdec.evaluate.judge.rates import summarize
from pixdec.evaluate.judge.rounds import Round, read_rounds

Folders = tuple[Path, Path]
DRAWN = {"temperature": 1}


def run(pairs: Sequence[Pair | Failed], judge: Judge, out: Path, **asking: Any) -> list[Round | Failed]:
    found = judge_pairs(pairs, judge, out / "judge.jsonl", Asking(**{"concurrency": 1, **asking}))
    return [outcome for outcomes in found for outcome in outcomes]


def endpoint(stub: Stub, **settings: Any) -> Endpoint:
    return Endpoint(stub.url, "m", **{"tries": 1, "timeout": 5, **settings})


def failures(outcomes: Sequence[Round | Failed]) -> list[str]:
    return [each.reason if isinstance(each, Failed) else str(each.failure) for each in outcomes if _failed(each)]


def _failed(outcome: Round | Failed) -> bool:
    return isinstance(outcome, Failed) or outcome.failure is not None


def test_each_pair_twice_with_the_order_swapped(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    outcomes = run(find_pairs(folders[0], [folders[1]]), endpoint(stub), tmp_path)
    assert len(stub.calls) == 8
    sent = [[part["image_url"]["url"] for part in call["messages"][0]["content"][2::2]] for call in stub.calls]
    assert [first[::-1] for first in sent[::2]] == sent[1::2]
    rounds = read_rounds(tmp_path / "judge.jsonl")
    assert sorted(map(str, rounds)) == sorted(map(str, outcomes))
    assert [each.won for each in rounds] == [True, False] * 4  # always A
    assert len({each.key for each in rounds}) == 8
    assert {(each.model, each.tokens, each.tries) for each in rounds} == {("stub-1", (1000, 20), 1)}


def test_a_killed_run_goes_on_without_a_repeated_call(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    pairs = find_pairs(folders[0], [folders[1]])
    found = judge_pairs(pairs, endpoint(stub), tmp_path / "judge.jsonl", Asking(concurrency=1))
    next(found)
    found.close()  # type: ignore[attr-defined]
    before = len(stub.calls)
    assert 2 <= before < 8
    file = tmp_path / "judge.jsonl"
    file.write_bytes(file.read_bytes() + b'{"key": "torn by a power cut')
    outcomes = run(pairs, endpoint(stub), tmp_path)
    assert (len(stub.calls), len(outcomes)) == (8, 8)
    assert len(read_rounds(file)) == 8
    run(pairs, endpoint(stub), tmp_path)
    assert len(stub.calls) == 8


def test_a_round_is_on_the_disk_before_it_counts(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = list[int]()
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "judge.jsonl").read_bytes().count(b"\n")))
    assert len(run(find_pairs(folders[0], [folders[1]]), FakeJudge(), tmp_path)) == 8
    assert synced == list(range(1, 9))


def test_the_first_round_is_kept_when_the_second_fails(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    stub.reply = lambda count: said("VERDICT: A") if count % 2 else (400, {}, b"no")
    pairs = find_pairs(folders[0], [folders[1]])
    assert len(failures(run(pairs, endpoint(stub), tmp_path))) == 4
    row = summarize(tmp_path)["rows"][0]
    assert (row["valid"], row["failed"], row["win_rate"], row["shown_twice"]) == (4, 4, 1.0, 0)
    stub.reply = lambda _: said("VERDICT: B")  # only the failed ones are asked again
    run(pairs, endpoint(stub), tmp_path)
    assert len(stub.calls) == 12
    row = summarize(tmp_path)["rows"][0]
    assert (row["valid"], row["failed"], row["win_rate"], row["consistency"]) == (8, 0, 1.0, 1.0)


def test_answers_without_a_verdict_leave_the_counts_and_are_listed(
    stub: Stub, folders: Folders, tmp_path: Path
) -> None:
    texts = ["VERDICT: A", "VERDICT: C", "I cannot judge this.", "verdict: b", "It is\nhard.\nVERDICT: B", "tie"]
    stub.reply = lambda count: said(texts[(count - 1) % 6])
    run(find_pairs(folders[0], [folders[1]]), endpoint(stub), tmp_path)
    summary = summarize(tmp_path)
    row = summary["rows"][0]
    assert (row["valid"], row["failed"]) == (4, 4)
    assert sorted(each["reason"] for each in summary["failures"])[0].endswith("'I cannot judge this.'")
    assert all(each["judge"] == "m" and each["pair"] for each in summary["failures"])


def test_equal_questions_are_asked_once_only_at_temperature_0(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    pairs = [pair for pair in find_pairs(folders[0], [], controls=True) if isinstance(pair, Pair)]
    same = [pair for pair in pairs if pair.methods[1] == SAME]
    for name in "ab":
        (tmp_path / name).mkdir()
    assert len(run(same, endpoint(stub), tmp_path / "a")) == 8
    assert len(stub.calls) == 4
    run(same, endpoint(stub, body=DRAWN), tmp_path / "b")
    assert len(stub.calls) == 12
    row = summarize(tmp_path / "a")["rows"][0]
    assert (row["win_rate"], row["consistency"], row["first_rate"], row["passed"]) == (0.5, 0.0, 1.0, True)


def test_the_controls_come_out_right(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    for seed in range(30):
        picture(seed).save(tmp_path / "ours" / f"{seed}.png")
    run(find_pairs(tmp_path / "ours", [], controls=True), FakeJudge(), tmp_path)
    rows = {row["other"]: row for row in summarize(tmp_path)["rows"]}
    assert rows[SAME]["win_rate"] == 0.5
    assert rows[SAME]["consistency"] == 0
    assert rows[BLURRED]["win_rate"] > 0.95
    assert rows[SAME]["passed"]
    assert rows[BLURRED]["passed"]


def test_another_prompt_image_or_parameter_is_another_question(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    pairs = find_pairs(folders[0], [folders[1]])
    run(pairs, endpoint(stub), tmp_path)
    run(pairs, endpoint(stub), tmp_path, prompt="Which?")
    assert len(stub.calls) == 16
    run(pairs, endpoint(stub, body={"seed": 1}), tmp_path)
    assert len(stub.calls) == 24
    picture(9).save(folders[1] / "0.png")
    run(find_pairs(folders[0], [folders[1]]), endpoint(stub), tmp_path)
    assert len(stub.calls) == 26
    rows = summarize(tmp_path)["rows"]
    assert [row["valid"] for row in rows] == [8, 8, 8]  # of the images as they are now
    assert len({row["settings"] for row in rows}) == 3
    kept = [json.loads((tmp_path / f"judge-{row['settings']}.json").read_text())["prompt"] for row in rows]
    assert sorted(kept) == sorted((PROMPT, "Which?", PROMPT))  # what stands behind the settings is kept


def test_a_wrong_key_ends_the_run_at_once(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    stub.reply = lambda _: (401, {}, b'{"error": {"message": "bad key"}}')
    outcomes = run(find_pairs(folders[0], [folders[1]]), endpoint(stub), tmp_path)
    assert len(stub.calls) == 1
    last = outcomes[-1]
    assert isinstance(last, Failed)
    assert "bad key" in last.reason
    assert "7 questions" in last.reason


def test_an_endpoint_that_is_down_ends_the_run_soon(folders: Folders, tmp_path: Path) -> None:
    outcomes = run(find_pairs(folders[0], [folders[1]]), Endpoint("http://127.0.0.1:1/v1", "m", tries=1), tmp_path)
    assert len([each for each in outcomes if isinstance(each, Round)]) == GIVE_UP
    assert "3 questions" in failures(outcomes)[-1]


def test_pages_of_another_server_end_the_run_soon(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    stub.reply = lambda _: (200, {}, b"<html>log in</html>")
    outcomes = run(find_pairs(folders[0], [folders[1]]), endpoint(stub), tmp_path)
    assert len(stub.calls) == GIVE_UP
    assert "3 questions" in failures(outcomes)[-1]


def test_images_that_are_refused_do_not_end_the_run(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    stub.reply = lambda count: (400, {}, b"against our policy") if count <= GIVE_UP + 1 else said("VERDICT: A")
    outcomes = run(find_pairs(folders[0], [folders[1]]), endpoint(stub), tmp_path)
    assert failures(outcomes) == ["HTTP 400 Bad Request: against our policy"] * (GIVE_UP + 1)
    assert len(stub.calls) == 8


def test_the_limit_on_money_holds(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    pairs, price = find_pairs(folders[0], [folders[1]]), Price(1000, 0)  # 1 USD a call
    asking = {"price": price, "max_cost": 3.5, "concurrency": 3}
    outcomes = run(pairs, endpoint(stub), tmp_path, **asking)
    assert len(stub.calls) == 3
    assert "3.5 USD" in failures(outcomes)[-1]
    assert summarize(tmp_path)["judges"]["m"]["cost"] == pytest.approx(3)
    run(pairs, endpoint(stub), tmp_path, **asking)  # what earlier runs spent counts
    assert len(stub.calls) == 3
    with pytest.raises(ValueError, match="price"):
        Asking(max_cost=1)


def test_calls_that_say_nothing_of_tokens_count_as_estimated(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    stub.reply = lambda _: said("VERDICT: A", usage=None)
    pairs, asking = find_pairs(folders[0], [folders[1]]), Asking(price=Price(1, 1))
    expected = plan(pairs, endpoint(stub), tmp_path / "judge.jsonl", asking)
    assert (expected.calls, expected.earlier) == (8, 0)
    run(pairs, endpoint(stub), tmp_path, price=Price(1, 1))
    assert summarize(tmp_path)["judges"]["m"]["cost"] == pytest.approx(expected.cost)
    after = plan(pairs, endpoint(stub), tmp_path / "judge.jsonl", asking)
    assert (after.calls, after.earlier, after.cost) == (0, 8, 0)


def test_so_many_at_once(stub: Stub, folders: Folders, tmp_path: Path) -> None:
    meeting = threading.Barrier(4)  # passes when four calls are under way at once

    def reply(count: int) -> Any:
        meeting.wait(5)
        return said("VERDICT: A")

    stub.reply = reply
    outcomes = run(find_pairs(folders[0], [folders[1]]), endpoint(stub), tmp_path, concurrency=4)
    assert failures(outcomes) == []


def test_bad_pairs_are_one_line_each_and_the_rest_goes_on(folders: Folders, tmp_path: Path) -> None:
    ours, theirs = folders
    picture(0, 40, 32).save(theirs / "0.png")
    (theirs / "1.png").write_bytes((theirs / "1.png").read_bytes()[:200])
    (theirs / "2.png").unlink()
    (theirs / "3.jpg").write_bytes(b"")
    picture(8).save(theirs / "8.webp")
    picture(9).save(ours / "9.png")
    picture(9).save(theirs / "9.webp")
    outcomes = run(find_pairs(ours, [theirs]), FakeJudge(), tmp_path)
    assert sorted(each.title[0] for each in outcomes if isinstance(each, Failed)) == ["0", "1", "2", "3", "8"]
    reasons = " ".join(failures(outcomes))
    assert all(word in reasons for word in ("48x32 and 40x32", "1.png", "none in theirs", "2 files", "none in ours"))
    assert [each.pair for each in outcomes if isinstance(each, Round)] == ["9", "9"]


def test_bad_folders(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for ours, others in ((folders[0], [tmp_path / "none"]), (tmp_path / "empty", folders), (folders[0], [])):
        with pytest.raises(ValueError, match=r"none|no images|nothing to compare"):
            find_pairs(ours, others)
    with pytest.raises(ValueError, match="twice"):
        find_pairs(folders[0], [folders[0]])


def test_views() -> None:
    image = Image.new("RGB", (300, 200))
    whole = View("whole", 150).of([image, image], "x")
    assert [each.size for each in whole] == [(150, 100)] * 2
    marked = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    one, other = View("crop", 64, 1).of([marked, marked], "x")
    assert one.size == (64, 64)
    assert one.tobytes() == other.tobytes() == View("crop", 64, 1).of([marked], "x")[0].tobytes()
    assert one.tobytes() != View("crop", 64, 2).of([marked], "x")[0].tobytes()
    assert View("crop", 250).of([image], "x")[0].size == (250, 200)
    for bad in ({"crops": -1}, {"max_side": 0, "crops": 0}, {"crop_side": 1}):
        with pytest.raises(ValueError, match="crop"):
            Views(**bad)


def test_crops_are_left_out_where_they_are_the_whole(folders: Folders) -> None:
    pair = find_pairs(folders[0], [folders[1]])[0]
    assert isinstance(pair, Pair)  # 48 x 32
    names = {sides: [view.name for view in Views(sides[0], 3, sides[1]).of(pair)] for sides in [(64, 64), (32, 64)]}
    assert names == {(64, 64): ["whole 64"], (32, 64): ["whole 32", "crop 64"]}
    assert [view.name for view in Views(64, 3, 16).of(pair)] == ["whole 64", *["crop 16"] * 3]
    assert [view.name for view in Views(0, 3, 64).of(pair)] == ["crop 64"]


def test_a_better_parser_needs_no_new_calls(
    stub: Stub, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.reply = lambda _: said("The winner is A.")
    pairs = find_pairs(folders[0], [folders[1]])
    run(pairs, endpoint(stub), tmp_path)
    assert summarize(tmp_path)["rows"][0]["valid"] == 0
    monkeypatch.setattr("pixdec.evaluate.judge.rounds.verdict_of", lambda text: text.rstrip(".")[-1])
    assert summarize(tmp_path)["rows"][0]["valid"] == 8
    run(pairs, endpoint(stub), tmp_path)
    assert len(stub.calls) == 8


def test_another_file_is_refused(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "judge.jsonl").write_text(json.dumps({"key": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        run(find_pairs(folders[0], [folders[1]]), FakeJudge(), tmp_path)
    with pytest.raises(ValueError, match="no rounds"):
        summarize(folders[0])
