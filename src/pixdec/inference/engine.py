"""Batches → calls: what a decode does with its requests (`pixdec.inference.requests`), from top to bottom.

A batch is sampled by calls of the network, as a whole or in tiles, each of them computed as its `InferenceConfig` says.
The network that was loaded never changes: one of another dtype, quantized, compiled or offloaded is a copy of it, which
shares the weights that are the same.

B batch · C latent channels · h, w latent grid · H, W output pixels · T text tokens · E their width
"""

import copy
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from pixdec.devices import computes_in_bfloat16, is_out_of_memory, release_memory, reused_memory
from pixdec.inference.arrangement import CHUNKS, Arrangement, Weights
from pixdec.inference.budget import Asked, DecodePlan, condition_of, plan_decode
from pixdec.inference.compiled import compile_blocks
from pixdec.inference.config import InferenceConfig, parse_memory
from pixdec.inference.graphs import Graphed
from pixdec.inference.kernels import choose, shapes_of
from pixdec.inference.limits import available_memory
from pixdec.inference.offload import offload_blocks
from pixdec.inference.quantize import quantize_blocks, stored
from pixdec.inference.requests import Batch, Request, batches_of
from pixdec.inference.sizes import WHOLE, Size, check_tile, fit, tiling_for
from pixdec.io.arguments import whole
from pixdec.io.files import first_line_of
from pixdec.models.execution import Execution
from pixdec.models.network import Network, NetworkCondition
from pixdec.sampling.flow import resolution_shift, shifted_times, student_times
from pixdec.sampling.samplers import NoiseSource, Step, dpm_solver, guided, student
from pixdec.sampling.tiling import tiled_velocity
from pixdec.text import NEGATIVE_PROMPT
from pixdec.weights.load import LoadedDecoder

N = TypeVar("N", bound=nn.Module)
P = ParamSpec("P")
logger = logging.getLogger(__name__)

Captions = Callable[[Sequence[str], torch.device, torch.dtype], Tensor]

TEACHER_STEPS = 25
TEACHER_GUIDANCE = 5.0
TEACHER_START = 0.999  # the first noise level before the shift
KEPT_CONDITION = 2**30  # bytes of what is made of a latent, above which a part of it is made in every call
KEPT_VARIANTS = 2  # of the network that was loaded


@dataclass(frozen=True)
class DecodeStep(Step):
    """A step of a decode, and how its network was called."""

    how: Arrangement


@dataclass
class Variant:
    """A network that is ready to be called, by one thread at a time: a device gains nothing from two at once. `joins`:
    whether so many images, arranged so, have the same bits together as each alone."""

    network: Network
    velocity: Callable[..., Tensor]
    lock: Any = field(default_factory=threading.Lock)
    joins: dict[tuple[Arrangement, int], bool] = field(default_factory=dict[tuple[Arrangement, int], bool])


class Engine:
    """Runs a decoder's network on a device; `embed` makes the embeddings of captions for networks that read them."""

    def __init__(self, model: LoadedDecoder, device: torch.device, embed: Captions | None):
        self.model, self.device, self.embed = model, device, embed
        self._variants = OrderedDict[Weights, Variant]()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drops all copies of the network: its weights were changed."""
        with self._lock:
            self._variants.clear()

    def plan(self, size: Size, batch: int, config: InferenceConfig) -> DecodePlan:
        """How a batch of outputs of that size, whole patches, is decoded within `config.memory`; within what the device
        has if that is None.

        Raises:
            ValueError: nothing fits, or the device cannot be planned for.
        """
        loaded = self.model.network
        dtype, limit = config.dtype or loaded.dtype, config.memory
        if limit is None or limit == "auto":
            limit = available_memory(self.device) + self._held()
        may_cast = config.dtype is None and dtype == torch.float32 and computes_in_bfloat16(self.device)
        asked = Asked(
            size,
            dtype,
            parse_memory(limit),
            self.device.type,
            batch=batch,
            low=torch.bfloat16 if may_cast else None,
            sizes=self.model.sizes,
            tile=config.tile,
            teacher=self.model.kind == "teacher",
            loaded=loaded.dtype if loaded.device.type == self.device.type else None,
            quantize=config.quantize,
            may_offload=self.device.type != "cpu" and config.quantize is None and config.compile is None,
        )
        return plan_decode(loaded, asked)

    def batches(
        self, requests: Sequence[Request], config: InferenceConfig, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """The batches of some requests: of `batch_size`, else of as many as have the pixels of the largest image that
        is decoded whole, and with a limit of memory as many of these as fit."""

        def at_once(size: Size) -> int:
            images = max(1, WHOLE // (size[0] * size[1]))
            while config.memory is not None and images > 1:
                try:
                    return self.plan(size, images, config).images
                except ValueError:  # not so many: they wait for each other
                    images //= 2
            return images

        return batches_of(requests, at_once if batch_size is None else lambda _: batch_size)

    def arrange(self, size: Size, batch: int, config: InferenceConfig) -> Arrangement:
        """How a batch of outputs of that size, whole patches, is decoded.

        Raises:
            ValueError: it does not fit, or the device cannot do it.
        """
        config.check(self.device)
        network = self.model.network
        weights = Weights(config.dtype or network.dtype, config.quantize, config.offload, config.compile)
        if config.memory is None:
            tile, chunk = config.tile, CHUNKS[0]
            keep = condition_of(network.settings, size, batch, weights.dtype)[1] <= KEPT_CONDITION
        else:
            plan = self.plan(size, batch, config)
            tile, chunk, keep = plan.tile, plan.chunk or CHUNKS[0], plan.keep_tokens
            weights = replace(weights, dtype=plan.dtype, offload=config.offload or plan.offload)
        tiling = tiling_for(size, tile, self.model.sizes, network.patch)
        return Arrangement(size, weights, config.attention, tiling, chunk, keep and tiling is None)

    def prepare(self, config: InferenceConfig) -> Network:
        """The network that decodes with a config call; where a plan has no say in it."""
        config.check(self.device)
        network = self.model.network
        weights = Weights(config.dtype or network.dtype, config.quantize, config.offload, config.compile)
        if config.attention != "auto":  # which is timed on the sizes that come
            choose(config.attention, self.device, weights.dtype, shapes_of(network, 512, 512))
        if config.tile is not None:
            check_tile(config.tile, network.patch)
        return self.ready(weights).network

    @torch.inference_mode()
    def steps(
        self, batch: Batch, steps: int | None, config: InferenceConfig
    ) -> Generator[DecodeStep, Sequence[int] | None]:
        """A batch from noise to image: every step's estimate x0 (B,3,H,W), float32 in [-1,1], at the network's own
        size; only that of the last step, the result, has the requests' `size`. `send` takes the rows of the images that
        are still wanted: the network computes no others from then on, and their x0 mean nothing."""
        model, device, first = self.model, self.device, batch.requests[0]
        # In an exact batch every image is decoded as it would be alone.
        arranged = self.arrange(first.frame.whole, 1 if config.exact else len(batch.requests), config)
        if warning := model.size_warning(*arranged.seen):
            warnings.warn(warning if arranged.tiling is None else f"in tiles: {warning}", stacklevel=2)
        times = times_for(model, None if steps is None else whole("steps", steps), *arranged.seen)
        prompts, seeds = [each.prompt for each in batch.requests], [each.seed for each in batch.requests]
        text = self._embed(prompts, arranged)
        calls = _Calls(self, batch, arranged, config.exact)
        shape = (len(seeds), 3, *first.frame.whole)
        if model.kind == "student":
            noise = NoiseSource(seeds, device, len(times) - 1)
            made = student(partial(calls.velocity, text), noise, shape, times)
        else:
            away = self._embed([NEGATIVE_PROMPT] * len(prompts), arranged) if model.needs_text else None
            denoise = guided(partial(calls.velocity, text), partial(calls.velocity, away), TEACHER_GUIDANCE)
            made = dpm_solver(denoise, NoiseSource(seeds, device)(shape), times)
        with reused_memory() if device.type == "cpu" else nullcontext():
            for step in made:
                image = first.frame.crop(step.x0 if model.kind == "student" else step.x0.clamp(-1, 1))
                is_last = step.index + 1 == step.total
                image = fit(image, first.size) if is_last and first.size is not None else image
                kept = yield DecodeStep(step.index, step.total, step.t, image, calls.arranged)
                if kept is not None:
                    calls.rows = tuple(kept)

    def decoded(self, batch: Batch, steps: int | None, config: InferenceConfig) -> Iterator[tuple[Batch, DecodeStep]]:
        """The steps of a batch; of its halves one after the other, where memory is not enough for all of it."""
        try:
            for step in self.steps(batch, steps, config):
                yield batch, step
            return
        except MemoryExhaustedError:
            if len(batch.requests) == 1:
                raise
        for half in batch.halves():
            yield from self.decoded(half, steps, config)

    def ready(self, weights: Weights) -> Variant:
        """The network with such weights."""
        with self._lock:
            if weights not in self._variants:
                while len(self._variants) >= KEPT_VARIANTS:
                    self._variants.popitem(last=False)
                self._variants[weights] = self._variant(weights)
            self._variants.move_to_end(weights)
            return self._variants[weights]

    def _variant(self, weights: Weights) -> Variant:
        loaded = self.model.network
        if weights == Weights(loaded.dtype) and loaded.device.type == self.device.type:
            return Variant(loaded, loaded.velocity)
        network = sharing_copy(loaded)
        if weights.offload:
            offload_blocks(network.cpu().to(weights.dtype), self.device)
        else:
            network.to(self.device, weights.dtype)
        if weights.quantize is not None:
            quantize_blocks(network, weights.quantize)
        if weights.compile is not None:
            compile_blocks(network)
        return Variant(network, Graphed(network.velocity) if weights.compile == "graphs" else network.velocity)

    def _held(self) -> int:
        """Bytes of weights that are on the device now."""
        networks = [self.model.network, *(each.network for each in self._variants.values())]
        tensors = (tensor for network in networks for tensor in stored(network))
        return sum({x.data_ptr(): x.nbytes for x in tensors if x.device.type == self.device.type}.values())

    def _embed(self, prompts: Sequence[str], arranged: Arrangement) -> Tensor | None:
        return None if self.embed is None else self.embed(prompts, self.device, arranged.weights.dtype)


class MemoryExhaustedError(ValueError):
    """A device has too little memory for an image, however little of it is computed at a time."""


def _without_autocast(call: Callable[Concatenate["_Calls", P], Tensor]) -> Callable[Concatenate["_Calls", P], Tensor]:
    """The caller's autocast is none of a decode's business: its config says what it computes in."""

    @wraps(call)
    def exact(self: "_Calls", *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return call(self, *args, **kwargs)

    return exact


class _Calls:
    """The calls of one batch: as it is `arranged`, and by a more frugal arrangement when the device has no memory left,
    which the noise and the state of the sampler do not see. Only the images in `rows` are computed.

    With `exact`, every image has the bits that it has alone: images are computed together where doing so once has given
    the same bits, as which kernels a library takes depends on shapes only; and nothing is arranged anew.
    """

    def __init__(self, engine: Engine, batch: Batch, arranged: Arrangement, exact: bool):
        self._engine, self._exact, self.device = engine, exact, engine.device
        self._latent, self._sigma = batch.latent(engine.device), batch.sigma(engine.device)
        self._conditions: dict[tuple[int, ...], NetworkCondition] = {}
        self.arranged = arranged
        self.rows = tuple(range(len(batch.requests)))

    def velocity(self, text: Tensor | None, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity (B,3,H,W) of x_t (B,3,H,W) at t (B,) with text (B,T,E)."""
        while True:
            try:
                found = self._called(text, x_t, t)
                if len(self.rows) == len(x_t):
                    return found
                return torch.zeros_like(x_t, dtype=found.dtype).index_copy_(
                    0, torch.tensor(self.rows, device=found.device), found
                )
            except (RuntimeError, MemoryError) as error:
                self._conditions, reason = {}, first_line_of(error)
                if not is_out_of_memory(error):
                    if self.arranged.weights.compile is None:
                        raise
                    mode = self.arranged.weights.compile
                    raise ValueError(f"compile={mode!r} does not work here ({reason}); leave it out") from error
            # Outside of the handler, which would hold the tensors of the call that failed.
            release_memory()
            height, width = self.arranged.size
            smaller = None if self._exact else self.arranged.smaller(self._engine.model.network.patch)
            if smaller is None:
                raise MemoryExhaustedError(
                    f"{width}x{height} does not fit in the memory that {self._engine.device} has left ({reason}); "
                    "take a smaller image, smaller tiles, or state how much may be used with memory="
                )
            logger.warning("%dx%d: out of memory, goes on with less at a time", width, height)
            self.arranged = smaller

    @_without_autocast
    def _called(self, text: Tensor | None, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocities of the images in `rows`."""
        variant, rows = self._engine.ready(self.arranged.weights), self.rows

        def of(rows: tuple[int, ...]) -> Tensor:
            return self._of(rows, variant, text, x_t, t)

        with variant.lock:
            if not self._exact or len(rows) == 1:
                return of(rows)
            joining = (self.arranged, len(rows))
            if variant.joins.get(joining):
                return of(rows)
            alone = torch.cat([of((row,)) for row in rows])
            if joining not in variant.joins:
                variant.joins[joining] = torch.equal(of(rows), alone)
            return alone

    def _of(self, rows: tuple[int, ...], variant: Variant, text: Tensor | None, x_t: Tensor, t: Tensor) -> Tensor:
        arranged, network, device = self.arranged, variant.network, self._engine.device
        kernel = choose(arranged.attention, device, arranged.weights.dtype, shapes_of(network, *arranged.seen))
        how, some = Execution(kernel, arranged.chunk), list(rows)
        if len(rows) < len(x_t):
            x_t, t, text = x_t[some], t[some], None if text is None else text[some]
        if rows not in self._conditions:
            latent = self._latent if len(rows) == len(self._latent) else self._latent[some]
            self._conditions[rows] = network.condition(latent, tokens=arranged.keep_tokens)
        condition, sigma = self._conditions[rows], self._sigma[some]
        if arranged.tiling is None:
            return variant.velocity(x_t, t, text, condition, sigma, how)

        def at(tile: Tensor, cropped: NetworkCondition) -> Tensor:
            return variant.velocity(tile, t, text, cropped, sigma, how)

        return tiled_velocity(at, x_t, condition, arranged.tiling)


def times_for(model: LoadedDecoder, steps: int | None, height: int, width: int) -> list[float]:
    """The noise level at each step, and 0 at the end, for a network that sees height x width pixels at a time.

    Raises:
        ValueError: a number of steps that it does not take.
    """
    if model.kind == "student":
        return student_times(model.times, cast("int", model.default_steps) if steps is None else steps)
    shift = resolution_shift(height, width, model.version)
    return shifted_times(TEACHER_STEPS if steps is None else steps, shift, TEACHER_START)


def sharing_copy(network: N) -> N:
    """A network of its own that shares the tensors of another, until either gets new ones."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, cast("dict[int, Any]", shared))
