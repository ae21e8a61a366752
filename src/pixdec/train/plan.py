"""What a training run needs, before it is begun: parameters, memory for each process by part, tokens, FLOPs, time.

    pixdec train decoder v1-5 --plan --hardware h100 --ranks 8

Operations and activations are counted by running the stage's own code on tensors without values
(`pixdec.train.passes`); what stays for the whole run follows from the number of parameters.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pixdec.models.cost import PARTS, REST, decode_cost
from pixdec.models.pid import PiD, PiDSettings
from pixdec.train.advice import Advice, advice, needed
from pixdec.train.data.buckets import buckets
from pixdec.train.hardware import GIB, Hardware, hardware
from pixdec.train.memory import COUNTED, Memory, learning_together
from pixdec.train.passes import Pass, passes
from pixdec.train.recipes import Recipe
from pixdec.train.trial import Trial

UPDATE_BYTES = 40  # that AdamW and the average read and write for each parameter


@dataclass(frozen=True)
class Parameters:
    """Of one part of one network."""

    network: str
    part: str
    count: int
    learning: int


@dataclass(frozen=True)
class Size:
    """Images of one size: tokens of the image and of the text, the latent's shape, FLOPs of one call of the network
    for one of them."""

    width: int
    height: int
    tokens: int
    text: int
    latent: tuple[int, int, int] | None
    flops: int


@dataclass(frozen=True)
class Turn:
    """One kind of step, all processes together: how often it comes, FLOPs of the way forward, of the way back and of
    what is computed again on it, and seconds."""

    learning: tuple[str, ...]
    share: float
    forward: float
    backward: float
    recomputed: float
    seconds: float

    @property
    def flops(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True)
class Plan:
    """What a recipe needs on `ranks` processes of the hardware; see `plan`."""

    recipe: Recipe
    hardware: Hardware
    ranks: int
    size: Size
    images: int  # of one pass of one process
    parameters: Sequence[Parameters]
    sizes: Sequence[Size]
    calls: Mapping[tuple[str, str], int]  # FLOPs of one call of the network for one image, by part and kind
    memory: Memory
    otherwise: float  # the pass's own bytes with recomputation the other way
    turns: Sequence[Turn]
    update_seconds: float
    advice: Advice | None  # where it does not fit

    @property
    def fits(self) -> bool:
        """Whether the memory does."""
        return self.memory.total <= self.hardware.memory

    @property
    def flops(self) -> float:
        """Of a mean step, all processes together."""
        return sum(turn.share * turn.flops for turn in self.turns)

    @property
    def seconds(self) -> float:
        """Of a mean step."""
        return sum(turn.share * turn.seconds for turn in self.turns) + self.update_seconds

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return self.seconds * self.recipe.loop.steps / 3600

    @property
    def title(self) -> str:
        """Stage and recipe."""
        return f"{type(self.recipe).__name__.removesuffix('Recipe').lower()} {self.recipe.name}"

    def lines(self) -> list[str]:
        """The plan as Markdown."""
        return [line for section in _sections(self) for line in (*section, "")][:-1]


def plan(recipe: Recipe, on: Hardware, ranks: int, size: tuple[int, int] | None = None) -> Plan:
    """What a recipe needs on `ranks` processes with `on` each.

    `size` (height, width) of the images; without it the largest bucket of the recipe, or its crops if its network
    reads no text, which then may come from a plain folder.

    Raises ValueError for settings that do not go together, for a number of processes that cannot share the batch, and
    for a size that the network does not take.
    """
    machine, loop = recipe.machine, recipe.loop
    height, width = size = size or _usual_size(recipe)
    run, found, images, memory = needed(recipe, on, ranks, size)
    sharded = machine.shard and ranks > 1
    flipped = replace(recipe, machine=replace(machine, recompute=not machine.recompute))
    other = passes(flipped, height, width, images, sharded=sharded, every=False)
    update = learning_together(run, found) * UPDATE_BYTES / (ranks if sharded else 1)
    return Plan(
        recipe=recipe,
        hardware=on,
        ranks=ranks,
        images=images,
        parameters=list(_parameters(run)),
        sizes=_sizes(recipe),
        size=_size(recipe.network, width, height),
        calls=_call(recipe.network, height, width),
        memory=memory,
        otherwise=max(each.peak for each in other),
        turns=_turns(found, on, ranks, loop.parts, compiled=machine.compile),
        update_seconds=update / (on.bandwidth * on.moving),
        advice=None if memory.total <= on.memory else advice(recipe, on, ranks, size, images),
    )


def _usual_size(recipe: Recipe) -> tuple[int, int]:
    if recipe.network.backbone.text_width is None:
        return recipe.data.crops.size, recipe.data.crops.size
    largest = max(buckets(recipe.data.base, recipe.data.multiple), key=lambda bucket: bucket.width * bucket.height)
    return largest.height, largest.width


def _sizes(recipe: Recipe) -> list[Size]:
    """Of the buckets, transposes left out."""
    found = dict[tuple[int, ...], Size]()
    for bucket in buckets(recipe.data.base, recipe.data.multiple):
        sides = tuple(sorted((bucket.width, bucket.height)))
        if sides not in found:
            found[sides] = _size(recipe.network, bucket.width, bucket.height)
    return list(found.values())


def _size(network: PiDSettings, width: int, height: int) -> Size:
    backbone, adapter = network.backbone, network.adapter
    latent = None
    if adapter is not None:
        cell = adapter.latent_factor * adapter.scale
        latent = (adapter.latent_channels, height // cell, width // cell)
    return Size(
        width,
        height,
        (height // backbone.patch) * (width // backbone.patch),
        0 if backbone.text_width is None else backbone.text_length,
        latent,
        sum(_call(network, height, width).values()),
    )


@lru_cache(maxsize=64)
def _call(network: PiDSettings, height: int, width: int) -> Mapping[tuple[str, str], int]:
    total = defaultdict[tuple[str, str], int](int)
    for cost in decode_cost(network, height, width):
        for key, flops in cost.flops_by_part().items():
            total[key] += flops
    return dict(total)


def _parameters(run: Trial) -> Iterator[Parameters]:
    for name, module in run.modules().items():
        total, learning = defaultdict[str, int](int), defaultdict[str, int](int)
        for key, parameter in module.named_parameters():
            part = _part(key) if isinstance(module, PiD) else "all"
            total[part] += parameter.numel()
            learning[part] += parameter.numel() if parameter.requires_grad else 0
        for part in total:
            yield Parameters(name, part, total[part], learning[part])


def _part(key: str) -> str:
    return next((part for part, places in PARTS.items() if key.startswith(places)), REST)


def _turns(found: Sequence[Pass], on: Hardware, ranks: int, parts: int, *, compiled: bool) -> list[Turn]:
    """Passes of the same kind together, weighted by their shares."""
    turns = list[Turn]()
    for learning in dict.fromkeys(each.learning for each in found):
        alike = [each for each in found if each.learning == learning]
        share, scale = sum(each.share for each in alike), ranks * parts
        forward = back = again = seconds = 0.0
        for each in alike:
            weight = each.share / share
            forward += weight * scale * each.forward.flops
            back += weight * scale * (each.backward.flops - each.recomputed)
            again += weight * scale * each.recomputed
            seconds += weight * parts * on.seconds((*each.forward.work, *each.backward.work), compiled=compiled)
        turns.append(Turn(learning, share, forward, back, again, seconds))
    return turns


def _sections(found: Plan) -> Iterator[list[str]]:
    recipe, on, memory = found.recipe, found.hardware, found.memory
    yield [f"# {found.title} on {found.ranks} x {on.name}"]
    verdict = "It fits" if found.fits else "It does not fit"
    yield [
        f"{verdict}: a process needs {memory.total / GIB:.1f} GiB and has {on.memory / GIB:.0f}. "
        f"A step of {recipe.loop.batch} images takes about {_time(found.seconds)}, "
        f"the run of {recipe.loop.steps} steps {_time(found.hours * 3600)}, "
        f"{found.hours * found.ranks:.0f} device hours.",
        *([] if found.fits else ["", _advised(found.advice)]),
    ]
    yield from (_parameter_table(found), _size_table(found), _step_table(found), _memory_table(found), _notes(found))


def _advised(better: Advice | None) -> str:
    if better is None:
        return "No number of parts or processes makes it fit, nor recomputation, nor shared images: lower data.base."
    return f"To make it fit: {better.words}. A process then needs {better.memory.total / GIB:.1f} GiB."


def _parameter_table(found: Plan) -> list[str]:
    rows = [(p.network, p.part, _millions(p.count), _millions(p.learning)) for p in found.parameters]
    total = [sum(values) for values in zip(*((p.count, p.learning) for p in found.parameters), strict=True)]
    return _table(
        "Parameters", ("network", "part", "millions", "learning"), [*rows, ("all", "", *map(_millions, total))]
    )


def _size_table(found: Plan) -> list[str]:
    planned_for = (found.size.width, found.size.height)
    sizes = list(found.sizes)
    if all(sorted(planned_for) != sorted((each.width, each.height)) for each in sizes):
        sizes.append(found.size)
    rows = [
        (
            f"{each.width}x{each.height}" + (" (planned for)" if (each.width, each.height) == planned_for else ""),
            str(each.tokens),
            str(each.text),
            "" if each.latent is None else "x".join(map(str, each.latent)),
            _tera(each.flops),
        )
        for each in sizes
    ]
    return _table("Images", ("size", "image tokens", "text tokens", "latent", "TFLOP a call"), rows)


def _step_table(found: Plan) -> list[str]:
    calls = [
        (f"one call for one image: {part}, {kind}", "", _tera(flops), "", "", "")
        for (part, kind), flops in found.calls.items()
    ]
    turns = [
        (
            f"a step in which {' and '.join(turn.learning)} learn{'s' * (len(turn.learning) == 1)}",
            f"{100 * turn.share:.0f} %",
            _tera(turn.forward),
            _tera(turn.backward),
            _tera(turn.recomputed),
            _time(turn.seconds),
        )
        for turn in found.turns
    ]
    head = ("work", "of the steps", "forward, TFLOP", "back", "computed again", "time")
    return _table("Work, all processes together", head, [*calls, *turns])


def _memory_table(found: Plan) -> list[str]:
    memory = found.memory
    passing = sum(memory.passing.values()) >= sum(memory.updating.values())
    groups = (("", memory.held), ("during a pass: ", memory.passing), ("during the update: ", memory.updating))
    rows = [(lead + name, _gib(value)) for lead, group in groups for name, value in group.items()]
    rows += [
        ("reserve: driver, libraries, exchange, fragmentation", _gib(memory.reserve)),
        (f"**all, at its most during {'a pass' if passing else 'the update'}**", f"**{_gib(memory.total)}**"),
    ]
    return _table(f"Memory of a process, {found.images} images a pass", ("part", "GiB"), rows)


def _notes(found: Plan) -> list[str]:
    machine, on = found.recipe.machine, found.hardware
    without = "without" if machine.recompute else "with"
    now = sum(value for name, value in found.memory.passing.items() if name in COUNTED)
    speed = f"{on.products:.0%} of {on.low / 1e12:.4g} TFLOP/s (bfloat16) or {on.single / 1e12:.4g} (float32)"
    moving = "" if machine.compile else f", other operations at {on.moving:.0%} of {on.bandwidth / 1e12:.4g} TB/s"
    return [
        f"- {without.capitalize()} recomputation a pass has {_gib(found.otherwise)} GiB for {_gib(now)}.",
        f"- Time: products and attention at {speed}{moving} ({on.source}); exchange between processes is taken to go "
        "on meanwhile, reading of data too.",
        "- Not counted: the encoders of latents and of captions, which run before each pass unless shards hold their "
        "results; sheets; checkpoints.",
    ]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in (head, rule, *rows))]


def _millions(count: float) -> str:
    return f"{count / 1e6:,.1f}"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.0f}" if flops >= 1e14 else f"{flops / 1e12:.3g}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


__all__ = ["Hardware", "Memory", "Parameters", "Plan", "Size", "Turn", "hardware", "plan"]
