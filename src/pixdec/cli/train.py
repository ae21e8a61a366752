"""`pixdec train STAGE RECIPE`: train a prior, a decoder or a student.

A recipe's fields are all options, so they are read when its name is known: `parse` is called with what stands behind
`pixdec train`.
"""

from __future__ import annotations

import json as lines
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pixdec.cli.options import Flag, Json, Output, check_device
from pixdec.cli.report import progress, tell
from pixdec.io.files import first_line_of

if TYPE_CHECKING:
    from pixdec.train.recipes import AnyRecipe
    from pixdec.train.runs import Run, RunOptions

STAGES = ("prior", "decoder", "student", "l2p")


@dataclass(frozen=True)
class Train:
    """Train a decoder of your own: `pixdec train decoder tiny --data FOLDER -o RUN`.

    Stages: prior, decoder, student, and l2p (a latent generator turned into one of pixels).

    `pixdec train decoder` lists the recipes of a stage, and `pixdec train decoder tiny
    --help` shows every field of one: all can be set, here or in a file (`pixdec train decoder mine.toml`). The same
    command again goes on with a run that was stopped.
    """

    def run(self) -> int:
        raise ValueError(f"train: name a stage ({', '.join(STAGES)}) and a recipe, as in: pixdec train decoder tiny")


@dataclass(frozen=True)
class Options:
    """What to do with a recipe."""

    data: str = ""
    """Packed shards (`pixdec data pack`), their index or URL; or a folder of images."""
    output: Output = ""
    """The folder of the run; one that is there goes on."""
    dry_run: Flag = False
    """Print parameters and memory by part and stop; with --data, take a step too, and print its time and memory."""
    json: Json = False


@dataclass(frozen=True)
class TrainRun:
    """A stage with its recipe and options."""

    options: Options
    given: RunOptions
    recipe: AnyRecipe

    def run(self) -> int:
        """Trains; the exit code."""
        options = self.options
        if options.dry_run:
            return self._dry_run()
        for option, given in (("--data", options.data), ("--output", options.output)):
            if not given:
                raise ValueError(f"{option} is missing: pixdec train STAGE RECIPE --data FOLDER -o RUN")
        run = self._build()
        with progress(self.recipe.loop.steps if run.world.is_first else 0, "step") as bar:
            try:
                for step in run.go():
                    bar.update(step.step - bar.n)
                    bar.set_postfix_str(f"loss {step.losses['total']:.4g}", refresh=False)
                    if step.skipped:
                        tell(f"step {step.step - 1} was skipped: its gradient was not finite")
                    if options.json and run.world.is_first:
                        print(lines.dumps(asdict(step)), flush=True)
            except FloatingPointError as error:
                raise ValueError(f"{options.output}: {error}") from error
            except (RuntimeError, MemoryError) as error:
                raise _no_memory(error) from error
        if run.world.is_first and sys.stdout.isatty():
            print(run.folder / run.file_name)
        return 0

    def _build(self) -> Run:
        from pixdec.train.build import build

        check_device(self.given.device)
        return build(self.recipe, self.options.data, self.options.output, self.given)

    def _dry_run(self) -> int:
        from pixdec.train.dry_run import counted, measured

        print(*counted(self.recipe, self.given.start), sep="\n")
        if self.options.data:
            run = self._build()
            try:
                for line in measured(run):
                    if run.world.is_first:
                        print(line)
            except (RuntimeError, MemoryError) as error:
                raise _no_memory(error) from error
        return 0


def _no_memory(error: Exception) -> Exception:
    """What to do where memory is not enough; any other error as it is."""
    from pixdec.devices import is_out_of_memory

    if not is_out_of_memory(error):
        return error
    return ValueError(
        f"out of memory ({first_line_of(error)}): more passes for each step (--loop.parts), --machine.recompute, "
        "smaller images (--data.base) or more processes take less; --dry-run counts what stays"
    )


def parse(arguments: Sequence[str]) -> TrainRun:
    """STAGE RECIPE and options -> what to run. Raises ValueError for an unknown stage or recipe; tyro explains the
    rest, and shows help, by SystemExit."""
    stage, chosen, *rest = [*arguments, ""] if len(arguments) < 2 else arguments
    if stage not in STAGES:
        raise ValueError(f"train {stage}: expected a stage, one of {', '.join(STAGES)}")
    from pixdec.train.recipe_files import choices, open_recipe
    from pixdec.train.recipes import RECIPES
    from pixdec.train.runs import RunOptions

    if chosen in ("-h", "--help"):
        print(f"pixdec train {stage} RECIPE --data FOLDER -o RUN; RECIPE is {choices(stage)}")
        print(f"pixdec train {stage} RECIPE --help shows the fields of one.")
        raise SystemExit(0)
    recipe = open_recipe(stage, chosen)

    def configured(options: Options, given: RunOptions, recipe: AnyRecipe) -> TrainRun:
        return TrainRun(options, given, recipe)

    configured.__annotations__ = {
        "options": Annotated[Options, tyro.conf.arg(name="")],
        "given": Annotated[RunOptions, tyro.conf.arg(name="")],
        "recipe": Annotated[type(recipe), tyro.conf.arg(name="")],
    }
    configured.__defaults__ = (recipe,)
    make = RECIPES[stage].get(chosen.replace("-", "_"))
    return tyro.cli(
        configured,
        prog=f"pixdec train {stage} {chosen}",
        description=(make.__doc__ if make is not None else None) or "",
        args=rest,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone),
    )
