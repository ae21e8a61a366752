"""Many devices, by PyTorch's own means: which process computes what, and how networks are laid on their devices.

torchrun starts the processes:

    torchrun --nproc-per-node 8 -m pixdec train decoder v1-5 --data shards -o runs/x --machine.context 2

Processes share every batch; those of one context group have the same images and share each of them. Whatever the
settings, the trajectory is that of one process, but for the rounding of sums. `prepare` changes networks from outside
and in place: their code, the names of their parameters and their calls stay what they are.
"""

import atexit
import functools
import math
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from pixdec.devices import best_device, computes_in_bfloat16
from pixdec.l2p.model import PixelModel
from pixdec.models.execution import Execution
from pixdec.models.pid import PiD
from pixdec.train.context import context_of

BACKEND = "inductor"  # of torch.compile
MANY = 50_000_000  # parameters from which on a network that does not learn is sharded
VARIANTS = 64  # of a block that torch.compile may keep: sizes, with and without gradient


@dataclass(frozen=True)
class MachineSettings:
    """How the work is laid on the machine; decides nothing about the result but its rounding.

    Attributes:
        precision: of matrix products; weights, averages and optimizers are float32 always.
        shard: splits weights, gradients and optimizers over the processes (FSDP2).
        offload: keeps all of these on the CPU, optimizers too; the weights of a block are on the device while it works.
            Also for one GPU, with torchrun --nproc-per-node 1.
        recompute: keeps only what goes into each block, and computes its inside again on the way back.
        compile: each block by torch.compile.
        context: so many processes share one image, each with a part of its tokens.
    """

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    shard: bool = True
    offload: bool = False
    recompute: bool = True
    compile: bool = False
    context: int = 1

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"machine.context={self.context}: expected at least 1")
        if self.offload and not self.shard:
            raise ValueError("machine.offload=True: it is what shards are kept on; leave machine.shard=True")


@dataclass(frozen=True)
class Share:
    """Number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def places(self, batch: int, part: int = 0, parts: int = 1) -> range:
        """Which places of a batch are this one's in one of its parts. ValueError if they cannot be shared evenly."""
        if batch % (self.count * parts):
            raise ValueError(
                f"a batch of {batch} on {self.count} processes in {parts} parts: take a number of processes "
                "times parts that divides it"
            )
        each = batch // (self.count * parts)
        first = part * (batch // parts) + self.rank * each
        return range(first, first + each)


@dataclass(frozen=True)
class World:
    """What one process is among all.

    Attributes:
        share: of every batch. The processes of a context group have the same.
        context: of every image.
        device: where this process computes.
        mesh: all processes, "data" x "context"; None for one alone.
    """

    share: Share = Share()
    context: Share = Share()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.share.rank == 0 and self.context.rank == 0


def join(device: str | None = None, context: int = 1, *, offload: bool = False) -> World:
    """Meets the other processes, if torchrun started any; `context` of them share each image. `device` as the command
    line has it, the fastest there is if None; with several processes each takes its own of that kind. `offload`:
    weights are to be on the CPU, which takes torchrun for one process too.

    Raises ValueError for a number of processes or a device that does not fit.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count % context:
        raise ValueError(
            f"machine.context={context} on {count} {'process' if count == 1 else 'processes'}: take a number that "
            "divides theirs (torchrun --nproc-per-node N starts N)"
        )
    if offload and "WORLD_SIZE" not in os.environ:
        raise ValueError("machine.offload=True: start it by torchrun, for one GPU too (torchrun --nproc-per-node 1)")
    if count == 1 and not offload:
        return World(device=best_device() if device is None else torch.device(device))
    mine = _own_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if not together():  # they talk over gloo, and over NCCL too if they have GPUs
        distributed.init_process_group("cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo")
        atexit.register(distributed.destroy_process_group)
    mesh = init_device_mesh(mine.type, (count // context, context), mesh_dim_names=("data", "context"))
    rank = distributed.get_rank()
    return World(Share(rank // context, count // context), Share(rank % context, context), mine, mesh)


def _own_device(kind: str) -> torch.device:
    """The device of one of several processes, from now on the current one."""
    if kind not in ("cpu", "cuda"):
        raise ValueError(
            f"--device {kind} with several processes: name a kind, cuda or cpu; each process takes its own device"
        )
    if kind == "cpu":
        return torch.device("cpu")
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise ValueError(
            f"process {place + 1} on a machine with {count} CUDA devices: start one process for each GPU and no more "
            "(torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def together() -> bool:
    """Whether there are other processes, which this one has met."""
    return distributed.is_available() and distributed.is_initialized()


def prepare(
    networks: Mapping[str, nn.Module], frozen: Sequence[nn.Module], machine: MachineSettings, world: World
) -> None:
    """Lays networks on the machine, in place, before optimizers and averages are made of them: `networks` learn,
    `frozen` do not. All are whole and on this process's device; those that learn begin as the first process has them.

    Blocks of a `PiD` are recomputed and compiled, its images shared by a context group, its weights sharded block by
    block; other networks are sharded as one piece. The weights of a frozen `PiD`, and of blocks of a `PixelModel` in
    which nothing learns, are rounded to bfloat16 if that is what is computed in, and sharded only if they are many.
    """
    low, learning = _in_bfloat16(machine, world.device), list(networks.values())
    for tensor in (each for network in learning for each in network.state_dict().values()):
        if together():
            distributed.broadcast(tensor, 0)
    for network in (*learning, *frozen):
        if not isinstance(network, PiD | PixelModel):
            continue
        if isinstance(network, PixelModel):
            network.recompute = machine.recompute
            for block in _blocks(network) if low else ():  # half of the model is frozen
                if not any(parameter.requires_grad for parameter in block.parameters()):
                    block.to(torch.bfloat16)
        elif world.context.count > 1:
            split_context(network, world)
        for block in _blocks(network):
            _wrap(block, machine)
    for network in frozen:
        if low and isinstance(network, PiD):
            network.to(torch.bfloat16)
    if not _sharded(machine):
        return
    mesh = init_device_mesh(world.device.type, (distributed.get_world_size(),))
    for network in learning:
        _shard(network, mesh, torch.bfloat16 if low else None, machine.offload)
    for network in frozen:
        if sum(parameter.numel() for parameter in network.parameters()) >= MANY:
            _shard(network, mesh, torch.bfloat16 if low else None, machine.offload, learns=False)


def precision(machine: MachineSettings, device: torch.device) -> AbstractContextManager[Any]:
    """In what forward passes compute. Sharded networks see to it themselves."""
    if _sharded(machine) or not _in_bfloat16(machine, device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _in_bfloat16(machine: MachineSettings, device: torch.device) -> bool:
    """A processor that would emulate bfloat16 computes in float32 instead, which is quicker and no less exact."""
    return machine.precision == "bfloat16" and computes_in_bfloat16(device)


def _sharded(machine: MachineSettings) -> bool:
    return machine.shard and together()


def _blocks(network: PiD | PixelModel) -> list[nn.Module]:
    if isinstance(network, PixelModel):
        return [block for name in network.source.block_lists for block in getattr(network.transformer, name)]
    return [*network.backbone.patch_blocks, *network.backbone.pixel_blocks]


def _wrap(block: nn.Module, machine: MachineSettings) -> None:
    """Puts compilation and recomputation around a block's `forward`. Hooks, of FSDP2 or of who looks at what a block
    puts out, stay outside: they are called once for each call of the block."""
    forward = block.forward
    if machine.compile:
        forward = torch.compile(forward, backend=BACKEND, recompile_limit=VARIANTS)  # pyright: ignore[reportCallIssue]
    if machine.recompute:  # nothing in a block is random
        forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    block.forward = forward


def _shard(
    network: nn.Module, mesh: DeviceMesh, low: torch.dtype | None, offload: bool, *, learns: bool = True
) -> None:
    """FSDP2 over all processes, those of a context group too: their gradients are parts of one, and are averaged like
    those of different images.

    Scalars, the gates' `log_alpha`, stay whole and in float32 on every process: they cannot be sharded, and bfloat16
    would move a gate's closing point by up to 0.4 %. `average_gradients` sees to them. A `PiD` casts what it is given
    by itself and keeps noise levels, sinusoids and rotary tables in float32, so FSDP2 must not
    cast its inputs.

    All of a `PiD` besides its blocks is one unit, the adapter too: its tokens are asked for point by point, and each
    call of a unit would gather it anew. Where it learns, nothing stays gathered between two calls, so that none sees
    the weights of a step before; where it does not, that unit stays, for a loss on the features of a block alone does
    not call it back.
    """
    # Of use for networks whose outputs somebody changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    scalars = {parameter for parameter in network.parameters() if parameter.ndim == 0}
    place = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    shard = functools.partial(fully_shard, mesh=mesh, offload_policy=place)
    if not isinstance(network, PiD | PixelModel):
        policy = MixedPrecisionPolicy(low, torch.float32, output_dtype=torch.float32)
        shard(network, mp_policy=policy, reshard_after_forward=True, ignored_params=scalars)
        return
    policy = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False)
    for block in _blocks(network):
        shard(block, mp_policy=policy, reshard_after_forward=True)
    shard(network, mp_policy=policy, reshard_after_forward=learns, ignored_params=scalars)
    if isinstance(network, PixelModel):
        return
    calls: list[tuple[nn.Module, str]] = [(network, name) for name in ("condition", "velocity")]
    if network.adapter is not None:
        calls.append((network.adapter, "low_resolution"))
    _gather_for(network, calls)


def _gather_for(network: nn.Module, calls: Sequence[tuple[nn.Module, str]]) -> None:
    """Lets calls of methods, of the network or of a part of it, gather the network's weights as `forward` does, unless
    another that did so is under way."""
    under_way = 0

    def counted(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal under_way
            under_way += 1
            try:
                return run(*arguments, **named)
            finally:
                under_way -= 1

        return call

    def outermost(plain: Callable[..., Any], gathering: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: (plain if under_way else gathering)(*arguments, **named)

    network.forward = counted(network.forward)
    for part, method in calls:
        plain = counted(getattr(part, method))
        setattr(network, method, plain)
        register_fsdp_forward_method(network, method)
        setattr(part, method, outermost(plain, getattr(network, method)))


def split_context(network: PiD, world: World) -> None:
    """Lets the processes of a context group share each of the network's images. They call it together with the same
    whole image, and get the same whole image.

    The gradient that each of them computes of a loss on the whole image is its part of the true one times their number,
    so that the mean over all processes is the true one.
    """
    assert world.mesh is not None
    how = Execution(context=context_of(world.mesh.get_group("context")))
    network.forward = functools.partial(network.forward, how=how)


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Replaces every gradient by its mean over all processes; nothing for one alone, and none of the sharded ones,
    which are means already."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if not together() or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def norm_of(parameters: Sequence[Parameter]) -> float:
    """The norm of all gradients together, sharded or not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    norms = [nn.utils.get_total_norm(each) for each in (sharded, whole) if each]
    return math.hypot(*(float(whole_tensor(norm)) for norm in norms))


def whole_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, any other as it is. All processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def synchronizing(networks: Iterable[nn.Module], last: bool) -> Generator[None]:
    """Around one of several passes of a step: the gradients of sharded networks are exchanged between processes in the
    last of them only."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last, recurse=False)
    yield


def reshard(network: nn.Module) -> None:
    """Drops what weights of a sharded network are gathered, for they are about to change."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
