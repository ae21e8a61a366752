"""Latents of a generator, at several stops of one run for each prompt, as an evaluation decodes them.

Early stops carry noise and are for decoders that take it; the end of the run is for every method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pixdec.devices import release_memory
from pixdec.evaluate.benchmarks import read_items
from pixdec.evaluate.methods import Lineup, Sample
from pixdec.evaluate.photographs import Source
from pixdec.evaluate.results import Broken
from pixdec.generation.generate import Generation
from pixdec.generation.items import Item
from pixdec.generation.pipeline import pipeline_errors
from pixdec.generation.prompts import Prompt, read_prompts
from pixdec.generation.records import is_made, record_of
from pixdec.generation.settings import GenerationSettings
from pixdec.io.files import reason_of
from pixdec.io.quiet import quiet
from pixdec.latents import Latent, LatentSpace

VERB = "eval"
FEW = 12  # runs of fewer steps are of distilled models, which end clean


def prompts_in(path: str | Path) -> list[Prompt]:
    """The prompts of a file (`generation.prompts.read_prompts`), or of DPG-Bench's folder: a text file for each prompt,
    which is named after it.

    Raises:
        ValueError: there is no such file, or no prompt in it.
    """
    if not Path(path).is_dir():
        return read_prompts(path)
    return [Prompt(item.prompt, f"{path}/{item.name}.txt", name=item.name) for item in read_items("dpg", path)]


def stops_of(text: str, space: LatentSpace, steps: int | None) -> list[int]:
    """The stops that are named, such as "24,26,28"; of "auto" the space's published one and the end.

    Raises:
        ValueError: a stop that is none of the run's steps, or a run whose steps are not known.
    """
    if steps is None:
        raise ValueError("generator_steps=None: this pipeline does not tell its steps; say how many")
    if text == "auto":
        early = [round(steps * space.stop[0] / space.stop[1])] if space.stop is not None and steps >= FEW else []
        return sorted({*early, steps})
    try:
        stops = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise ValueError(f"stops={text!r}: expected steps separated by commas, such as 24,26,28") from None
    if not 1 <= stops[0] <= stops[-1] <= steps:
        raise ValueError(f"stops={text!r}: expected steps from 1 to {steps}")
    return stops


class GeneratedLatents:
    """The latents of prompts at stops, which are made when it is iterated over and kept below OUT/latents.

    Attributes:
        space: the latents'.
        stops: see `stops_of`.
    """

    def __init__(self, prompts: Sequence[Prompt], settings: GenerationSettings, stops: str, out: Path):
        """Checks everything that can be before weights are loaded.

        Raises:
            ValueError: no such pipeline, arguments that it does not take, stops that it does not have.
        """
        from pixdec.integrations.diffusers.spaces import space_of

        (out / "latents").mkdir(parents=True, exist_ok=True)
        run = Generation(list(prompts), f"{out / 'latents'}/", settings)
        self.run, self.items, self.folder = run, run.items, out / "latents"
        self.space = space_of(run.blueprint.hollow, settings.space)
        self.steps = run.blueprint.steps(settings.steps)
        self.stops = stops_of(stops, self.space, self.steps)
        self._loaded: Any = None

    def sources(self, lineup: Lineup) -> Iterator[Source | Broken]:
        """A source for each prompt and stop, whose latents are there; what fails of the generator is broken.

        Decoders of images get what the pipeline's own VAE makes of its estimate at the stop.
        """
        kinds = ["", *(["rgb"] if any("first" in method.settings for method in lineup.methods) else [])]
        for item in self.items:
            try:
                with quiet("diffusers", "transformers"):
                    for kind in kinds:
                        self._make(item, kind)
            except (ValueError, OSError, MemoryError) as error:
                yield Broken(item.name, None, reason_of(error))
                continue
            for stop in self.stops:
                yield self._source(item, stop, kinds)
        self._loaded = None
        release_memory()

    def _place(self, item: Item, stop: int, kind: str) -> Path:
        return self.folder / f"{item.name}@{stop}{kind and f'-{kind}'}.safetensors"

    def _asked(self, item: Item, stop: int) -> dict[str, object]:
        arguments = self.run.arguments(item.prompt)
        return {"pipeline": self.run.blueprint.name, "seed": item.seed, "stop_after": stop, **arguments}

    def _make(self, item: Item, kind: str) -> None:
        """Run the generator once for all stops, unless all latents are there."""
        from pixdec.integrations.diffusers import capture

        if all(is_made(self._place(item, stop, kind), VERB, self._asked(item, stop)) for stop in self.stops):
            return
        with pipeline_errors(self.run.device):
            self._loaded = self._loaded or self.run.load_pipeline()
            latents = capture(
                self._loaded,
                stop_after=list(self.stops),
                space=kind or self.run.settings.space,
                generator=torch.Generator().manual_seed(item.seed),
                **self.run.arguments(item.prompt),
            )
        for stop, latent in zip(self.stops, latents, strict=True):
            latent.save(self._place(item, stop, kind), record_of(VERB, self._asked(item, stop), {}))

    def _source(self, item: Item, stop: int, kinds: Sequence[str]) -> Source:
        files = [self._place(item, stop, kind) for kind in kinds]

        def identify() -> tuple[dict[str, object], bool]:
            digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
            return {"latents": digests, "prompt": item.prompt.text}, False

        def load() -> Sample:
            latent, *images = (Latent.load(file, statistics=False) for file in files)
            return Sample(latent, image=images[0] if images else None, prompt=item.prompt.text)

        return Source(item.name, frozenset(), identify, load, stop, clean=stop == self.steps)
