"""What the machine has: the device to take when none is named, whether its processor computes in bfloat16, its
memory given back, and all of it in words."""

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Lock

import torch

MEASURING = ("scipy", "scikit-image", "torchmetrics")
LIBRARIES = ("diffusers", "transformers", "safetensors", "numpy", "pillow", "torchao", "spandrel", "webdataset")


def best_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; one that emulates it is many times slower than in
    float32. `ATEN_CPU_CAPABILITY=avx2` makes it one that does not."""
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is quick on a device: not on a processor, nor on an NVIDIA GPU before Ampere, that emulates
    it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or has_bfloat16_units()


def release_memory() -> None:
    """Give back what models held that nothing refers to any more."""
    gc.collect()  # a model may be part of reference cycles, and a pipeline with hooks is
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


_reuse, _reusing = Lock(), 0


@contextmanager
def reused_memory() -> Generator[None]:
    """What is freed meanwhile stays with the process for its next tensor, and goes back to the system at the end.

    glibc otherwise returns each large block at once, and fresh pages cost a convolution network on a processor a third
    of its time. Elsewhere it does nothing."""
    global _reusing
    if not (libc := _glibc()):
        yield
        return
    with _reuse:
        _reusing += 1
        for option, value in _KEEP.items():
            libc.mallopt(option, value)
    try:
        yield
    finally:
        with _reuse:
            _reusing -= 1
            if not _reusing:
                for option, value in _RETURN.items():
                    libc.mallopt(option, value)
                libc.malloc_trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 2**30}
_RETURN = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25}  # where glibc's own end up when large blocks are freed


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def environment() -> dict[str, str]:
    """What results and times depend on, in words: versions, processor and devices (for issues, and beside figures)."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    units = "" if has_bfloat16_units() else "no "
    found = {
        "pixdec": metadata.version("pixdec"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads",
        "processor": f"{_processor()}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}, {units}bfloat16 units",
        "device": str(best_device()),
    }
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, capability {gpu.major}.{gpu.minor}"
    installed = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    found["libraries"] = ", ".join(f"{name} {installed[name]}" for name in LIBRARIES + MEASURING if name in installed)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough; not every library has a kind of its own for that."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def device_named(name: str | torch.device) -> torch.device:
    """The device of that name, which is there.

    Raises:
        ValueError: PyTorch does not know it, or it is not on this machine.
    """
    expected = "expected cpu, cuda, cuda:N or mps"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={str(name)!r}: no such device; {expected}") from error
    try:
        torch.empty(1, device=device)
    except Exception as error:  # PyTorch has no one kind for this
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"device={str(name)!r}: not available here ({line}); {expected}") from error
    return device
