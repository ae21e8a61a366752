"""What figures were measured on."""

import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import pixdec

LIBRARIES = ("torch", "diffusers", "transformers", "spandrel", "torchao", "pillow")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """The device, what it lies in, and versions; `code` is a digest of the package's modules."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    name = (names if info.exists() else [platform.processor()])[0] or platform.machine()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    digest, root = hashlib.sha256(), Path(pixdec.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "host": f"{name}, {cores} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "system": f"{platform.system()}, Python {platform.python_version()}, CUDA {torch.version.cuda}",
        "pixdec": f"{pixdec.__version__} (code {digest.hexdigest()[:12]})",
    }
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return found | {"libraries": ", ".join(f"{each} {installed[each]}" for each in LIBRARIES if each in installed)}


def lines_of(facts: dict[str, Any]) -> list[str]:
    """As Markdown."""
    return [f"- {name}: {value}" for name, value in facts.items() if value is not None]
