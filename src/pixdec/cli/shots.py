"""Every image of a run: its seed, its files, and what of it an earlier run has made.

Settled whole before anything is loaded, so that a run can be ended at any time and started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixdec.cli.prompts import Prompt, slug

HIDDEN = ".pixdec-latents"  # the folder, beside the images, of latents that only wait to be decoded
SEEDS_EACH = 1000  # between the first seeds of two prompts, and so the most images of one

Asked = Mapping[str, object]
"""The settings that determine an image or a latent and are known before it is made."""


@dataclass(frozen=True)
class Shot:
    """One image, of prompt `number` (from 0). `seed` is that of the generator's noise and of the decoder's."""

    number: int
    prompt: Prompt
    seed: int
    name: str
    image: Path

    @property
    def latent(self) -> Path:
        """Where the latent is kept."""
        return self.image.with_name(f"{self.name}.safetensors")

    @property
    def hidden(self) -> Path:
        """Where the latent lies until it is decoded, if it is not kept."""
        return self.image.parent / HIDDEN / f"{self.name}.safetensors"


@dataclass(frozen=True)
class Want:
    """What a run is to leave: images, latents, or both."""

    images: bool
    latents: bool

    def files(self, shot: Shot) -> list[Path]:
        """Those that it leaves of a shot."""
        return [path for wanted, path in ((self.images, shot.image), (self.latents, shot.latent)) if wanted]


@dataclass(frozen=True)
class Todo:
    """What is missing of a shot. `source`: an earlier run's latent to decode; None: it has to be made."""

    shot: Shot
    source: Path | None
    image: bool


def plan_shots(
    prompts: Sequence[Prompt], output: str, *, seed: int, each: int, suffix: str, writable: Iterable[str], single: bool
) -> list[Shot]:
    """`each` images of every prompt.

    Image k of prompt i has the seed `seed` + 1000·i + k, or that of its line + k. It is NAME of its line, or number
    and beginning of the prompt; the second image of a prompt is NAME-2, and so on. `single`: `output` may be a file
    with a suffix of `writable`; otherwise it is a folder, and `suffix` that of the images.

    Raises:
        ValueError: `output` has another suffix, or names a file where a folder is needed; two shots with one name.
    """
    folder, stem, suffix = _place(output, suffix, list(writable), single=single)
    shots: list[Shot] = []
    for number, prompt in enumerate(prompts):
        first = seed + SEEDS_EACH * number if prompt.seed is None else prompt.seed
        base = stem or prompt.name or f"{number:05d}-{slug(prompt.text)}".rstrip("-")
        for index in range(each):
            name = base if index == 0 else f"{base}-{index + 1}"
            shots.append(Shot(number, prompt, first + index, name, folder / f"{name}{suffix}"))
    owners: dict[str, Shot] = {}
    for shot in shots:  # "fox" with two images, and a prompt of the name "fox-2"
        earlier = owners.setdefault(shot.name.casefold(), shot)
        if earlier is not shot:
            raise ValueError(
                f"{shot.prompt.where}: its image {shot.name!r} would take the place of one of {earlier.prompt.where}; "
                "choose another name"
            )
    return shots


def unfinished(
    shots: Sequence[Shot], want: Want, image_asked: Callable[[Shot], Asked], latent_asked: Callable[[Shot], Asked]
) -> list[Todo]:
    """What is left to do: without the shots whose files are there, made with the same settings."""
    todo: list[Todo] = []
    for shot in shots:
        kept = _fits(shot.latent, latent_asked(shot))
        image = want.images and difference(shot.image, image_asked(shot)) != ""
        latent = want.latents and not kept
        if image or latent:
            waiting = not latent and not kept and _fits(shot.hidden, latent_asked(shot))
            source = shot.latent if kept else shot.hidden if waiting else None
            todo.append(Todo(shot, source, image))
    return todo


def check_earlier(
    shots: Sequence[Shot], want: Want, image_asked: Callable[[Shot], Asked], latent_asked: Callable[[Shot], Asked]
) -> None:
    """Refuse to overwrite what was made with other settings, or by something else.

    Raises:
        ValueError: names the first such file, what differs, and how many more there are.
    """
    found: list[str] = []
    for shot in shots:
        if want.images and (reason := difference(shot.image, image_asked(shot))):
            found.append(f"{shot.image}: {reason}")
        elif want.latents and (reason := difference(shot.latent, latent_asked(shot))):
            found.append(f"{shot.latent}: {reason}")
    if found:
        more = f" ({len(found) - 1} more such files)" if len(found) > 1 else ""
        raise ValueError(f"{found[0]}{more}; choose another output, or make them anew with --again")


def difference(path: Path, asked: Asked) -> str | None:
    """What keeps an image or a latent from being the one asked for; "" if it is the one, None if there is no file."""
    if not path.exists():
        return None
    from pixdec.io.images import read_settings
    from pixdec.latents import latent_settings

    try:
        made = latent_settings(path) if path.suffix == ".safetensors" else read_settings(path)
    except ValueError:
        return "is there, and cannot be read"
    if made.get("verb") != "generate":
        return "is there, and was not made by `pixdec generate`"
    for key, value in asked.items():  # what was not recorded was not set
        if (other := made.get(key)) != value:
            return f"was made with {key} {_short(other)}, not {_short(value)}"
    return ""


def _fits(path: Path, asked: Asked) -> bool:
    return difference(path, asked) == ""


def _place(output: str, suffix: str, writable: list[str], *, single: bool) -> tuple[Path, str | None, str]:
    """(folder, the one image's name if `output` tells it, suffix)."""
    path = Path(output)
    own = path.suffix.lower()
    if output.endswith(("/", os.sep)) or path.is_dir():
        return path, None, suffix
    if path.is_file() and not (single and own in writable):
        raise ValueError(f"{output}: it is a file, expected a folder")
    if single and own:
        if own not in writable:
            raise ValueError(f"{output}: expected a suffix of {', '.join(writable)}; if it is a folder, end it with /")
        return path.parent, path.stem, path.suffix
    if own in writable:
        raise ValueError(f"{output}: it names one file, expected a folder for a file of prompts")
    return path, None, suffix


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
