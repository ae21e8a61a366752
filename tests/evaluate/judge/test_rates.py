"""What rounds add up to, against figures worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixdec.evaluate.judge.rates import summarize, table
from pixdec.evaluate.judge.rounds import Round, append_round

ROUND = Round("k", "m", "s", "0", "ours", "theirs", "whole 1024", 0, True, ("a", "b"))


def write(path: Path, votes: dict[str, str], **more: Any) -> None:
    """`votes`: pair → what was answered with ours first, and then with ours second; "-" is no verdict."""
    for pair, answers in votes.items():
        for answer, ours_first in zip(answers, (True, False), strict=False):
            round = replace(ROUND, pair=pair, ours_first=ours_first, answer=f"VERDICT: {answer}", **more)
            append_round(path, round)


def test_rates_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "judge.jsonl", {"0": "AB", "1": "AA", "2": "BA", "3": "A-"})
    row = summarize(tmp_path)["rows"][0]
    assert (row["images"], row["valid"], row["failed"]) == (4, 7, 1)
    assert row["win_rate"] == pytest.approx(4 / 7)  # AB wins twice, AA once, BA never, A- once
    assert (row["shown_twice"], row["consistent"], row["consistency"]) == (3, 2, pytest.approx(2 / 3))
    assert row["consistent_win_rate"] == 0.5
    # ours first: won 3 of 4; ours second: won 1 of 3
    assert row["swap_delta"] == pytest.approx(3 / 4 - 1 / 3)
    assert row["first_rate"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert row["low"] <= row["win_rate"] <= row["high"]


def test_the_interval_is_over_images_not_rounds(tmp_path: Path) -> None:
    votes = {str(index): "AB" if index % 2 else "BA" for index in range(20)}
    write(tmp_path / "judge.jsonl", votes)
    once = summarize(tmp_path)["rows"][0]
    for number in (1, 2, 3):  # as if each image had been seen four times: that is no new image
        write(tmp_path / "judge.jsonl", votes, number=number)
    again = summarize(tmp_path)["rows"][0]
    assert (once["valid"], again["valid"]) == (40, 160)
    assert (once["low"], once["high"]) == (again["low"], again["high"])
    assert once["low"] == pytest.approx(0.5 - 1.96 * 0.5 / 20**0.5, abs=0.05)
    assert summarize(tmp_path, seed=1)["rows"][0]["high"] == pytest.approx(again["high"], abs=0.06)


def test_agreement_of_judges(tmp_path: Path) -> None:
    file = tmp_path / "judge.jsonl"
    write(file, {"0": "AB", "1": "AB", "2": "AB", "3": "BA", "4": "AA"})  # 4 has no majority
    write(file, {"0": "A", "1": "A", "2": "B", "3": "B", "4": "A", "9": "A"}, judge="human:anna", view="crop 640")
    found = summarize(tmp_path)["agreement"]
    assert [(each["judges"], each["images"], each["share"]) for each in found] == [(["m", "human:anna"], 4, 0.75)]
    prevalence = (3 + 2) / 8
    chance = 2 * prevalence * (1 - prevalence)
    assert found[0]["ac1"] == pytest.approx((0.75 - chance) / (1 - chance))


def test_nearly_unanimous_judges_agree_by_ac1(tmp_path: Path) -> None:
    file = tmp_path / "judge.jsonl"
    write(file, {str(index): "AB" for index in range(20)})
    write(file, {str(index): "BA" if index == 0 else "AB" for index in range(20)}, judge="n")
    assert summarize(tmp_path)["agreement"][0]["ac1"] > 0.9


def test_of_several_lines_the_last_counts_and_images_are_not_mixed(tmp_path: Path) -> None:
    file = tmp_path / "judge.jsonl"
    write(file, {"0": "-A"})
    write(file, {"0": "B"})
    assert summarize(file)["rows"][0]["win_rate"] == 0
    write(file, {"0": "A"}, digests=("a", "new"))  # the second round is of an image that is no more
    row = summarize(file)["rows"][0]
    assert (row["valid"], row["win_rate"]) == (1, 1)


def test_a_judge_without_any_verdict(tmp_path: Path) -> None:
    write(tmp_path / "judge.jsonl", {"0": "--"})
    summary = summarize(tmp_path)
    row = summary["rows"][0]
    assert (row["win_rate"], row["low"], row["consistency"], row["first_rate"]) == (None, None, None, None)
    assert len(summary["failures"]) == 2
    assert "| m | ours, theirs | whole 1024 | 0 | 0 | 2 |" in "\n".join(table(summary))


def test_plain_values_the_same_each_time(tmp_path: Path) -> None:
    write(tmp_path / "judge.jsonl", {"0": "AB", "1": "BA"}, tokens=(10, 2), cost=0.5, model="m-1", time="2026-01-01")
    summary = summarize(tmp_path)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary == summarize(tmp_path)
    assert summary["judges"]["m"] == {
        "calls": 4,
        "tokens": [40, 8],
        "cost": 2.0,
        "models": ["m-1"],
        "first": "2026-01-01",
        "last": "2026-01-01",
    }
