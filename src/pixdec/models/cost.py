"""What a computation costs: floating-point operations, bytes that move, bytes that are alive at once.

It is counted operation by operation while the computation runs, on real tensors or on those of the meta device, which
have shapes but no values: the full-size network at 2048 x 2048 takes seconds and no memory there. What is counted is
therefore what the network does, not a formula beside it.

A multiplication with its addition counts as two operations. Only matrix products, convolutions and attention are
counted; the rest shows in the bytes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pixdec.models.execution import Execution
from pixdec.models.pid import PiD, PiDSettings

Kind = Literal["products", "attention", "other"]

# Where a network's modules belong; what is in none of them is "embeddings".
PARTS = {
    "patch blocks": ("backbone.patch_blocks.",),
    "pixel blocks": ("backbone.pixel_blocks.",),
    "adapter": ("adapter.", "gates.", "pixel_gate"),
    "base": ("base",),
    "deblock": ("deblock",),
}
REST = "embeddings"

META = torch.device("meta")


@dataclass(frozen=True)
class Work:
    """Some operations of one kind: their FLOPs, the bytes they read and write, and the precision of their inputs."""

    part: str
    kind: Kind
    dtype: torch.dtype
    flops: int
    moved: int


@dataclass(frozen=True)
class Cost:
    """What was counted.

    Attributes:
        work: the operations, one by one.
        kept: bytes that are alive at the end and were not at the beginning.
        peak: the most bytes that were alive at once, of those that were not at the beginning.
    """

    work: Sequence[Work]
    kept: int
    peak: int

    @property
    def flops(self) -> int:
        """All FLOPs."""
        return sum(each.flops for each in self.work)

    @property
    def moved(self) -> int:
        """Bytes read and written if every operation runs by itself, as without compilation."""
        return sum(each.moved for each in self.work)

    def flops_by_part(self) -> Mapping[tuple[str, Kind], int]:
        """FLOPs by part of the network and kind of operation; parts without any are left out."""
        found = defaultdict[tuple[str, Kind], int](int)
        for each in self.work:
            if each.flops:
                found[each.part, each.kind] += each.flops
        return dict(found)


class Meter(TorchDispatchMode):
    """Counts what runs inside it, the way back included; without `work` only what is alive, in a fraction of the
    time."""

    def __init__(self, *, work: bool = True) -> None:
        super().__init__()
        self._counts_work = work
        self.work: list[Work] = []
        self.parts = [REST]
        self.alive = self.most = 0
        self._storages: dict[int, ref[Any]] = {}

    def cost(self) -> Cost:
        """What was counted since `reset`, or since the beginning."""
        return Cost(tuple(self.work), self.alive, self.most)

    def reset(self) -> None:
        """Forgets the work and the peak so far; what is alive stays so."""
        self.work, self.most = [], self.alive

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in given:
            self._notice(tensor, new=False)
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        for tensor in made:
            self._notice(tensor, new=True)
        if self._counts_work and not func.is_view:
            self.work.append(self._work(func.overloadpacket, args, kwargs or {}, result, given, made))
        return result

    def _work(
        self,
        operation: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        given: Sequence[Tensor],
        made: Sequence[Tensor],
    ) -> Work:
        count = flop_registry.get(operation)
        flops = 0 if count is None else int(count(*args, **kwargs, out_val=result))
        kind: Kind = "other" if count is None else "attention" if "attention" in str(operation) else "products"
        dtype = given[0].dtype if given else made[0].dtype if made else torch.float32
        return Work(self.parts[-1], kind, dtype, flops, _bytes(given) + _bytes(made))

    def _notice(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if new else 0  # pyright: ignore[reportPrivateUsage]
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self.alive -= size
            del self._storages[key]

        self._storages[key] = ref(storage, gone)
        self.alive += size
        self.most = max(self.most, self.alive)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of different tensors; a dimension that is expanded is read once."""
    different = {id(x): x for x in tensors}
    return sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in different.values())


class AcceleratorKernels(TorchFunctionMode):
    """What a CUDA device would run, for tensors of the meta device, which cannot choose: attention by the fused kernel
    that keeps no scores; with `low`, matrix products in that precision as `torch.autocast` has it."""

    def __init__(self, low: torch.dtype | None = None):
        super().__init__()
        self.low = low
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.low is not None and func in _IN_LOW_PRECISION:
            args = tuple(self._lowered(x) for x in args)
            kwargs = {name: self._lowered(x) for name, x in kwargs.items()}
        if self.low is not None and func in _IN_FLOAT32:
            args = tuple(x.float() if isinstance(x, Tensor) else x for x in args)
            kwargs = {name: x.float() if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _lowered(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not isinstance(x, nn.Parameter) or not x.requires_grad or not torch.is_grad_enabled():
            return x.to(self.low)
        if id(x) not in self._cast:  # weights that learn are cast once for all of their uses, as autocast does it
            self._cast[id(x)] = x, x.to(self.low)
        return self._cast[id(x)][1]


_IN_LOW_PRECISION: tuple[Any, ...] = (
    F.linear,
    F.conv2d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    Tensor.matmul,
    Tensor.__matmul__,
)
_IN_FLOAT32: tuple[Any, ...] = (F.group_norm, F.layer_norm, torch.group_norm, torch.layer_norm)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    operations: Any = torch.ops.aten
    if attn_mask is None:
        return operations._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = torch.empty(attn_mask.shape, dtype=q.dtype, device=q.device)
    bias = bias.expand(*q.shape[:3], k.shape[2])
    return operations._scaled_dot_product_efficient_attention(q, k, v, bias, q.requires_grad)[0]


@contextmanager
def by_part(meter: Meter, network: PiD) -> Generator[None]:
    """Inside, work on the way forward is counted under its part of the network."""

    def enter(part: str) -> Callable[..., None]:
        return lambda *_: meter.parts.append(part)

    def leave(*_: object) -> None:
        meter.parts.pop()

    handles = list[Any]()
    for name, module in network.named_modules():
        for part, places in PARTS.items():
            if name.startswith(places):
                handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Inputs:
    """What a network is called with."""

    x_t: Tensor
    t: Tensor
    text: Tensor | None
    latent: Tensor | None
    sigma: Tensor | None


def meta_network(settings: PiDSettings, dtype: torch.dtype = torch.float32) -> PiD:
    """The network without values, its weights in `dtype`."""
    with META:
        return PiD(settings).to(dtype)


def random_inputs(
    settings: PiDSettings,
    height: int,
    width: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device = META,
) -> Inputs:
    """Inputs for images of height x width pixels, float32, with as much text as the network takes, in `dtype`.

    Raises ValueError if the sides are no multiples of the patch, or of what one cell of the latent becomes.
    """
    backbone, adapter = settings.backbone, settings.adapter
    cell = 1 if adapter is None else adapter.latent_factor * adapter.scale
    multiple = math.lcm(cell, backbone.patch)
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ValueError(f"{width}x{height}: expected sides that are multiples of {multiple}")
    with device:
        text = latent = sigma = None
        if backbone.text_width is not None:
            text = torch.randn(batch, backbone.text_length, backbone.text_width, dtype=dtype)
        if adapter is not None:
            latent = torch.randn(batch, adapter.latent_channels, height // cell, width // cell)
            sigma = torch.rand(batch)
        return Inputs(torch.randn(batch, 3, height, width), torch.rand(batch), text, latent, sigma)


def decode_cost(
    settings: PiDSettings,
    height: int,
    width: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    chunk: int | None = None,
) -> tuple[Cost, Cost]:
    """What a decode to height x width costs on an accelerator: the condition, made once (nothing for a prior), and one
    call of the network, made in every step; weights in `dtype`, their bytes in neither."""
    network, given = meta_network(settings, dtype), random_inputs(settings, height, width, batch, dtype)
    first, second = Meter(), Meter()
    with torch.no_grad(), AcceleratorKernels():
        with by_part(first, network), first:
            condition = None if given.latent is None else network.condition(given.latent)
        with by_part(second, network), second:
            velocity = network.velocity(given.x_t, given.t, given.text, condition, given.sigma, Execution(chunk=chunk))
    del velocity
    return first.cost(), second.cost()
