"""How a call of a network is computed, as an argument of that call: a network holds weights and nothing else."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pixdec.layers.attention import Kernel, attention


@dataclass(frozen=True)
class Context:
    """Processes that share every image: number `rank` of `count` computes a band of its rows of patches, whose queries
    see the keys and values of all bands. Each of them computes the text.

    `gather(band, axis, sizes)` puts the bands of all processes together along an axis, where they have `sizes`; its
    backward pass adds up what the processes found for each band.
    """

    rank: int
    count: int
    gather: Callable[[Tensor, int, Sequence[int]], Tensor]

    def bands(self, rows: int) -> list[range]:
        """The rows of patches of each process, as even as can be.

        Raises:
            ValueError: fewer rows than processes.
        """
        if rows < self.count:
            raise ValueError(
                f"{rows} rows of patches cannot be shared by {self.count} processes; take larger images, or fewer "
                "processes for each image (machine.context)"
            )
        edges = [rows * i // self.count for i in range(self.count + 1)]
        return [range(first, last) for first, last in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Execution:
    """How one call is computed. It changes time, memory and rounding, and nothing else.

    Attributes:
        kernel: computes the attention, see `pixdec.inference.kernels`.
        chunk: patches that parts with many values for each patch work on at a time; None for all at once.
        context: the processes that share each image (training); None for one alone.
    """

    kernel: Kernel = attention
    chunk: int | None = None
    context: Context | None = None

    def band(self, rows: int) -> range:
        """Which of an image's rows of patches are computed here: all of them, without a context."""
        return range(rows) if self.context is None else self.context.bands(rows)[self.context.rank]


PLAIN = Execution()
