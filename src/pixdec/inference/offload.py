"""A network whose blocks' weights stay in host memory and visit the device one block after the other.

All but the blocks lives on the device. Each block's weights are copied into one of a few buffers there while the blocks
before it compute: on CUDA from pinned memory, on a stream of their own. The arithmetic is the network's own, and so are
its results, bit for bit; it costs time only where a copy takes longer than a block.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from pixdec.models.pid import PiD

AHEAD = 1  # blocks whose weights are fetched before their turn
_ALIGNED = 256  # bytes: multiples of it are where tensors begin, as allocators have it
_LINE = 64  # bytes of a processor's cache line
_offloaded = WeakSet[PiD]()


def blocks_of(network: PiD) -> list[nn.Module]:
    """The blocks in the order in which they run."""
    return [*network.backbone.patch_blocks, *network.backbone.pixel_blocks]


def weight_bytes(network: PiD) -> int:
    """Bytes of all weights."""
    return sum(tensor.nbytes for tensor in _tensors(network))


def resident_bytes(network: PiD, ahead: int = AHEAD) -> int:
    """Bytes of weights that an offloaded network has on its device."""
    inside = sum(tensor.nbytes for block in blocks_of(network) for tensor in _tensors(block))
    return weight_bytes(network) - inside + (ahead + 1) * _largest(network)


def offload_blocks(network: PiD, device: str | torch.device, *, ahead: int = AHEAD) -> "Offloaded":
    """Moves all but the blocks of `network` to `device`, and each block's weights only while they are needed, into
    `ahead` + 1 buffers. Until `close`, or the end of a `with`, which put everything back where it was.

    Weights that are in host memory already are read where they lie, in a mapped file too; CUDA reads pinned copies of
    them, which take their place. Weights may be changed between decodes. For inference only, by one thread at a time,
    and not for a network that is compiled: its weights change places behind the compiler's back.

    Raises ValueError for a network that wants gradients, has no values or is offloaded already, and `ahead` below 1.
    """
    if ahead < 1:
        raise ValueError(f"ahead={ahead}: expected at least 1, the block whose weights are fetched before its turn")
    if network in _offloaded:
        raise ValueError("the network's blocks are offloaded already; close that first")
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            raise ValueError(f"{name} wants a gradient: blocks are offloaded for inference; call requires_grad_(False)")
        if parameter.is_meta:
            raise ValueError(f"{name} has no values: load the network's weights before its blocks are offloaded")
    with torch.inference_mode(False):  # tensors made in that mode could not be written outside it
        return Offloaded(network, torch.device(device), ahead)


@dataclass(frozen=True)
class _Weight:
    """A tensor of the network, the device it was on, and its values between calls."""

    tensor: Tensor
    home: torch.device
    resting: Tensor


class _Buffer:
    """Device memory for the weights of one block at a time: `block` is the one they are of, `filled` when they are
    there, `read` when the block has run."""

    def __init__(self, size: int, device: torch.device, *, streamed: bool):
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.block: int | None = None
        self.filled, self.read = (torch.cuda.Event(), torch.cuda.Event()) if streamed else (None, None)


class Offloaded:
    """What `offload_blocks` did; `close` undoes it. `resident`: bytes of weights on the device; `fetched`: how many
    times a block's weights were copied there."""

    def __init__(self, network: PiD, device: torch.device, ahead: int):
        self.network, self.device, self.resident, self.fetched = network, device, resident_bytes(network, ahead), 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._handles = list[Any]()
        self._weights = list[_Weight]()
        blocks = blocks_of(network)
        try:
            # First what leaves the device, then what comes to it.
            parts = [[self._move(tensor, torch.device("cpu")) for tensor in _tensors(block)] for block in blocks]
            inside = {id(weight.tensor) for part in parts for weight in part}
            for tensor in _tensors(network):
                if id(tensor) not in inside:
                    self._move(tensor, device)
            size, streamed = _largest(network), self._stream is not None
            self._buffers = [_Buffer(size, device, streamed=streamed) for _ in range(ahead + 1)]
            self._parts = [
                [(weight, view) for weight, view in zip(part, _laid_out(part, self._buffer(i).memory), strict=True)]
                for i, part in enumerate(parts)
            ]
        except BaseException:
            self.close()
            raise
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._handles.append(network.backbone.register_forward_pre_hook(self._begin))
        for i, block in enumerate(blocks):
            self._handles.append(block.register_forward_pre_hook(partial(self._enter, i)))
            self._handles.append(block.register_forward_hook(partial(self._leave, i), always_call=True))
        _offloaded.add(network)

    def close(self) -> None:
        """All weights back on the devices they came from; once is enough."""
        for handle in self._handles:
            handle.remove()
        if self._stream is not None:
            torch.cuda.synchronize(self.device)
        self._buffers, self._parts = list[_Buffer](), list[list[tuple[_Weight, Tensor]]]()
        with torch.inference_mode(False):
            for weight in self._weights:
                weight.tensor.data = weight.resting.to(weight.home)
        self._handles, self._weights = [], []
        _offloaded.discard(self.network)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _move(self, tensor: Tensor, place: torch.device) -> _Weight:
        """Where a tensor is between calls from now on."""
        home, resting = tensor.device, tensor.data.to(place)
        if place.type == "cpu" and self._stream is not None:
            resting = resting.pin_memory()
        tensor.data = resting
        self._weights.append(_Weight(tensor, home, resting))
        return self._weights[-1]

    def _buffer(self, block: int) -> _Buffer:
        return self._buffers[block % len(self._buffers)]

    def _begin(self, *_: object) -> None:
        """A call begins: the weights may have been changed since the last one."""
        for buffer in self._buffers:
            buffer.block = None
        self._fetch(range(len(self._buffers)))

    def _enter(self, block: int, *_: object) -> None:
        buffer = self._buffer(block)
        self._fetch([block])
        if buffer.filled is not None:
            torch.cuda.current_stream(self.device).wait_event(buffer.filled)
        for weight, view in self._parts[block]:
            weight.tensor.data = view
        self._fetch(range(block + 1, block + len(self._buffers)))

    def _leave(self, block: int, *_: object) -> None:
        for weight, _view in self._parts[block]:
            weight.tensor.data = weight.resting
        if (read := self._buffer(block).read) is not None:
            read.record(torch.cuda.current_stream(self.device))

    def _fetch(self, blocks: Sequence[int]) -> None:
        """Copies the weights of blocks that are not there yet, each as soon as its buffer's last block has run."""
        for block in blocks:
            if block >= len(self._parts) or (buffer := self._buffer(block)).block == block:
                continue
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                if self._stream is not None and buffer.read is not None and buffer.filled is not None:
                    self._stream.wait_event(buffer.read)
                for weight, view in self._parts[block]:
                    view.copy_(weight.resting, non_blocking=True)
                if self._stream is not None and buffer.filled is not None:
                    buffer.filled.record(self._stream)
            buffer.block = block
            self.fetched += 1


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def _room(tensor: Tensor) -> int:
    """Bytes that a tensor takes in a buffer."""
    return (-(-tensor.nbytes // _ALIGNED) + 1) * _ALIGNED


def _largest(network: PiD) -> int:
    """Bytes of a buffer that any block fits in."""
    return max(sum(map(_room, _tensors(block))) for block in blocks_of(network))


def _laid_out(weights: Sequence[_Weight], memory: Tensor) -> Iterator[Tensor]:
    """Tensors like the weights, one after the other in `memory`. Each begins at the same place of a cache line as its
    weight, which in a mapped file may be any: a processor's kernels round otherwise elsewhere."""
    start = 0
    for weight in weights:
        like = weight.resting
        shift = (like.data_ptr() - memory.data_ptr()) % _LINE
        first = start + (shift if shift % like.element_size() == 0 else 0)
        yield memory[first : first + like.nbytes].view(like.dtype).view(like.shape)
        start += _room(like)
