"""What a run needs, before it begins: parameters and memory by part, counted; one step, measured on this device.

pixdec train decoder v1-5 --dry-run                          # counted alone
pixdec train decoder v1-5 --dry-run --data shards --from …   # and a step taken, and thrown away
"""

import resource
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pixdec.models.pid import PiD
from pixdec.train.build import Tools, conditions_of, new_stage
from pixdec.train.build_pixels import model_on_meta
from pixdec.train.loop import train
from pixdec.train.low_rank import add_lora
from pixdec.train.recipes import AnyRecipe, PixelRecipe, PriorRecipe, Recipe, StudentRecipe
from pixdec.train.representation import Representation
from pixdec.train.runs import Run
from pixdec.train.stages.stage import Conditioner

GIB = 2**30


@dataclass(frozen=True)
class Part:
    """Parameters of one part of one network, those of them that learn, and bytes for the whole run: weights, and of
    what learns gradients, AdamW's two moments and, in the network that is exported, the average."""

    network: str
    part: str
    parameters: int
    learning: int
    bytes: int


def parts_of(recipe: AnyRecipe, start: str | None = None) -> list[Part]:
    """The parts of all networks that a recipe trains or needs, without their weights; encoders are not counted.

    Raises:
        ValueError: settings that do not go together.
    """
    low, found = recipe.machine.precision == "bfloat16", list[Part]()
    averaged = None if isinstance(recipe, PixelRecipe) and not recipe.objective.average else 0
    for number, (name, network) in enumerate(_networks(recipe, start).items()):
        counts, learning = Counter[str](), Counter[str]()
        for key, parameter in network.named_parameters():
            whole, *inside = key.removeprefix("transformer.").split(".")
            part = inside[0] if inside and inside[0].endswith("_blocks") else whole
            counts[part] += parameter.numel()
            learning[part] += parameter.numel() if parameter.requires_grad else 0
        frozen, learns = 2 if low and name in ("teacher", "pixels") else 4, 20 if number == averaged else 16
        for part, count in counts.items():
            size = frozen * (count - learning[part]) + learns * learning[part]
            found.append(Part(name, part, count, learning[part], size))
    return found


def _networks(recipe: AnyRecipe, start: str | None) -> dict[str, nn.Module]:
    if isinstance(recipe, PixelRecipe):
        return {"pixels": model_on_meta(recipe, start)}
    with torch.device("meta"):
        network = PiD(recipe.network)
        teacher = PiD(recipe.network) if isinstance(recipe, StudentRecipe) else None
        stage = new_stage(recipe, network, _tools(recipe, network), teacher)
    if recipe.lora.rank:
        add_lora(network, recipe.lora)
    return {**stage.networks, **({} if teacher is None else {"teacher": teacher})}


def _tools(recipe: Recipe, network: PiD) -> Tools:
    """Stand-ins."""
    settings, backbone = conditions_of(recipe), recipe.network.backbone
    representation = None

    def embed(captions: Sequence[str]) -> Tensor:
        return torch.empty(len(captions), backbone.text_length, backbone.text_width or 0)

    if isinstance(recipe, PriorRecipe) and recipe.objective.representation.weight:
        representation = Representation(recipe.objective.representation, network, lambda images: images)
    conditioner = Conditioner(settings, [], embed if recipe.reads_text else None) if settings is not None else None
    return Tools(conditioner, representation=representation)


def counted(recipe: AnyRecipe, start: str | None = None) -> Iterator[str]:
    """The parts as lines of a Markdown table, and their sum; `start` is what a run of l2p begins with."""
    parts = parts_of(recipe, start)
    yield "| network | part | parameters | learning | GiB |"
    yield "|---|---|---:|---:|---:|"
    for each in parts:
        yield (f"| {each.network} | {each.part} | {each.parameters:,} | {each.learning:,} | {each.bytes / GIB:.3f} |")
    whole = (sum(p.parameters for p in parts), sum(p.learning for p in parts), sum(p.bytes for p in parts) / GIB)
    yield f"| all | | {whole[0]:,} | {whole[1]:,} | {whole[2]:.3f} |"
    where = " on the CPU" if recipe.machine.offload else ""
    shard = f"{where}; shared out evenly over the processes of torchrun" if recipe.machine.shard else ""
    yield f"weights, gradients, optimizers and average: {whole[2]:.2f} GiB{shard}. What a step keeps comes on top."


def measured(run: Run) -> Iterator[str]:
    """Takes a step of each kind, after one that warms up, on the device of the run, and throws them away; all processes
    call it together."""
    recipe, device, stage = run.recipe, run.world.device, run.stage
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    period = recipe.objective.ratio if isinstance(recipe, StudentRecipe) else 1
    state, losses = run.new_state(), run.losses(0)
    seconds = dict[tuple[str, ...], float]()
    settings = replace(recipe.loop, steps=period + 1)
    for progress in train(state, losses, settings, stage.turn):
        seconds[stage.turn(progress.step - 1)] = progress.seconds
    turns = Counter(stage.turn(step) for step in range(period))
    for turn in turns:
        yield f"a step in which {' and '.join(turn)} learn: {seconds[turn]:.3g} s for {recipe.loop.batch} images"
    mean = sum(seconds[turn] * count for turn, count in turns.items()) / period
    yield f"{recipe.loop.steps} steps: {mean * recipe.loop.steps / 3600:.2f} hours, without sheets and checkpoints"
    yield f"peak memory of this process on {device}: {_peak(device) / GIB:.2f} GiB"


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes on Linux
