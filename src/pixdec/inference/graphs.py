"""CUDA graphs: a call of the network recorded once for a size and replayed, so that starting its hundreds of kernels
one by one costs no time. It matters for small images, where the kernels are short.

A graph keeps the memory of a whole call, and copies of what it is given, for as long as it is kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import ref

import torch
from torch import Tensor

from pixdec.models.adapter import Injected
from pixdec.models.execution import PLAIN, Execution
from pixdec.models.pid import Condition, PiD

KEPT = 2  # graphs, the last used ones

# Runs a computation, and returns what runs the same again, on the same tensors, and gives its result.
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A `Recorder` of CUDA graphs. `run` must have run before, so that nothing is made for the first time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def again() -> Tensor:
        graph.replay()
        return result

    return again


@dataclass
class _Recorded:
    """A recorded call: the tensors it reads, those that were last copied into them, and its replay."""

    reads: Sequence[Tensor]
    copied: list[ref[Tensor] | None]
    replay: Callable[[], Tensor]

    def __call__(self, given: Sequence[Tensor]) -> Tensor:
        for i, (place, tensor) in enumerate(zip(self.reads, given, strict=True)):
            last = self.copied[i]
            if i < 2 or last is None or last() is not tensor:  # all but x_t and t is the same in all steps of a decode
                place.copy_(tensor)
                self.copied[i] = ref(tensor)
        return self.replay().clone()


class GraphedVelocity:
    """`network.velocity`, replayed from its second call on inputs of the same shapes on.

    The first call on new shapes runs as ever, and prepares what the network keeps for a size; the second is recorded.
    What the network is must not change meanwhile: `forget` after weights were replaced or other kernels chosen.
    """

    def __init__(self, network: PiD, record: Recorder = cuda_graph):
        self.network, self.record = network, record
        self._seen: set[object] = set()
        self._graphs: OrderedDict[object, _Recorded] = OrderedDict()

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        text: Tensor | None,
        condition: Condition,
        sigma: Tensor,
        how: Execution = PLAIN,
    ) -> Tensor:
        """As `PiD.velocity`."""
        given = [x_t, t, sigma, *([] if text is None else [text]), *_tensors_of(condition)]
        key = (how, text is None, *((tuple(x.shape), x.dtype) for x in given))
        if key not in self._seen:
            self._seen.add(key)
            return self.network.velocity(x_t, t, text, condition, sigma, how)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(given, text is not None, condition, how)
            if len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key](given)

    def forget(self) -> None:
        """Drops all graphs and their memory."""
        self._graphs.clear()
        self._seen.clear()

    def _recorded(self, given: Sequence[Tensor], with_text: bool, condition: Condition, how: Execution) -> _Recorded:
        reads = [x.clone() for x in given]
        x_t, t, sigma, *rest = reads
        text = rest.pop(0) if with_text else None
        static = _rebuilt(condition, rest)
        replay = self.record(lambda: self.network.velocity(x_t, t, text, static, sigma, how))
        return _Recorded(reads, [ref(x) for x in given], replay)


def _tensors_of(condition: Condition) -> list[Tensor]:
    injected = [x for each in condition.tokens or () for x in (each.tokens, each.content)]
    return [condition.features, *([] if condition.base is None else [condition.base]), *injected]


def _rebuilt(condition: Condition, tensors: Sequence[Tensor]) -> Condition:
    """A condition like this one, of other tensors, in the order of `_tensors_of`."""
    features, *rest = tensors
    base = None if condition.base is None else rest.pop(0)
    pairs = zip(rest[::2], rest[1::2], strict=True)
    tokens = None if condition.tokens is None else [Injected(*pair) for pair in pairs]
    return replace(condition, features=features, base=base, tokens=tokens)
