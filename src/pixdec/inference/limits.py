"""How much memory may be taken, as the device tells.

Amounts are bytes.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch


def available_memory(device: str | torch.device) -> int:
    """Bytes that can be had on a device now, beside what this process has: of a CPU, what neither the machine nor the
    container's limit forbids. ValueError where it cannot be found out."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type == "cpu":
        return host_memory()
    raise ValueError(f"device {str(device)!r}: its memory cannot be read; state how much may be used, memory='8GB'")


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that can be had now. `root` holds proc and sys, which Linux has."""
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        if found is not None:
            return min([int(found[1]) * 1024, *_left_in_groups(root)])
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS tells only what there is in all
    raise ValueError("how much memory is free cannot be read here; state how much may be used, memory='8GB'")


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left to the control groups that this process is in, and to those around them: version 2, then 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        most, used, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        group = top / path.strip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(top):
                break
            try:
                limit, taken = (folder / most).read_text().strip(), int((folder / used).read_text())
                given_back = re.search(rf"^{cached} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
            except (OSError, ValueError):
                continue  # the uppermost has no limit, and a container may not see what is around it
            if limit.isdigit():
                yield max(0, int(limit) - taken + (int(given_back[1]) if given_back else 0))
