"""One measurement in a process of its own: `python -m pixdec.bench.child RESULT`, with a job (`settings.Job`) as one
line of JSON on its standard input, which stays open as long as whoever asked is there. RESULT gets the outcome as JSON.

Its peak memory is therefore its own, and whatever ends it ends nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pixdec.bench.settings import Job
from pixdec.io.files import reason_of, replacing

if TYPE_CHECKING:
    import torch

STARTED = time.perf_counter()
SPARE = 0.9  # of the limit: who asked ends the process at the limit itself
# What libraries say when there is no memory, in errors that are not of a kind of their own.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory")


def main() -> None:
    """Reads the job, does it, writes the outcome."""
    result = Path(sys.argv[1])
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _be_the_first_to_go()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = {"status": "ok", **_do(job)}
    except Exception as error:
        outcome = {"status": "out of memory" if no_memory(error) else "failed", "reason": _reason(error)}
    with replacing(result) as temporary:
        temporary.write_text(json.dumps(outcome))


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


def _reason(error: Exception) -> str:
    """One line; the class as well where the text may not explain itself."""
    text = reason_of(error)
    if not isinstance(error, ValueError | OSError) and not no_memory(error):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 400 else f"{text[:400]}…"


def _leave_with_parent() -> None:
    """Ends the process when standard input is closed, as it is when whoever asked is gone."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def _be_the_first_to_go() -> None:
    """Should the system run out of memory, it is this process that it ends (Linux, proc(5))."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def _bound_memory(limit: int | None) -> None:
    """On a CPU an allocation that does not fit is refused, instead of the process being ended for it."""
    from pixdec.inference.limits import available_memory

    if sys.platform == "linux":
        most = limit or available_memory("cpu")
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _do(job: Job) -> dict[str, object]:
    import torch

    from pixdec.devices import best_device

    device = torch.device(job.device) if job.device is not None else best_device()
    if device.type == "cpu":
        _bound_memory(job.memory)
    elif device.type == "cuda":
        torch.cuda.set_device(device)
    return _look(job, device) if job.method is None else _measure(job, job.method, device)


def _look(job: Job, device: torch.device) -> dict[str, object]:
    """What will be measured on, and what of."""
    from pixdec.bench.machine import library_versions, machine_facts, version_facts
    from pixdec.bench.ours import DTYPES, open_decoder
    from pixdec.bench.roofline import measure_peaks

    machine = machine_facts(device)
    decoder = open_decoder(job.model, device, DTYPES[job.dtype]).decoder
    network, loaded = decoder.network, decoder.model
    model = {
        "name": loaded.name,
        "kind": loaded.kind,
        "version": loaded.version,
        "space": decoder.space.name,
        "scale": decoder.scale,
        "cell": decoder.space.factor * decoder.scale,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "steps": job.steps or (len(loaded.times) - 1 if loaded.kind == "student" else None),
    }
    found: dict[str, object] = {
        "device": str(device),
        "machine": machine,
        "versions": version_facts(),
        "libraries": library_versions(),
        "model": model,
    }
    if job.peaks:
        del decoder, network, loaded
        found["peaks"] = asdict(measure_peaks(device))
    return found


def _measure(job: Job, name: str, device: torch.device) -> dict[str, object]:
    import torch

    from pixdec.bench.beside import load_libraries, prepare_beside
    from pixdec.bench.measure import Gauge, run
    from pixdec.bench.names import OURS, parse_beside
    from pixdec.bench.ours import prepare_ours

    asked = None if name in OURS else parse_beside(name)
    if asked is not None:
        load_libraries(asked)
    gauge, decoder = Gauge(device), None
    if asked is None:
        method, decoder = prepare_ours(next(each for each in OURS if each == name), job, device)
    else:
        method = prepare_beside(asked, job, device)
    gauge.start(method)
    deadline = STARTED + SPARE * job.limit
    images, timing = run(method.call, device, warmup=job.warmup, runs=job.runs, deadline=deadline)
    memory = gauge.read(method)
    expected = (job.batch, 3, job.side, job.side)
    if tuple(images.shape) != expected:
        raise ValueError(f"gave images of shape {tuple(images.shape)} instead of {expected}")
    finite = bool(torch.isfinite(images).all())
    row: dict[str, object] = {**asdict(timing), "memory": asdict(memory), "finite": finite}
    if decoder is not None:
        from pixdec.bench.roofline import count

        counted = count(decoder, job, plain=name == "plain")
        if counted is not None:
            row["counted"] = asdict(counted)
    return row


if __name__ == "__main__":
    main()
