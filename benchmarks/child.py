"""One row in a process of its own: `python -m benchmarks.child RESULT`.

Standard input gives the job as a line of JSON (see `speed.run_child`), and stays open as long as the parent lives.
RESULT gets the outcome as JSON. So the peak is the row's own, and whatever ends the process ends nothing else.

Seconds are of the device (events) on CUDA, of the clock elsewhere, always from an idle device to an idle device. Bytes
are on CUDA what PyTorch's allocator has handed out, at its most; on a CPU the most that was resident, less what was
before weights were loaded; on MPS what the driver holds after the calls.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.facts import machine_facts
from benchmarks.methods import DTYPES, Method, load_libraries, open_decoder, prepare
from benchmarks.speed import Settings
from pixdec.devices import best_device, is_out_of_memory, release_memory
from pixdec.inference.limits import available_memory
from pixdec.inference.quantize import stored
from pixdec.io.files import reason_of

SPARE = 0.9  # of the limit: the parent ends the process at the limit itself
PROC = Path("/proc/self")


def main() -> None:
    """Read the job, do it, write the outcome."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if PROC.exists():
        (PROC / "oom_score_adj").write_text("1000")  # where memory runs out, it is this process that is ended
    settings = Settings(**job["settings"])
    try:
        device = torch.device(settings.device) if settings.device is not None else best_device()
        outcome = _look(settings, device) if job["method"] is None else _row(settings, job, device)
        outcome = {"status": "ok", **outcome}
    except Exception as error:  # whatever it is, it is this row's result
        text = f"{type(error).__name__}: {reason_of(error)}"[:400]
        outcome = {"status": "out of memory" if is_out_of_memory(error) else "failed", "reason": text}
    Path(sys.argv[1]).write_text(json.dumps(outcome))


def _leave_with_parent() -> None:
    """End the process when standard input is closed, as it is when the parent is gone."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def _look(settings: Settings, device: torch.device) -> dict[str, Any]:
    decoder, _ = open_decoder(settings.model, DTYPES[settings.dtype], device)
    millions = sum(parameter.numel() for parameter in decoder.network.parameters()) / 1e6
    dtype = str(decoder.dtype).removeprefix("torch.")
    steps = settings.steps or len(decoder.model.times) - 1
    return {"network": f"{decoder.model.name}, {millions:,.1f} M, {dtype}, {steps} steps", **machine_facts(device)}


def _row(settings: Settings, job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if device.type == "cpu" and sys.platform == "linux":  # what does not fit is refused, instead of killing
        most = available_memory("cpu")
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    load_libraries(job["method"])
    x = torch.randn(1, 8, 16, 16, device=device)  # code and workspaces that every method needs
    F.group_norm(F.conv2d(F.scaled_dot_product_attention(x, x, x), x[0, :, None, :3, :3], groups=8) @ x[..., :14, :], 4)
    _settle(device)
    libraries = _resident("VmRSS")
    method = prepare(job["method"], settings.model, job["side"], settings.steps, DTYPES[settings.dtype], device)
    tensors = [tensor for network in method.networks for tensor in stored(network)]
    for tensor in tensors:
        if tensor.device.type == "cpu":  # a mapped file is not in memory before it is read
            tensor.detach().flatten().view(torch.uint8)[::4096].sum()
    _settle(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PROC.exists():
        (PROC / "clear_refs").write_text("5")  # VmHWM, the most resident, begins anew (Linux, proc(5))
    first, seconds = timed_calls(method, settings, job["side"], device, job["started"] + SPARE * settings.limit)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = torch.mps.driver_allocated_memory() if device.type == "mps" else _resident("VmHWM") - libraries
    return {"first": first, "seconds": seconds, "peak": peak, "weights": sum(each.nbytes for each in tensors)}


def timed_calls(
    method: Method, settings: Settings, side: int, device: torch.device, deadline: float
) -> tuple[float, list[float]]:
    """Seconds of the first call by the clock, and of each that counts; but one, they end before the deadline."""
    first, seconds = 0.0, list[float]()
    for number in range(settings.warmup + settings.runs):
        started = time.perf_counter()
        images, took = timed(method.call, device)
        by_clock = time.perf_counter() - started
        if tuple(images.shape) != (1, 3, side, side) or not bool(torch.isfinite(images).all()):
            raise ValueError(f"gave {tuple(images.shape)}, expected finite images (1, 3, {side}, {side})")
        del images  # before the next call
        if number == 0:
            first = by_clock  # compiling and loading keep the host busy, not the device
        if number >= settings.warmup:
            seconds.append(took)
            if time.time() + 1.1 * by_clock > deadline:
                break
    return first, seconds


def timed(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """What a call gives, and its seconds."""
    _synchronize(device)
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        result = call()
        end.record()
        _synchronize(device)
        return result, begin.elapsed_time(end) / 1e3
    started = time.perf_counter()
    result = call()
    _synchronize(device)
    return result, time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _settle(device: torch.device) -> None:
    """Give back what nothing refers to, to the device and to the system."""
    _synchronize(device)
    release_memory()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _resident(name: str) -> int:
    """Bytes, by a name of Linux's proc(5); elsewhere the most since the process began."""
    if PROC.exists():
        lines = (PROC / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
