"""What one process of a training run holds in memory, by part.

What stays for the whole run follows from numbers of parameters and from how `pixdec.train.parallel` and
`pixdec.train.state` lay them out; what a pass needs was counted (`pixdec.train.passes`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pixdec.models.pid import PiD
from pixdec.train.hardware import Hardware
from pixdec.train.parallel import MANY
from pixdec.train.passes import Pass
from pixdec.train.recipes import PriorRecipe, Recipe
from pixdec.train.trial import Trial, random_conditions

KEPT, WORKING = COUNTED = "activations that wait for the way back", "most at work at once"


@dataclass(frozen=True)
class Memory:
    """Bytes of one process by part. `held` stays, `passing` is there during a pass, `updating` during the optimizer's
    step after it; `reserve` as `Hardware` has it."""

    held: Mapping[str, float]
    passing: Mapping[str, float]
    updating: Mapping[str, float]
    reserve: float

    @property
    def counted(self) -> float:
        """What the program itself has at its most, without the reserve."""
        return sum(self.held.values()) + max(sum(self.passing.values()), sum(self.updating.values()))

    @property
    def total(self) -> float:
        """The most that is needed."""
        return self.counted + self.reserve


def memory_of(
    run: Trial, found: Sequence[Pass], on: Hardware, ranks: int, size: tuple[int, int], images: int
) -> Memory:
    """Memory of one of `ranks` processes, for passes `found` over `images` images of `size` (height, width)."""
    recipe, machine = run.recipe, run.recipe.machine
    sharded = machine.shard and ranks > 1
    split, low = ranks if sharded else 1, 2 if machine.precision == "bfloat16" else 4
    networks = run.stage.networks
    learning = {name: learning_in([network]) for name, network in networks.items()}
    most = learning_together(run, found)
    held = {
        "weights, float32": 4 * sum(count(network) for network in networks.values()) / split,
        "gradients, float32": 4 * most / split,
        "AdamW's moments, float32": 8 * sum(learning.values()) / split,
        "averaged weights, float32": 4 * learning[next(iter(networks))] / split,
        "images, latents, text": _batch(recipe, *size, images),
    }
    if run.frozen:
        counts = [count(network) for network in run.frozen]
        held["frozen networks"] = sum(low * n / (split if n >= MANY else 1) for n in counts)
    if sharded and recipe.loop.parts > 1:
        held["gradients of all parts, not yet exchanged, float32"] = 4 * most
    kept = max(each.forward.kept for each in found)
    passing = {KEPT: kept, WORKING: max(e.peak for e in found) - kept}
    if sharded:
        units = [_units(network) for network in run.modules().values() if isinstance(network, PiD)]
        gathered = max(low * (count(unit[0]) + 2 * max(map(count, unit[1:]))) for unit in units)
        exchanged = max((low + 4) * max(learning_in([part]) for part in unit) for unit in units)
        passing |= {"gathered weights: two blocks and what is no block": gathered, "one unit's gradients": exchanged}
    updating = dict[str, float]()
    if not on.is_cpu:  # on a CPU, AdamW goes from one tensor to the next
        updating["AdamW's intermediate values, float32"] = 4 * most / split
    if ranks > 1 and not sharded:
        updating["gradients in one piece, exchanged, float32"] = 4 * most
    return Memory(held, passing, updating, on.reserve)


def count(network: nn.Module) -> int:
    """Parameters, learning or not."""
    return sum(p.numel() for p in network.parameters())


def _units(network: PiD) -> list[nn.ParameterList]:
    """What is gathered as one: what is in no block, then every block."""
    blocks = [*network.backbone.patch_blocks, *network.backbone.pixel_blocks]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    return [nn.ParameterList(part) for part in (rest, *(block.parameters() for block in blocks))]


def _batch(recipe: Recipe, height: int, width: int, images: int) -> int:
    pixels = 4 * images * 3 * height * width
    if isinstance(recipe, PriorRecipe):
        backbone = recipe.network.backbone
        return pixels + images * backbone.text_length * (backbone.text_width or 0) * 2
    given = random_conditions(recipe.network, height, width, images)
    return pixels + sum(x.nbytes for x in (given.latent, given.low, given.text) if x is not None)


def learning_in(networks: Iterable[nn.Module]) -> int:
    """Parameters that learn."""
    return sum(p.numel() for network in networks for p in network.parameters() if p.requires_grad)


def learning_together(run: Trial, found: Sequence[Pass]) -> int:
    """The most parameters that learn in one step."""
    return max(learning_in(run.stage.networks[name] for name in each.learning) for each in found)
