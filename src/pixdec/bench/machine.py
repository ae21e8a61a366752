"""What figures were measured on: the machine, the versions, and this package's own code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

import pixdec

LIBRARIES = ("diffusers", "transformers", "spandrel", "torchvision", "torchao", "triton", "pillow")
# Of these a measurement knows nothing.
_APART = ("cli", "evaluate", "serve", "train", "integrations")
_APART_IN_BENCH = (
    "memory", "names", "plans", "plot", "precision", "report", "rows", "run", "shortcuts", "tiles", "training",
)  # fmt: skip


def machine_facts(device: torch.device) -> dict[str, object]:
    """The device and what it lies in."""
    facts: dict[str, object] = {"device": device.type, "name": _processor()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["name"] = properties.name
        facts["memory"] = properties.total_memory
        facts["processor"] = _processor()
    facts["system"] = platform.system()
    facts["cores"] = _cores()
    facts["threads"] = torch.get_num_threads()
    facts["instructions"] = torch.backends.cpu.get_cpu_capability()
    return facts


def version_facts() -> dict[str, object]:
    """Versions of what every measurement uses; `code` is a digest of the modules of this package that do."""
    return {
        "pixdec": pixdec.__version__,
        "code": code_digest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that some methods use, of those that are installed."""
    found = dict[str, str]()
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """Twelve digits of SHA-256 over the names and bytes of the modules that a measurement runs."""
    digest, root = hashlib.sha256(), Path(pixdec.__file__).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in _APART or (parts[0] == "bench" and parts[-1] in _APART_IN_BENCH):
            continue
        digest.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
