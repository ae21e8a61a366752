"""Whether a recipe fits into memory, and what to change where it does not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pixdec.train.hardware import Hardware
from pixdec.train.memory import Memory, memory_of
from pixdec.train.parallel import Share
from pixdec.train.passes import Pass, passes
from pixdec.train.recipes import Recipe
from pixdec.train.trial import Trial, trial

CONTEXTS = (2, 4, 8)  # that are tried where memory does not do


def needed(
    recipe: Recipe, on: Hardware, ranks: int, size: tuple[int, int]
) -> tuple[Trial, Sequence[Pass], int, Memory]:
    """The stage, its passes, the images of each, and the memory of a process."""
    machine, loop = recipe.machine, recipe.loop
    if ranks < 1 or ranks % machine.context:
        raise ValueError(f"ranks={ranks} with machine.context={machine.context}: expected a multiple of that")
    if machine.context > 1 and recipe.network.backbone.window is not None:
        raise ValueError(f"machine.context={machine.context}: this network's attention is windowed; take 1")
    images = len(Share(0, ranks // machine.context).places(loop.batch, 0, loop.parts))
    found = passes(recipe, *size, images, sharded=machine.shard and ranks > 1)
    run = trial(recipe)
    return run, found, images, memory_of(run, found, on, ranks, size, images)


@dataclass(frozen=True)
class Advice:
    """A change that makes a recipe fit: what to write on the command line, what it becomes, and what it then needs."""

    words: str
    recipe: Recipe
    ranks: int
    memory: Memory


def advice(recipe: Recipe, on: Hardware, ranks: int, size: tuple[int, int], images: int) -> Advice | None:
    """The first change that makes it fit, those that cost least first; None if none of them does."""
    for changed, processes, words in _changes(recipe, ranks, images):
        try:
            memory = needed(changed, on, processes, size)[3]
        except ValueError:
            continue
        if memory.total <= on.memory:
            return Advice(words, changed, processes, memory)
    return None


def _changes(recipe: Recipe, ranks: int, images: int) -> Iterator[tuple[Recipe, int, str]]:
    """Changes, each on top of those before, that leave what is learnt as it is: recipe, processes, words."""
    changed: dict[str, object] = {}

    def now(**machine: object) -> tuple[Recipe, int, str]:
        nonlocal recipe
        recipe = replace(recipe, machine=replace(recipe.machine, **machine))
        changed.update({f"machine.{name}": value for name, value in machine.items()})
        words = (f"--{name}" if value is True else f"--{name} {value}" for name, value in changed.items())
        return recipe, ranks, " ".join(words)

    def split(groups: int, most: int) -> None:
        """Into so many parts that a pass has `most` images."""
        nonlocal recipe
        parts = recipe.loop.batch // (groups * most)
        recipe = replace(recipe, loop=replace(recipe.loop, parts=parts))
        changed["loop.parts"] = parts

    if not recipe.machine.shard and ranks > 1:
        yield now(shard=True)
    groups = ranks // recipe.machine.context
    for fewer in range(images - 1, 0, -1):
        if images % fewer == 0:
            split(groups, fewer)
            yield now()
    if not recipe.machine.recompute:
        yield now(recompute=True)
    for context in CONTEXTS if recipe.network.backbone.window is None else ():
        groups = ranks // context
        if context > recipe.machine.context and ranks % context == 0 and recipe.loop.batch % groups == 0:
            split(groups, 1)
            yield now(context=context)
    for _ in range(3):
        ranks *= 2
        groups = ranks // recipe.machine.context
        if recipe.loop.batch % groups == 0 and recipe.machine.shard:
            split(groups, 1)
            changed["ranks"] = ranks
            yield now()
