"""What a bench is asked to do, and one measurement of it as a child process is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pixdec.bench.names import OURS, Ours, parse_beside

SIDE_MULTIPLE = (
    64  # output pixels: whole latent cells at every factor and scale but SigLIP's, with and without enlarger
)

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class BenchSettings:
    """All that decides the figures besides the machine.

    Attributes:
        model: a decoder by name, file or folder; "random:v1" or "random:v1.5" for the released size without a file.
        sides: of the square outputs, in pixels.
        ours: see `names`. beside: baselines by name.
        device, dtype, steps: None takes the device that is fastest, the decoder's own precision there, its own steps.
        batch: images in a call.
        warmup: calls before those that count; the first of them is timed apart. runs: calls that count.
        limit: seconds that a measurement may take with loading; a run that would not fit any more is left out.
        memory: on a CPU, bytes that a measurement may allocate; None what is free when it starts.
    """

    model: str = "pixdec-nano"
    sides: tuple[int, ...] = (256, 512)
    ours: tuple[Ours, ...] = ("plain", "eager")
    beside: tuple[str, ...] = ()
    device: str | None = None
    dtype: Dtype | None = None
    steps: int | None = None
    batch: int = 1
    runs: int = 5
    warmup: int = 2
    limit: float = 600.0
    memory: int | None = None

    def __post_init__(self) -> None:
        if not self.sides or any(side < 1 or side % SIDE_MULTIPLE for side in self.sides):
            raise ValueError(f"--sides {_listed(self.sides)}: expected multiples of {SIDE_MULTIPLE} (output pixels)")
        if unknown := [name for name in self.ours if name not in OURS]:
            raise ValueError(f"--ours {unknown[0]}: expected some of {', '.join(OURS)}")
        for option, given in (("sides", self.sides), ("ours", self.ours), ("beside", self.beside)):
            if twice := [each for each in given if given.count(each) > 1]:
                raise ValueError(f"--{option} {twice[0]}: named twice")
        for option, value in (("batch", self.batch), ("runs", self.runs), ("warmup", self.warmup)):
            if value < 1:
                raise ValueError(f"--{option} {value}: expected at least 1")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps}: expected at least 1")
        if self.limit <= 0:
            raise ValueError(f"--limit {self.limit:g}: expected seconds above 0")
        if not self.ours and not self.beside:
            raise ValueError("nothing to measure; name something with --ours or --beside")
        for name in self.beside:
            parse_beside(name)

    def tasks(self) -> Iterator[tuple[str, int]]:
        """(method, side) in the order in which they are measured: small outputs first."""
        for side in sorted(self.sides):
            yield from ((method, side) for method in (*self.ours, *self.beside))


@dataclass(frozen=True)
class Job:
    """One measurement, or with `method` None a look at the device and the model. `device` and `dtype` are settled but
    for a look. `peaks`: of a look, measure what the device can do at most. `scale`: output side / side of the small
    image, the model's."""

    model: str
    method: str | None
    side: int
    device: str | None
    dtype: Dtype | None
    steps: int | None
    batch: int
    runs: int
    warmup: int
    limit: float
    memory: int | None
    scale: int = 4
    peaks: bool = False


def job_of(settings: BenchSettings, method: str | None, side: int = 0, *, peaks: bool = False) -> Job:
    """The job of one row, or of a look."""
    return Job(
        model=settings.model,
        method=method,
        side=side,
        device=settings.device,
        dtype=settings.dtype,
        steps=settings.steps,
        batch=settings.batch,
        runs=settings.runs,
        warmup=settings.warmup,
        limit=settings.limit,
        memory=settings.memory,
        peaks=peaks,
    )


def _listed(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values)) or "(none)"
