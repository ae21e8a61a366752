"""Seconds and bytes of one method, in a process of its own.

Seconds: of the device (events) on CUDA, of the clock elsewhere, always from an idle device to an idle device.

Bytes: on CUDA what PyTorch's allocator has handed out, at its most. On a CPU the resident set of the process, at its
most: its growth since before the weights were loaded, so that the libraries are apart. Where the system cannot forget
an earlier maximum, and on MPS, what is known is a lower or upper bound, and `how` says so.
"""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.devices import release_memory

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Method:
    """A method with its weights on the device, ready to be called.

    `call()` gives the images (B,3,H,W), float32 in [0,1] on the device. `networks`: whose weights are held. `inputs`:
    tensors that it begins with; `text`: caption embeddings among what it begins with, None without.
    """

    call: Callable[[], Tensor]
    networks: Sequence[nn.Module]
    inputs: Sequence[Tensor]
    text: Tensor | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes. `peak` is the most that was held at once, weights included, from the first call on. `weights`: of all
    parameters and buffers. `text`: of the caption embeddings. `activations`: the peak beyond what was held before the
    first call. `libraries`: of the process before it loaded anything, not in the peak; None where they do not count.
    `reserved`: what PyTorch's allocator took from the device, None elsewhere. `how`: what was counted."""

    peak: int
    weights: int
    text: int
    activations: int
    libraries: int | None
    reserved: int | None
    how: str


@dataclass(frozen=True)
class Timing:
    """Seconds: of the first call, which loads kernels and compiles; and of each call that counts. `clock`: the same
    calls by the clock, where `seconds` are of the device."""

    first: float
    seconds: tuple[float, ...]
    clock: tuple[float, ...]


def timed(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, float]:
    """What a call gives, its seconds on the device, and its seconds by the clock."""
    synchronize(device)
    started = time.perf_counter()
    if device.type != "cuda":
        result = call()
        synchronize(device)
        seconds = time.perf_counter() - started
        return result, seconds, seconds
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    result = call()
    end.record()
    torch.cuda.synchronize(device)
    return result, begin.elapsed_time(end) / 1e3, time.perf_counter() - started


def run(
    call: Callable[[], Tensor], device: torch.device, *, warmup: int, runs: int, deadline: float
) -> tuple[Tensor, Timing]:
    """The last result and the seconds of `runs` calls behind `warmup` others; fewer runs, but at least one, if another
    would likely end behind `deadline` (of time.perf_counter). A result is let go before the next call."""
    seconds, clock, first = list[float](), list[float](), 0.0
    for number in range(warmup + runs):
        result, took, by_clock = timed(call, device)
        if number == 0:
            first = by_clock  # compiling and loading keep the host busy, not the device
        if number >= warmup:
            seconds.append(took)
            clock.append(by_clock)
            if number + 1 == warmup + runs or time.perf_counter() + 1.1 * by_clock > deadline:
                return result, Timing(first, tuple(seconds), tuple(clock))
        del result
    raise AssertionError("at least one run")


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Gauge:
    """Reads memory around the life of a method: made before anything is loaded, `start` when all is loaded, `read`
    after the calls."""

    def __init__(self, device: torch.device):
        self.device = device
        _use_libraries(device)
        _settle(device)
        self.libraries = _resident() if device.type == "cpu" else None
        self.before = self.most_before = 0
        self.forgot = False

    def start(self, method: Method) -> None:
        """Everything is loaded: what comes on top of it are activations."""
        for tensor in (each for network in method.networks for each in _tensors(network)):
            if tensor.device.type == "cpu":  # a mapped file is not in memory before it is read
                tensor.detach().flatten().view(torch.uint8)[::4096].sum()
        _settle(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "mps":
            self.before = torch.mps.current_allocated_memory()
        else:
            self.forgot = _forget_maximum()
            self.before, self.most_before = _resident(), _most_resident()

    def read(self, method: Method) -> Memory:
        """The most since `start`."""
        weights = sum(tensor.nbytes for network in method.networks for tensor in _tensors(network))
        text = 0 if method.text is None else method.text.nbytes
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
            return Memory(peak, weights, text, peak - self.before, None, reserved, "allocated on the GPU")
        if self.device.type == "mps":
            peak = max(self.before, torch.mps.driver_allocated_memory())
            return Memory(peak, weights, text, peak - self.before, None, None, "held by the driver after the calls")
        assert self.libraries is not None
        most = _most_resident()
        if self.forgot:
            how, grown = "resident set", max(0, most - self.before)
        else:
            how, grown = "resident set; at least, where loading took more", max(0, most - self.most_before)
        peak = self.before - self.libraries + grown
        return Memory(peak, weights, text, grown, self.libraries, None, how)


def _tensors(network: nn.Module) -> Sequence[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _use_libraries(device: torch.device) -> None:
    """One small operation of each kind, so that code and workspaces that every method needs are there beforehand."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, 8, 16, 16, device=device, dtype=dtype)
        F.conv2d(x, torch.randn(8, 8, 3, 3, device=device, dtype=dtype))
        F.scaled_dot_product_attention(x, x, x)
        F.group_norm(F.silu(x @ x), 4)
    synchronize(device)


def _settle(device: torch.device) -> None:
    """Give back what nothing refers to, to the device and to the system."""
    synchronize(device)
    release_memory()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
        if trim is not None:
            trim(0)


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes that this process has held: on CUDA of the device, else its resident set."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _most_resident()


def _resident() -> int:
    found = _status("VmRSS")
    return found if found is not None else _most_resident()


def _most_resident() -> int:
    found = _status("VmHWM")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(name: str) -> int | None:
    if not STATUS.exists():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _forget_maximum() -> bool:
    """Sets VmHWM back to what is resident now; whether the system can (Linux, proc(5): clear_refs)."""
    try:
        FORGET.write_text("5")
    except OSError:
        return False
    return _status("VmHWM") is not None


__all__ = ["Gauge", "Memory", "Method", "Timing", "run", "synchronize", "timed"]
