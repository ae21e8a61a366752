"""generation.prompts: prompt files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pixdec.generation.prompts import Prompt, read_prompts, slug


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeff# heading\r\na fox\r\n\r\n  ein Füchslein \n#1 is no prompt\n".encode())
    assert read_prompts(path) == [Prompt("a fox", f"{path}:2"), Prompt("ein Füchslein", f"{path}:4")]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "#1\u2028x"}\n\n{"prompt": "y", "name": "a b", "seed": 0, "negative": "", "height": 16}'
    )
    assert read_prompts(path) == [
        Prompt("#1\u2028x", f"{path}:1"),
        Prompt("y", f"{path}:3", name="a b", seed=0, negative="", height=16),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a red fox", "not JSON"),
        ('{"prompt": "x"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"x"', "expected an object such as"),
        ("{}", 'there is no "prompt"'),
        ('{"prompt": ""}', 'prompt is "": expected a text that is not empty'),
        ('{"prompt": ["x"]}', 'prompt is ["x"]'),
        ('{"prompt": "x", "sede": 1}', "unknown field 'sede'; expected prompt, name, seed, negative, height, width"),
        ('{"prompt": "x", "seed": true}', "seed is true; expected a whole number"),
        ('{"prompt": "x", "seed": 1.0}', "seed is 1.0"),
        ('{"prompt": "x", "seed": -1}', "seed is -1"),
        ('{"prompt": "x", "width": 0}', "width is 0"),
        ('{"prompt": "x", "name": null}', "name is null"),
        ('{"prompt": "x", "name": "../x"}', 'name is "../x"'),
        ('{"prompt": "x", "name": ".x"}', 'name is ".x"'),
        ('{"prompt": "x", "name": "a\\nb"}', "name is"),
    ],
)
def test_bad_lines_name_file_and_number(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ")) as caught:
        read_prompts(path)
    assert says.replace('"": e', '""; e') in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"\n# nothing\n", "there is no prompt in it"),
        ("p.txt", b"caf\xe9", "not UTF-8"),
        ("p.json", b"[]", "expected plain text, or .jsonl"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(says)):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red fox, in the snow!", "a-red-fox-in-the-snow"),
        ("Ein Füchslein", "ein-fuchslein"),
        ("狐", ""),
        ("one two three four five six seven eight nine ten", "one-two-three-four-five-six-seven-eight"),
        ("x" * 60, "x" * 40),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected
