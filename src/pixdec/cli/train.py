"""`pixdec train STAGE RECIPE`: train a prior, a decoder or a student.

A recipe's fields are all options, so they are read when its name is known: `parse` is called with what stands behind
`pixdec train`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pixdec.cli.options import Flag, Output, check_device
from pixdec.cli.report import progress, tell

if TYPE_CHECKING:
    from pixdec.train.recipes import Recipe

STAGES = ("prior", "decoder", "student")


@dataclass(frozen=True)
class Train:
    """Train a decoder of your own: `pixdec train decoder nano --data FOLDER -o RUN`.

    Stages: prior, decoder, student. `pixdec train decoder` lists the recipes of a stage, and `pixdec train decoder nano
    --help` shows every field of one: all can be set. The same command again goes on with a run that was stopped.
    """

    def run(self) -> int:
        raise ValueError(f"train: name a stage ({', '.join(STAGES)}) and a recipe, as in: pixdec train decoder nano")


@dataclass(frozen=True)
class Options:
    """What a run is given besides its recipe."""

    data: str = ""
    """Packed shards (`pixdec data pack`), their index or URL; or, for networks without text, a folder of images."""
    output: Output = ""
    """The folder of the run; one that is there goes on."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Begin with these weights: a name that `pixdec models` lists, a file, or the folder of another run."""
    teacher: str | None = None
    """For a student: what it learns from, named like --from. It also begins there, without --from."""
    encoder: tuple[str, ...] = ("tiny",)
    """What makes latents: "tiny" (the bundled one, FLUX.2 space; "tiny:4" refines them in 4 steps), "taef2:FOLDER", or
    a diffusers VAE or vision encoder by name or folder. Several take turns over the images of a batch."""
    gemma: str | None = None
    """The caption encoder, where it is not the released models' own or lies in a folder."""
    features: str | None = None
    """For a prior with representation.weight: DINOv2 by name or folder, whose features the network foretells."""
    device: str | None = None
    """Such as cpu or cuda; without it the fastest there is. torchrun gives each process its own."""
    licence: str | None = None
    """Written into the weights; without it that of what the run begins with, Apache-2.0 if it begins with nothing."""
    plan: Flag = False
    """Print parameters, memory by part, tokens, FLOPs and time on the hardware below, and stop."""
    hardware: str = "h100"
    """For --plan."""
    ranks: int = 8
    """For --plan: processes, one GPU each."""
    json: Flag = False
    """Print one JSON object for each step."""


@dataclass(frozen=True)
class TrainRun:
    """A stage with its recipe and options."""

    options: Options
    recipe: Recipe

    def run(self) -> int:
        """Trains; the exit code."""
        if self.options.plan:
            return self._plan()
        for option, given in (("--data", self.options.data), ("--output", self.options.output)):
            if not given:
                raise ValueError(f"{option} is missing: pixdec train STAGE RECIPE --data FOLDER -o RUN")
        check_device(self.options.device)
        import json as lines
        from dataclasses import asdict

        from pixdec.cli.stages import open_run

        run = open_run(self.recipe, self.options)
        total = self.recipe.loop.steps
        with progress(total, "step") if run.world.is_first else progress(0, "step") as bar:
            try:
                for step in run.go():
                    bar.update(step.step - bar.n)
                    bar.set_postfix_str(f"loss {step.losses['total']:.4g}", refresh=False)
                    if step.skipped:
                        tell(f"step {step.step - 1} was skipped: its gradient was not finite")
                    if self.options.json and run.world.is_first:
                        print(lines.dumps(asdict(step)), flush=True)
            except FloatingPointError as error:
                raise ValueError(f"{self.options.output}: {error}") from error
        if run.world.is_first and sys.stdout.isatty():
            print(run.folder / run.file_name)
        return 0

    def _plan(self) -> int:
        from pixdec.train.plan import hardware, plan

        for line in plan(self.recipe, hardware(self.options.hardware), self.options.ranks).lines():
            print(line)
        return 0


def parse(arguments: Sequence[str]) -> TrainRun:
    """STAGE RECIPE and options -> what to run. Raises ValueError for an unknown stage or recipe; tyro explains the
    rest, and shows help, by SystemExit."""
    from pixdec.train import recipes

    known: dict[str, Any] = dict(zip(STAGES, (recipes.PRIORS, recipes.DECODERS, recipes.STUDENTS), strict=True))
    stage = arguments[0]
    if stage not in known:
        raise ValueError(f"train {stage}: expected a stage, one of {', '.join(STAGES)}")
    named: dict[str, Callable[[], Recipe]] = {name.replace("_", "-"): make for name, make in known[stage].items()}
    chosen = arguments[1].replace("_", "-") if len(arguments) > 1 else ""
    if chosen not in named:
        what = f"train {stage} {arguments[1]}: unknown recipe" if chosen else f"train {stage}: name a recipe"
        raise ValueError(f"{what}; expected one of {', '.join(named)}")
    recipe = named[chosen]()

    def configured(options: Options, recipe: Recipe) -> TrainRun:
        return TrainRun(options, recipe)

    configured.__annotations__ = {
        "options": Annotated[Options, tyro.conf.arg(name="")],
        "recipe": Annotated[type(recipe), tyro.conf.arg(name="")],
    }
    configured.__defaults__ = (recipe,)
    return tyro.cli(
        configured,
        prog=f"pixdec train {stage} {chosen}",
        description=(known[stage][chosen.replace("-", "_")].__doc__ or ""),
        args=list(arguments[2:]),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone),
    )
