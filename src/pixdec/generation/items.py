"""Every image of a run: its seed, its files, and what an earlier run has made of it.

Settled whole before anything is loaded, so that a run can be ended at any time and started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pixdec.generation.prompts import Prompt, prompts_of, slug
from pixdec.generation.records import Asked, difference, is_made
from pixdec.generation.settings import SEEDS_EACH, GenerationSettings, PromptSettings
from pixdec.io.files import prepare
from pixdec.io.images import WRITABLE

VERB = "generate"  # what the outputs' settings name as their maker
HIDDEN = ".pixdec-latents"  # the folder, beside the images, of latents that only wait to be decoded


@dataclass(frozen=True)
class Item:
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

    def files(self, item: Item) -> list[Path]:
        """Those that it leaves of an item."""
        return [path for wanted, path in ((self.images, item.image), (self.latents, item.latent)) if wanted]


@dataclass(frozen=True)
class Todo:
    """What is missing of an item. `source`: an earlier run's latent to decode; None: it has to be made."""

    item: Item
    source: Path | None
    image: bool


@dataclass(frozen=True)
class Result:
    """What became of one image.

    Attributes:
        name: of its files, without suffix.
        prompt, seed: what it was made of.
        image, latent: the files that are there now; None for one that was not wanted.
        size: (height, width) of the image; None where only a latent was made.
        settings: what was saved with it.
        seconds: what it took.
        error: why it could not be made; None if it was.
    """

    name: str
    prompt: str
    seed: int
    image: Path | None = None
    latent: Path | None = None
    size: tuple[int, int] | None = None
    shape: tuple[int, ...] = ()
    settings: dict[str, object] = field(default_factory=dict[str, object])
    seconds: float = 0.0
    error: Exception | None = None


def plan_items(prompts: str | Path | Sequence[str | Prompt], output: str, settings: PromptSettings) -> list[Item]:
    """All images of every prompt, of those of a file, or of texts.

    Image k of prompt i has the seed SEED + 1000·i + k, or that of its line + k. It is NAME of its line, or number and
    beginning of the prompt; the second image of a prompt is NAME-2, and so on. `output` is a folder; for a single text
    it may be a file.

    Raises:
        ValueError: `output` has another suffix, or names a file where a folder is needed; two items with one name.
    """
    read = prompts_of(prompts)
    single = not isinstance(prompts, str | Path) and len(read) == 1
    writable = (
        [".safetensors"] if isinstance(settings, GenerationSettings) and settings.latents_only else list(WRITABLE)
    )
    folder, stem, suffix = _place(output, settings.suffix, writable, single=single)
    items: list[Item] = []
    for number, prompt in enumerate(read):
        first = settings.seed + SEEDS_EACH * number if prompt.seed is None else prompt.seed
        base = stem or prompt.name or f"{number:05d}-{slug(prompt.text)}".rstrip("-")
        for index in range(settings.images_per_prompt):
            name = base if index == 0 else f"{base}-{index + 1}"
            items.append(Item(number, prompt, first + index, name, folder / f"{name}{suffix}"))
    owners: dict[str, Item] = {}
    for item in items:  # "fox" with two images, and a prompt of the name "fox-2"
        earlier = owners.setdefault(item.name.casefold(), item)
        if earlier is not item:
            raise ValueError(
                f"{item.prompt.where}: its image {item.name!r} would take the place of one of {earlier.prompt.where}; "
                "choose another name"
            )
    return items


@dataclass(frozen=True)
class Plan:
    """All images of a run of `verb`, what it is to leave, and what each image and latent depends on: what an earlier
    run has made is told by that."""

    items: Sequence[Item]
    want: Want
    image_asked: Callable[[Item], Asked]
    latent_asked: Callable[[Item], Asked]
    verb: str = VERB

    def unfinished(self, *, again: bool) -> list[Todo]:
        """What is left to do: without the items whose files are there, made with the same settings. Those of others are
        replaced if `again` says so.

        Raises:
            ValueError: as `check_earlier`.
            OSError: the files cannot be written.
        """
        if not again:
            self.check_earlier()
        prepare(path for item in self.items for path in self.want.files(item))
        todo, verb = list[Todo](), self.verb
        for item in self.items:
            asked = self.latent_asked(item)
            kept = is_made(item.latent, verb, asked)
            image = self.want.images and not is_made(item.image, verb, self.image_asked(item))
            latent = self.want.latents and not kept
            if image or latent:
                waiting = not latent and not kept and is_made(item.hidden, verb, asked)
                todo.append(Todo(item, item.latent if kept else item.hidden if waiting else None, image))
        return todo

    def check_earlier(self) -> None:
        """Refuse to overwrite what was made with other settings, or by something else.

        Raises:
            ValueError: names the first such file, what differs, and how many more there are.
        """
        found: list[str] = []
        for item in self.items:
            if self.want.images and (reason := difference(item.image, self.verb, self.image_asked(item))):
                found.append(f"{item.image}: {reason}")
            elif self.want.latents and (reason := difference(item.latent, self.verb, self.latent_asked(item))):
                found.append(f"{item.latent}: {reason}")
        if found:
            more = f" ({len(found) - 1} more such files)" if len(found) > 1 else ""
            raise ValueError(f"{found[0]}{more}; choose another output, or make them anew with --again")


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
