"""Prompt files: read and checked whole, before anything is loaded."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pixdec.generation.settings import SEED_LIMIT

_SLUG_LENGTH = 40
_NAME_LENGTH = 100
_NAME_WITHOUT = '/\\:*?"<>|'  # what some file system does not allow in a name


@dataclass(frozen=True)
class Prompt:
    """One prompt, and what its line says of it: None where the command's own option holds.

    `where` names it in messages: "prompts.jsonl:7", or "--prompt".
    """

    text: str
    where: str
    name: str | None = None
    seed: int | None = None
    negative: str | None = None
    height: int | None = None
    width: int | None = None
    topic: str | None = None


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file, in UTF-8.

    NAME.jsonl has one JSON object a line: "prompt", and if wanted "name" (of the file), "seed", "negative", "height",
    "width", and "topic", which changes nothing. Any other file has one prompt a line. Blank lines are left out, and in
    plain text those that begin with "#".

    Raises:
        ValueError: one line with file and line number: no such file, not UTF-8, no prompt in it, bad JSON, a field
            that is unknown or of the wrong kind, two prompts of one name.
    """
    file = Path(path)
    if file.suffix.lower() == ".json":
        raise ValueError(f"{path}: expected plain text, or .jsonl with one JSON object a line")
    if file.is_dir():
        raise ValueError(f"{path}: it is a folder; expected a file of prompts")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file of prompts") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    read = _from_json if file.suffix.lower() == ".jsonl" else _from_text
    numbered = [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1)]
    prompts = [prompt for where, line in numbered if line and (prompt := read(line, where)) is not None]
    if not prompts:
        raise ValueError(f"{path}: there is no prompt in it")
    owners: dict[str, Prompt] = {}
    for prompt in prompts:
        if prompt.name is None:
            continue
        earlier = owners.setdefault(prompt.name.casefold(), prompt)  # "Fox" and "fox" are one file on some systems
        if earlier is not prompt:
            raise ValueError(f"{prompt.where}: the name {prompt.name!r} is taken by {earlier.where}; names are unique")
    return prompts


def prompts_of(prompts: str | Path | Sequence[str | Prompt]) -> list[Prompt]:
    """Texts, or those of a file (`read_prompts`).

    Raises:
        ValueError: none, or an empty one; or as `read_prompts`.
    """
    if isinstance(prompts, str | Path):
        return read_prompts(prompts)
    found = [each if isinstance(each, Prompt) else Prompt(each, f"prompt {n}") for n, each in enumerate(prompts)]
    if not found:
        raise ValueError("prompts=[]: expected one or more")
    if empty := next((each for each in found if not each.text.strip()), None):
        raise ValueError(f"{empty.where} is empty; say what to generate")
    return found


def slug(text: str) -> str:
    """The beginning of a prompt as part of a file name: lower-case ASCII words joined by "-", at most 40 characters.

    Empty where nothing of it is ASCII, not even without its accents.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", plain))
    if len(words) <= _SLUG_LENGTH:
        return words
    whole, _, _ = words[: _SLUG_LENGTH + 1].rpartition("-")
    return whole or words[:_SLUG_LENGTH]


def _from_text(line: str, where: str) -> Prompt | None:
    return None if line.startswith("#") else Prompt(line, where)


def _from_json(line: str, where: str) -> Prompt:
    try:
        value: object = json.loads(line)
    except ValueError as error:  # its own position is of no use: the line is the document
        reason = getattr(error, "msg", str(error))
        raise ValueError(f"{where}: not JSON ({reason})") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not JSON of a prompt (nested too deep)") from error
    if not isinstance(value, dict):
        raise ValueError(f'{where}: expected an object such as {{"prompt": "a red fox"}}')
    fields = cast("dict[str, object]", value)
    for key, given in fields.items():
        if key not in _FIELDS:
            raise ValueError(f"{where}: unknown field {key!r}; expected {', '.join(_FIELDS)}")
        expected, fits = _FIELDS[key]
        if not fits(given):
            raise ValueError(f"{where}: {key} is {json.dumps(given)[:60]}; expected {expected}")
    if "prompt" not in fields:
        raise ValueError(f'{where}: there is no "prompt" in it')
    found = dict(fields)
    return Prompt(cast("str", found.pop("prompt")), where, **found)  # pyright: ignore[reportArgumentType]  # checked


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < SEED_LIMIT


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.strip() == value != ""
        and value[0] != "."
        and len(value) <= _NAME_LENGTH
        and value.isprintable()
        and not any(character in _NAME_WITHOUT for character in value)
    )


_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "prompt": ("a text that is not empty", _is_text),
    "name": (f"a file's name without suffix: at most {_NAME_LENGTH} characters, none of {_NAME_WITHOUT}", _is_name),
    "seed": ("a whole number from 0", _is_seed),
    "negative": ("a text", lambda value: isinstance(value, str)),
    "height": ("a number of pixels", _is_side),
    "width": ("a number of pixels", _is_side),
    "topic": ("a text that is not empty", _is_text),
}
