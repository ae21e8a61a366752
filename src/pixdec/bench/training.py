"""Time and memory of training steps, beside what `pixdec train … --plan` says of them.

python -m pixdec.bench.training --stage decoder --recipe nano --hardware-name cpu-core
torchrun --nproc-per-node 8 -m pixdec.bench.training --recipe v1_5 --hardware-name h100
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pixdec.bench.machine import machine_facts
from pixdec.bench.measure import peak_memory
from pixdec.models.cost import Meter
from pixdec.train.draws import Draws
from pixdec.train.hardware import GIB
from pixdec.train.loop import new_state, train
from pixdec.train.parallel import World, join, precision, prepare
from pixdec.train.plan import Plan, hardware, plan
from pixdec.train.recipes import DECODERS, PRIORS, STUDENTS, Recipe
from pixdec.train.trial import Trial, random_examples, trial

RECIPES = {"prior": PRIORS, "decoder": DECODERS, "student": STUDENTS}


def main(
    stage: Literal["prior", "decoder", "student"] = "decoder",
    recipe: str = "nano",
    hardware_name: str = "cpu-core",
    steps: int = 5,
    batch: int | None = None,
    parts: int | None = None,
    size: tuple[int, int] | None = None,
    recompute: bool | None = None,
    device: str | None = None,
) -> None:
    """Takes `steps` steps of a recipe after one to warm up, on random data and random weights, and prints one line of
    JSON: measured seconds of a step and peak memory, and the plan's.

    `batch`, `parts`, `recompute` and `size` (height, width) take the place of the recipe's. The steps of a student
    should be a multiple of its ratio.
    """
    if recipe not in RECIPES[stage]:
        raise ValueError(f"recipe={recipe!r}: expected one of {', '.join(RECIPES[stage])}")
    chosen = _changed(RECIPES[stage][recipe](), steps + 1, batch, parts, recompute)
    world = join(device, chosen.machine.context)
    ranks = world.share.count * world.context.count
    expected = plan(chosen, hardware(hardware_name), ranks, size)
    before = peak_memory(world.device)  # of libraries, and of planning
    run = trial(chosen, world.device)
    prepare(run.learning(), run.frozen, chosen.machine, world)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, processor = measured(run, world, expected.size.height, expected.size.width)
    peak = peak_memory(world.device)
    if world.is_first:
        figures = {
            "stage": stage,
            "recipe": recipe,
            "size": f"{expected.size.width}x{expected.size.height}",
            "batch": chosen.loop.batch,
            "processes": ranks,
            "seconds_for_each_step": [round(each, 3) for each in sorted(seconds)],
            "processor_seconds_for_each_step": [round(each, 3) for each in sorted(processor)],
            "planned_seconds": round(expected.seconds, 3),
            "planned_for": hardware_name,
            "TFLOP_a_step": round(expected.flops / 1e12, 4),
            "peak_memory_GiB": round(peak / GIB, 3),
            "memory_before_GiB": round(before / GIB, 3),
            **_tensors(chosen, world, expected),
            "planned_memory_GiB": round(expected.memory.counted / GIB, 3),
            **machine_facts(world.device),
            "torch": torch.__version__,
        }
        print(json.dumps(figures))


def _tensors(recipe: Recipe, world: World, expected: Plan) -> dict[str, float]:
    """On a CPU, whose allocator keeps what it was given back and holes between: the bytes of tensors alone, at their
    most during two steps of one process."""
    if world.device.type != "cpu" or world.mesh is not None:
        return {}
    short = replace(recipe, loop=replace(recipe.loop, steps=2))
    with Meter() as meter:
        run = trial(short, world.device)
        prepare(run.learning(), run.frozen, short.machine, world)
        measured(run, world, expected.size.height, expected.size.width)
    return {"peak_tensors_GiB": round(meter.most / GIB, 3)}


def _changed(recipe: Recipe, steps: int, batch: int | None, parts: int | None, recompute: bool | None) -> Recipe:
    loop = replace(recipe.loop, steps=steps, batch=batch or recipe.loop.batch, parts=parts or recipe.loop.parts)
    laid = recipe.machine if recompute is None else replace(recipe.machine, recompute=recompute)
    return replace(recipe, loop=loop, machine=laid)


def measured(run: Trial, world: World, height: int, width: int) -> tuple[list[float], list[float]]:
    """Seconds of the clock and of the processor, all threads, for all steps of the recipe's loop but the first."""
    recipe, device = run.recipe, world.device
    loop = recipe.loop
    images = len(world.share.places(loop.batch, 0, loop.parts))
    examples = random_examples(recipe, height, width, images, device)

    def losses_at(step: int, part: int) -> Mapping[str, Tensor]:
        draws = Draws(loop.seed, step, world.share.places(loop.batch, part, loop.parts), loop.batch, device)
        with precision(recipe.machine, device):
            return run.stage.losses(step, examples, draws)

    seconds, processor, last = list[float](), list[float](), time.process_time()
    for progress in train(new_state(run.stage.networks, loop), losses_at, loop, run.stage.turn):
        now = time.process_time()
        seconds.append(progress.seconds)
        processor.append(now - last)
        last = now
    return seconds[1:], processor[1:]


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
