"""CUDA graphs: a call of the network recorded once for a size and replayed, so that starting its hundreds of kernels
one by one costs no time. It matters for small images, where the kernels are short.

A graph keeps the memory of a whole call, and copies of what it is given, for as long as it is kept.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

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


class Graphed:
    """`network.velocity`, replayed from its second call on inputs of the same shapes on; the first one prepares what is
    kept for a size. The network must not change meanwhile."""

    def __init__(self, call: Callable[..., Tensor], record: Recorder = cuda_graph):
        self.call, self.record = call, record
        self._graphs: OrderedDict[object, tuple[list[Tensor], Callable[[], Tensor]] | None] = OrderedDict()

    def __call__(self, *given: Any) -> Tensor:
        tensors = list[Tensor]()
        _visit(given, lambda x: (tensors.append(x), x)[1])
        key = tuple((tuple(x.shape), x.dtype) for x in tensors), given[-1]
        if key not in self._graphs:
            self._graphs[key] = None
            return self.call(*given)
        if (recorded := self._graphs[key]) is None:
            reads = [x.clone() for x in tensors]
            places = iter(reads)
            static = _visit(given, lambda _: next(places))
            recorded = self._graphs[key] = reads, self.record(lambda: self.call(*static))
            self._graphs.move_to_end(key)
            kept = [each for each, graph in self._graphs.items() if graph is not None]
            for each in kept[:-KEPT]:
                del self._graphs[each]
        self._graphs.move_to_end(key)
        reads, replay = recorded
        for place, tensor in zip(reads, tensors, strict=True):
            place.copy_(tensor)
        return replay().clone()


def _visit(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same of changed tensors, in order, in tuples, lists and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_visit(each, change) for each in value)  # pyright: ignore[reportCallIssue]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _visit(getattr(value, field.name), change) for field in fields(value)})
    return value
