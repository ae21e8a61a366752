"""Verdicts out of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixdec.evaluate.judge.prompt import AS_JSON, PROMPT, read_prompt, verdict_of

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "reference" / "evaluation" / "judge_prompt.txt"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("VERDICT: A\nSharper.", "A"),
        ("VERDICT: B - B is better in quality / detail", "B"),
        ("Both look fine.\nThe edges of B ring.\nVERDICT: A", "A"),  # in line 3
        ("VERDICT: B\nNo, VERDICT: A", "B"),  # the first one
        ("VERDICT: C\nVERDICT: A", "A"),  # the first valid one
        ("verdict: b", "B"),
        ("Verdict: a - it is sharper", "A"),
        ("**VERDICT: A**", "A"),
        ("**VERDICT:** `B`", "B"),
        ('{"verdict": "B", "reason": "less noise"}', "B"),
        ('{"verdict":"A"', "A"),
        ("VERDICT:B", "B"),
        ("<think>VERDICT: A at first sight</think>\nVERDICT: B", "B"),
        ("VERDICT: A or B\nVERDICT: B", "B"),
        ("VERDICT: C", None),
        ("VERDICT: a better image is hard to choose", None),
        ("VERDICT: A/B", None),
        ("VERDICT: AB", None),
        ("VERDICT: Both", None),
        ("A is better", None),
        ("I cannot judge these images.", None),
        ("<think>VERDICT: A", None),
        ("", None),
    ],
)
def test_the_first_valid_verdict(answer: str, verdict: str | None) -> None:
    assert verdict_of(answer) == verdict


def test_no_prompt_is_mistaken_for_one_verdict_by_what_it_says() -> None:
    assert "VERDICT: A" in PROMPT
    assert "VERDICT: B" in PROMPT
    assert verdict_of(AS_JSON) is None


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published prompt lies beside the repository")
def test_the_published_prompt_is_read_as_it_is_and_is_not_ours() -> None:
    text = read_prompt(PUBLISHED)
    assert text.encode() == PUBLISHED.read_bytes()
    assert not set(text.splitlines()) & set(PROMPT.splitlines()) - {"", "VERDICT: A", "VERDICT: B"}


def test_bad_prompt_files(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.txt", "binary.txt", "missing.txt"):
        with pytest.raises(ValueError, match=name):
            read_prompt(tmp_path / name)
