"""A run and its folder. The same command begins it and, after any kind of stop, goes on with it.

settings.json    the recipe, and what it began from
metrics.jsonl    one line for each step
tensorboard/     the same as curves, if tensorboard is installed
sheets/          fixed inputs decoded with the averaged weights, every so many steps
step-00000100/   checkpoints, the last few
decoder.safetensors (prior, student)    the averaged weights at the end, which PixelDecoder.from_pretrained opens
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from pixdec.io.files import first_line_of, write_whole
from pixdec.models.pid import PiD
from pixdec.train.checkpoints import State, checkpoints
from pixdec.train.data.stream import StreamLoader
from pixdec.train.draws import Draws
from pixdec.train.log import Log
from pixdec.train.loop import Progress, train
from pixdec.train.low_rank import lora_of
from pixdec.train.parallel import World, precision
from pixdec.train.recipes import AnyRecipe, PixelRecipe, Recipe
from pixdec.train.sample_sheets import Sheets
from pixdec.train.stages.stage import Stage
from pixdec.train.start import differences
from pixdec.weights.load import save_decoder
from pixdec.weights.lora import save_lora
from pixdec.weights.network_settings import settings_to_json

# What may differ between the commands that begin a run and go on with it.
FREE = ("recipe.machine.", "recipe.folder.")


@dataclass(frozen=True)
class RunOptions:
    """What a run is given besides its recipe, its data and its folder."""

    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Begin with these weights: a name that `pixdec models` lists, a file, or the folder of another run; for l2p, what
    `pixdec l2p init` wrote."""
    teacher: str | None = None
    """For a student: what it learns from, named like --from. It also begins there, without --from."""
    encoder: tuple[str, ...] = ("tiny",)
    """What makes latents: "tiny" (the bundled one, FLUX.2 space), "taef2:FOLDER", or a diffusers VAE or vision encoder
    by name or folder. Several take turns over the images of a batch."""
    gemma: str | None = None
    """The caption encoder, where it is not the released models' own or lies in a folder; for l2p, the source's
    pipeline, which embeds prompts."""
    features: str | None = None
    """For a prior with representation.weight: DINOv2 by name or folder, whose features the network foretells."""
    device: str | None = None
    """Such as cpu or cuda; without it the fastest there is. torchrun gives each process its own."""
    licence: str | None = None
    """Written into the weights; without it that of what the run begins with, Apache-2.0 if it begins with nothing."""


NOTHING = RunOptions()


@dataclass(frozen=True)
class Run:
    """A stage, its examples and the folder of its run; `began` says what it starts from and is fed, for the record;
    `base` is the name of the network it begins with, "" for none; `export` writes what learnt, in place of whole
    decoders."""

    recipe: AnyRecipe
    stage: Stage
    source: StreamLoader
    folder: Path
    world: World
    began: Mapping[str, str]
    base: str = ""
    licence: str = "Apache-2.0"
    sheets: Sheets | None = None
    export: Callable[[Path, Mapping[str, torch.Tensor]], None] | None = None

    def go(self) -> Iterator[Progress]:
        """Begins or resumes, and trains to the end; writes the folder. Yields after every step.

        Raises:
            ValueError: the folder holds a run of other settings.
            FloatingPointError: a gradient was not finite.
            OSError: something could not be written; the last checkpoint is whole.
        """
        recipe, first = self.recipe, self.world.is_first
        self.folder.mkdir(parents=True, exist_ok=True)
        self._settle()
        state = self.new_state()
        saved = checkpoints(self.folder)
        if saved:
            state.load(saved[-1])
        with Log(self.folder, state.step, active=first) as log:
            for progress in train(state, self.losses(state.step), recipe.loop, self.stage.turn):
                log.write(progress)
                last = progress.step == recipe.loop.steps
                if last or progress.step % recipe.folder.save_every == 0:
                    state.save_step(self.folder, recipe.folder.keep)
                every = recipe.folder.sheet_every
                if self.sheets is not None and every and (last or progress.step % every == 0):
                    with state.averaged(), precision(recipe.machine, self.world.device):
                        sheet = self.sheets.draw(self.stage.network)
                    if first:
                        log.picture(self.sheets.save(sheet, self.folder / "sheets", progress.step), progress.step)
                yield progress
        weights = state.full_average()
        if first:
            self._export(weights)

    def new_state(self) -> State:
        """The state at the first step."""
        recipe = self.recipe
        average = not isinstance(recipe, PixelRecipe) or recipe.objective.average
        return State(self.stage.networks, recipe.loop, whole=self.export is None, average=average)

    @property
    def file_name(self) -> str:
        """Of what is exported: the name of what is trained."""
        if self.export is not None:
            return "trained.safetensors"
        return "lora.safetensors" if self.recipe.lora.rank else f"{next(iter(self.stage.networks))}.safetensors"

    def _export(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Writes the averaged weights as one safetensors file with all that opening it needs in its metadata."""
        recipe, path, name = self.recipe, self.folder / self.file_name, self.folder.resolve().name
        if self.export is not None:
            self.export(path, weights)
            return
        assert isinstance(recipe, Recipe)
        if recipe.lora.rank:
            save_lora(
                lora_of(weights),
                path,
                alpha=recipe.lora.factor,
                layers=recipe.lora.layers,
                network=recipe.network,
                name=name,
                base=self.base,
                space=recipe.space,
                licence=self.licence,
            )
            return
        with torch.device("meta"):
            network = PiD(recipe.network)
        network.load_state_dict(weights, assign=True)
        save_decoder(
            network,
            path,
            name=name,
            space=recipe.space,
            version=recipe.version,
            licence=self.licence,
            kind="prior" if recipe.network.adapter is None else "student" if recipe.times else "teacher",
            times=recipe.times,
        )

    def losses(self, start: int) -> Callable[[int, int], Mapping[str, torch.Tensor]]:
        """(step, part) -> the stage's losses, from step `start` on, in turn."""
        loop, device = self.recipe.loop, self.world.device
        coming = self.source.batches(start * loop.parts)

        def losses_at(step: int, part: int) -> Mapping[str, torch.Tensor]:
            places = self.world.share.places(loop.batch, part, loop.parts)
            draws = Draws(loop.seed, step, places, loop.batch, device)
            with precision(self.recipe.machine, device):
                return self.stage.losses(step, next(coming).to(device), draws)

        return losses_at

    def _settle(self) -> None:
        """Writes the settings of a new run; compares with those of one that is there."""
        path = self.folder / "settings.json"
        mine = {"recipe": json.loads(settings_to_json(self.recipe)), **self.began, "shards": self.source.index.digest()}
        if path.exists():
            try:
                theirs = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: damaged ({first_line_of(error)}); take another folder") from error
            for where, now, then in differences(mine, theirs):
                if where.startswith(FREE) or (where == "shards" and not then):  # which earlier versions do not say
                    continue
                if where == "shards":
                    raise ValueError(f"{self.folder} holds a run on other images than {self.began['data']} has now")
                raise ValueError(
                    f"{self.folder} holds a run with {where}={then!r}, not {now!r}: "
                    "take another folder, or the settings it began with"
                )
        if self.world.is_first:
            write_whole(path, json.dumps(mine, indent=1) + "\n")
