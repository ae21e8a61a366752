"""One image on several processes: what they hand to each other.

Every process of a group passes the same x_t, t, text and latent to a network and gets the same whole velocity, bit for
bit:

    how = Execution(context=context_of(mesh.get_group("context")))
    velocity = network(x_t, t, text, latent, sigma, how)

Split are the tokens of patches and pixels, the adapter's tokens, modulations, queries and all products with weights.
Whole on every process are the weights, the image, the features of the condition, the text stream, and the keys and
values of one block at a time.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, distributed

from pixdec.models.execution import Context


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
    distributed.all_gather_single(whole, band, group=group)
    return whole
