"""Real processes that know each other, started as torchrun starts them; `script` runs in each of them."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Said:
    """How a process ended, and what it wrote."""

    code: int
    out: str
    err: str


def run_ring(script: Path, processes: int, *arguments: object, patience: float = 500) -> list[Said]:
    """What each of `processes` says that run `python script arguments`. None is left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ring = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env={**os.environ, **ring, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=patience) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Said(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]
