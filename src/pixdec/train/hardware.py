"""Hardware that a plan is made for: what one process has, and how much of it this kind of network is known to use.

Peaks are the makers' figures for dense products. Of the NVIDIA devices: the data sheets of the H100 and H200 (SXM), the
A100 (80 GB SXM), HGX B200, and the RTX 5090's architecture paper. Memory is what a program finds free, which is less
than what the name says.

The shares are derived, not assumed, where published figures allow it: PiD's decodes of 2048 x 2048 in four steps
(arXiv 2605.23902: H100 446 ms compiled, 797 ms not; GB200 211 and 505; RTX 5090 979 and 1389) and what
`pixdec.models.cost` counts for them. Compiled, all time is taken as that of products and attention; the rest of the
time without compilation as that of the other operations, which move 210 GB a call where they are written as the
original has them (160 GB as they are written here).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pixdec.models.cost import Work

GIB = 2**30
RESERVE = 0.08  # of a device's memory
PROCESS = 0.4 * GIB  # of the libraries in a process on a CPU


@dataclass(frozen=True)
class Hardware:
    """What one process has.

    Attributes:
        low, single: peak FLOP/s of products in 16-bit and in float32.
        bandwidth: of the memory, bytes/s.
        memory: bytes that a program can have.
        products: share of the peak that products and attention reach.
        moving: share of the bandwidth that other operations reach, one by one.
        source: of the shares.
    """

    name: str
    low: float
    single: float
    bandwidth: float
    memory: float
    products: float
    moving: float
    source: str

    def __post_init__(self) -> None:
        for name in ("low", "single", "bandwidth", "memory", "products", "moving"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")

    @property
    def reserve(self) -> float:
        """Bytes for the driver, libraries, exchange buffers and fragmentation: an assumption."""
        return PROCESS if self.is_cpu else RESERVE * self.memory

    @property
    def is_cpu(self) -> bool:
        """Whether it is one, by its name."""
        return self.name.startswith("cpu")

    def seconds(self, work: Iterable[Work], *, compiled: bool = False) -> float:
        """How long the work takes. `compiled`: what is no product is fused into what is."""
        total = 0.0
        for each in work:
            if each.kind != "other":
                peak = self.low if each.dtype.itemsize == 2 else self.single
                total += each.flops / (peak * self.products)
            elif not compiled:
                total += each.moved / (self.bandwidth * self.moving)
        return total


_DECODES = "from published decodes of PiD on this kind of device"
_MEASURED = "products of 2304x192 by 192x576 and sums of 16 MB, measured on one core of an AMD EPYC of Zen 4"

PRESETS: Mapping[str, Hardware] = {
    each.name: each
    for each in (
        Hardware("h100", 989e12, 67e12, 3.35e12, 79 * GIB, 0.40, 0.62, _DECODES),
        Hardware("h200", 989e12, 67e12, 4.8e12, 139 * GIB, 0.40, 0.62, "those of the H100, the same chip"),
        Hardware("a100", 312e12, 19.5e12, 2.04e12, 79 * GIB, 0.50, 0.60, "assumed"),
        Hardware("b200", 2250e12, 75e12, 7.7e12, 178 * GIB, 0.34, 0.31, "those of the GB200, the same chip"),
        Hardware("rtx-5090", 209.5e12, 104.8e12, 1.79e12, 31 * GIB, 0.87, 0.99, _DECODES),
        Hardware("cpu-core", 200e9, 84e9, 20e9, 8 * GIB, 1.0, 1.0, _MEASURED),
        Hardware("cpu-2-core", 400e9, 168e9, 30e9, 16 * GIB, 1.0, 1.0, f"{_MEASURED}; twice that, bandwidth assumed"),
    )
}


def hardware(name: str) -> Hardware:
    """A preset; "h100:0.3" is one whose products reach that share of the peak; "TFLOP/s:GiB:share", such as
    "312:40:0.4", is a device of one's own, its memory as fast as that of a device of so many TFLOP/s commonly is.

    Raises ValueError for a name or numbers that mean nothing.
    """
    first, *rest = name.split(":")
    try:
        numbers = [float(each) for each in (rest if first in PRESETS else (first, *rest))]
    except ValueError:
        numbers = []
    if first in PRESETS and len(numbers) == len(rest) <= 1:
        found = PRESETS[first]
        return replace(found, products=numbers[0], source="as given") if numbers else found
    if len(numbers) == 3:
        peak = numbers[0] * 1e12
        return Hardware(name, peak, peak / 16, peak / 200, numbers[1] * GIB, numbers[2], 0.6, "as given")
    raise ValueError(
        f"hardware {name!r}: expected one of {', '.join(PRESETS)}, one of them with a share such as h100:0.3, or "
        "TFLOP/s:GiB:share such as 312:40:0.4"
    )


__all__ = ["GIB", "PRESETS", "Hardware", "hardware"]
