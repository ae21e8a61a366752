"""A network whose blocks' weights stay in host memory and visit the device one block after the other.

All but the blocks lives on the device. On CUDA each block's weights are copied from pinned memory, on a stream of their
own, while the block before it computes. The arithmetic is the network's own, and so are its results.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pixdec.models.network import Network
from pixdec.models.pid import PiD


def blocks_of(network: Network) -> list[nn.Module]:
    """The blocks in the order in which they run."""
    if isinstance(network, PiD):
        return [*network.backbone.patch_blocks, *network.backbone.pixel_blocks]
    return list(network.blocks)


def numbers_of(network: Network, *, offloaded: bool = False) -> int:
    """How many weights a network has; offloaded, on its device: of two blocks at a time, and all that are in none."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(network)]
    return sum(p.numel() for p in network.parameters()) - (sum(sizes) - 2 * max(sizes) if offloaded else 0)


def offload_blocks(network: Network, device: torch.device) -> None:
    """Moves all but the blocks of a network to a device, in place and for good, and each block's weights for each of
    its calls. For inference, by one thread at a time."""
    visits = _Visits(blocks_of(network), device)
    resting = {id(p) for block in visits.blocks for p in block.parameters()}
    for parameter in network.parameters():
        if id(parameter) not in resting:
            parameter.data = parameter.data.to(device)
    for place, block in enumerate(visits.blocks):
        block.register_forward_pre_hook(partial(visits.begin, place))
        block.register_forward_hook(partial(visits.end, place), always_call=True)


class _Visits:
    def __init__(self, blocks: list[nn.Module], device: torch.device):
        self.blocks, self.device = blocks, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.resting = [[p.data.cpu() for p in block.parameters()] for block in blocks]
        if self.stream is not None:
            self.resting = [[weight.pin_memory() for weight in weights] for weights in self.resting]
        self.fetched: dict[int, list[Tensor]] = {}

    def begin(self, place: int, block: nn.Module, *_: Any) -> None:
        weights = self.fetched.pop(place, None) or self._fetch(place)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        for parameter, weight in zip(block.parameters(), weights, strict=True):
            parameter.data = weight
        if place + 1 < len(self.blocks):
            self.fetched[place + 1] = self._fetch(place + 1)

    def end(self, place: int, block: nn.Module, *_: Any) -> None:
        for parameter, weight in zip(block.parameters(), self.resting[place], strict=True):
            parameter.data = weight

    def _fetch(self, place: int) -> list[Tensor]:
        if self.stream is None:
            return [weight.to(self.device) for weight in self.resting[place]]
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            weights = [weight.to(self.device, non_blocking=True) for weight in self.resting[place]]
        for weight in weights:
            weight.record_stream(compute)
        return weights
