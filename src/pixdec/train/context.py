"""One image on several processes: how they meet, which device each has, and what they hand to each other.

torchrun starts them. Every process passes the same x_t, t, text and latent to a network and gets the same whole
velocity, bit for bit:

    mesh = meet(own_cuda(local), context=2)  # two processes for each image
    how = Execution(context=context_of(mesh.get_group("context")))
    velocity = network(x_t, t, text, latent, sigma, how)

Split are the tokens of patches and pixels, the adapter's tokens, modulations, queries and all products with weights.
Whole on every process are the weights, the image, the features of the condition, the text stream, and the keys and
values of one block at a time.
"""

import atexit
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pixdec.models.execution import Context


def own_cuda(place: int) -> torch.device:
    """The CUDA device of process `place` (from 0) of this machine, from now on the current one. ValueError if there are
    fewer."""
    count = torch.cuda.device_count()
    if place >= count:
        raise ValueError(
            f"process {place + 1} on a machine with {count} CUDA devices: start one process for each GPU and no more "
            "(torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def join_all(kind: str | None = None, patience: timedelta | None = None) -> None:
    """Meets all processes that torchrun started, unless that was done before; all call it. They talk over gloo, and
    over NCCL too if the `kind` of their devices is "cuda"; None is for who does not know it yet: NCCL if there is any.

    `patience`: how long one waits for the others; None is PyTorch's own, 10 to 30 minutes.
    """
    if distributed.is_initialized():
        return
    with_nccl = torch.cuda.is_available() and distributed.is_nccl_available() if kind is None else kind == "cuda"
    distributed.init_process_group("cpu:gloo,cuda:nccl" if with_nccl else "gloo", timeout=patience)
    atexit.register(distributed.destroy_process_group)


def meet(device: torch.device, context: int = 1) -> DeviceMesh:
    """All processes, after `join_all`, laid out as "data" x "context": the `context` processes of a row share each
    image, and rows have different images; `mesh.get_group("context")` is the own row. All call it.

    ValueError for another kind of device than cpu or cuda, or a number of processes that `context` does not divide.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{device} with several processes: expected cpu or cuda; the others cannot exchange tensors")
    join_all(device.type)
    count = distributed.get_world_size()
    if context < 1 or count % context:
        raise ValueError(f"{context} of {count} processes for each image: take a number that divides theirs")
    return init_device_mesh(device.type, (count // context, context), mesh_dim_names=("data", "context"))


def context_of(group: distributed.ProcessGroup) -> Context:
    """What a network must know to share each image with the other processes of a group."""

    def gather(band: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
        return gathered(band, axis, sizes, group)

    uncompiled: Any = torch.compiler.disable(gather)
    return Context(group.rank(), group.size(), uncompiled)


def gathered(band: Tensor, axis: int, sizes: Sequence[int], group: distributed.ProcessGroup) -> Tensor:
    """The bands of all processes of a group, one after the other along an axis, where they have `sizes`. Backwards, the
    sum of what all processes found for one's band."""
    most, band = max(sizes), band.movedim(axis, 0)
    if len(band) < most:
        band = torch.cat((band, band.new_zeros(most - len(band), *band.shape[1:])))
    band = band.contiguous()
    needs_gradient = torch.is_grad_enabled() and band.requires_grad
    whole = cast(Tensor, _Gather.apply(band, group)) if needs_gradient else _all_gather(band, group)
    if min(sizes) < most:
        whole = torch.cat([part[:size] for part, size in zip(whole.split(most), sizes, strict=True)])
    return whole.movedim(0, axis)


class _Gather(torch.autograd.Function):
    """(n, …) of each process of a group -> (processes·n, …) on all; backwards, the sum of what all have for one's n."""

    @staticmethod
    def forward(ctx: Any, band: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(band, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous()
        band = whole.new_empty(whole.shape[0] // ctx.group.size(), *whole.shape[1:])
        distributed.reduce_scatter_single(band, whole, group=ctx.group)
        return band, None


def _all_gather(band: Tensor, group: distributed.ProcessGroup) -> Tensor:
    whole = band.new_empty(group.size() * band.shape[0], *band.shape[1:])
    # Decoding runs on PyTorch 2.6 too, which has it under the name that 2.13 calls deprecated.
    name = "all_gather_single" if hasattr(distributed, "all_gather_single") else "all_gather_into_tensor"
    getattr(distributed, name)(whole, band, group=group)
    return whole
