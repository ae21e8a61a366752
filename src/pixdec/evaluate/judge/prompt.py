"""What a judge is asked, and the verdict in its answer."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

PROMPT = resources.files("pixdec.evaluate.judge").joinpath("prompt.txt").read_text(encoding="utf-8")
AS_JSON = "\nInstead of these lines, answer with a JSON object: verdict (A or B) and reason."
RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"verdict": {"type": "string", "enum": ["A", "B"]}, "reason": {"type": "string"}},
            "required": ["verdict", "reason"],
            "additionalProperties": False,
        },
    },
}
# "VERDICT: A" in any of its usual dresses: bold, quoted, a JSON field. A small letter counts only where nothing but
# punctuation follows ("verdict: a better image" is none), and "A or B" is no verdict.
_DRESS = r"[\s*_`\"']*"
_VERDICT = re.compile(
    rf"\b(?i:verdict){_DRESS}:{_DRESS}(?:([AB])(?![\w/|])(?!{_DRESS}(?:or|and|/|\|){_DRESS}[AB]\b)"
    rf"|([ab])(?={_DRESS}(?:[-–—.,;:}}]|$)))",
    re.MULTILINE,
)


def read_prompt(path: str | Path) -> str:
    """The text of a prompt file, such as that of a published judge.

    Raises:
        ValueError: it cannot be read, or is empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a text file with a prompt ({getattr(error, 'strerror', error)})") from error
    if not text.strip():
        raise ValueError(f"{path}: the prompt is empty")
    return text


def verdict_of(answer: str) -> Literal["A", "B"] | None:
    """The first valid verdict anywhere in an answer, what a model thinks aloud before it left out; None: there is
    none."""
    said = answer.rpartition("</think>")[2].partition("<think>")[0]
    found = _VERDICT.search(said)
    return None if found is None else "A" if (found[1] or found[2]).upper() == "A" else "B"
