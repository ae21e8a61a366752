"""What one pass of training costs a process: a stage's own losses and their way back, run once on tensors without
values (`pixdec.models.cost`), for every kind of step that the stage has.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pixdec.models.cost import META, AcceleratorKernels, Cost, Meter, random_inputs
from pixdec.models.execution import Context, Execution
from pixdec.models.pid import PiD
from pixdec.train.decoder import DecoderStage
from pixdec.train.draws import Draws
from pixdec.train.parallel import World, prepare
from pixdec.train.recipes import Recipe, StudentRecipe
from pixdec.train.stages import Examples
from pixdec.train.student import StudentStage
from pixdec.train.trial import Trial, random_examples, trial

RECOMPUTED = "recomputed"


@dataclass(frozen=True)
class Pass:
    """One pass of one kind of step.

    Attributes:
        learning: the networks that learn in such steps.
        share: of all steps, how many are such.
        forward, backward: what the two ways cost; what is kept after the way forward waits for the way back.
        recomputed: FLOPs among those of the way back that repeat the way forward.
    """

    learning: tuple[str, ...]
    share: float
    forward: Cost
    backward: Cost
    recomputed: int

    @property
    def flops(self) -> int:
        """Of both ways."""
        return self.forward.flops + self.backward.flops

    @property
    def peak(self) -> int:
        """The most bytes alive at once, besides weights, gradients and what the pass is given."""
        return max(self.forward.peak, self.backward.peak)


@lru_cache(maxsize=64)
def passes(
    recipe: Recipe, height: int, width: int, batch: int, *, sharded: bool, every: bool = True
) -> tuple[Pass, ...]:
    """Every kind of pass over `batch` images of height x width on an accelerator, the machine settings of the recipe
    laid out, weights `sharded` or not. Weights, gradients and what the loop gives to a pass are not in its bytes.

    A student's own way down from noise has a random number of steps, each as likely as the others, and its work grows
    evenly with it: the longest and the shortest way take half of the steps each. Without `every`, the shortest takes
    all; memory is the same.

    Raises ValueError for a size that the network does not take.
    """
    random_inputs(recipe.network, height, width)
    own_way = every and isinstance(recipe, StudentRecipe) and recipe.objective.rollout == "self"
    found = list[Pass]()
    for learning, (step, share) in _turns(recipe).items():
        for chance in (0.0, 1 - 1e-9) if own_way else (0.0,):
            tracing = _Tracing(trial(recipe), sharded=sharded)
            one = tracing.run(step, random_examples(recipe, height, width, batch), _Shapes(batch, chance), learning)
            found.append(replace(one, share=share / 2 if own_way else share))
    return tuple(found)


def _turns(recipe: Recipe) -> Mapping[tuple[str, ...], tuple[int, float]]:
    """The kinds of steps: the number of one of each, and their shares."""
    stage = trial(recipe).stage
    period = recipe.objective.ratio if isinstance(recipe, StudentRecipe) else 1
    turns = [stage.turn(step) for step in range(period)]
    return {turn: (turns.index(turn), count / period) for turn, count in Counter(turns).items()}


class _Tracing:
    """Lays a stage out as `pixdec.train.parallel` does, and runs one pass of it."""

    def __init__(self, run: Trial, *, sharded: bool):
        self.run_of, machine = run, run.recipe.machine
        low = torch.bfloat16 if machine.precision == "bfloat16" else None
        # Sharded networks compute with weights in low precision; others cast as they go.
        self.low, weights = (None, low) if sharded else (low, None)
        self.meter, self.back = Meter(), False
        modules = run.modules()
        for network in modules.values():
            for parameter in network.parameters():
                if parameter.requires_grad:  # gradients are counted apart
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
            if isinstance(network, PiD):
                if machine.context > 1:
                    how = Execution(context=Context(machine.context - 1, machine.context, _gathered))
                    network.forward = partial(network.forward, how=how)
                for block in (*network.backbone.patch_blocks, *network.backbone.pixel_blocks):
                    self._follow(block)
            elif weights is not None:
                network.register_forward_pre_hook(lambda _, given: tuple(x.to(weights) for x in given))
                network.register_forward_hook(lambda _, __, made: made.float())
            if weights is not None:
                network.to(weights)
        alone = replace(machine, shard=False, compile=False, context=1)
        learning = {name: network for name, network in modules.items() if network not in run.frozen}
        prepare(learning, run.frozen, alone, World(device=META))

    def _follow(self, block: nn.Module) -> None:
        """Where a block is computed again on the way back, the kernels are the same, and its work is marked."""
        forward = block.forward

        def followed(*given: Any) -> Any:
            if not self.back:
                return forward(*given)
            self.meter.parts.append(RECOMPUTED)
            try:
                with AcceleratorKernels(self.low):
                    return forward(*given)
            finally:
                self.meter.parts.pop()

        block.forward = followed

    @contextmanager
    def going_back(self) -> Generator[None]:
        """Around what computes gradients."""
        self.back = True
        try:
            yield
        finally:
            self.back = False

    def run(self, step: int, examples: Examples, draws: Draws, learning: tuple[str, ...]) -> Pass:
        """One pass."""
        stage = self.run_of.stage
        if isinstance(stage, DecoderStage | StudentStage):
            stage.conditioner(examples, draws)  # is there before the pass begins
        with _no_autocast(), self.meter:
            with AcceleratorKernels(self.low), _AnyValue(self.going_back):
                total = stage.losses(step, examples, draws)["total"]
            forward = self.meter.cost()
            self.meter.reset()
            with self.going_back():
                total.backward()
        backward = self.meter.cost()
        recomputed = sum(each.flops for each in backward.work if each.part == RECOMPUTED)
        return Pass(learning, 1.0, forward, backward, recomputed)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _gathered(band: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Bands of all processes put together, as far as shapes go."""
    whole = list(band.shape)
    whole[axis] = sum(sizes)
    return _Gathered.apply(band, whole)  # pyright: ignore[reportReturnType]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, band: Tensor, whole: list[int]) -> Tensor:
        ctx.shape = band.shape
        return band.new_empty(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].new_empty(ctx.shape), None


class _AnyValue(TorchFunctionMode):
    """Lets code run that looks at values where there are none: conditions hold, and a choice takes everything.
    Gradients that a loss asks for itself are computed inside `going_back`."""

    def __init__(self, going_back: Callable[[], AbstractContextManager[None]]):
        super().__init__()
        self.going_back = going_back

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__bool__:
            return True
        if func is Tensor.tolist:
            return [False] * len(args[0])
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0]
        with self.going_back() if func is torch.autograd.grad else nullcontext():
            return func(*args, **(kwargs or {}))


@contextmanager
def _no_autocast() -> Generator[None]:
    """PyTorch refuses autocast for the meta device, even one that switches it off; `AcceleratorKernels` stands for
    it."""

    def none(*_: object, **__: object) -> AbstractContextManager[None]:
        return nullcontext()

    real = torch.autocast
    torch.autocast = none  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.autocast = real  # pyright: ignore[reportAttributeAccessIssue]


class _Shapes(Draws):
    """Random numbers without values, but for `common`."""

    def __init__(self, batch: int, chance: float):
        super().__init__(0, 0, range(batch), batch, META)
        self.chance = chance

    def uniform(self) -> Tensor:
        return torch.empty(len(self), device=META)

    def normal(self, *shape: int) -> Tensor:
        return torch.empty(len(self), *shape, device=META)

    def spread(self) -> Tensor:
        return torch.empty(len(self), device=META)

    def common(self) -> float:
        return self.chance
