"""Many items over many machines: each is done by one of the workers that a Ray cluster has room for.

Ray's actors, not Ray Data: an item that kills its worker is to be a failure after the second time, where Ray Data tries
for ever or ends the run, and what is handed around are names of files, not tables.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from pixdec.io.files import first_line_of

T = TypeVar("T")
R = TypeVar("R")


def one_by_one(do: Callable[[T], R], todo: Sequence[T]) -> Iterator[tuple[T, R | Exception]]:
    """Do each of `todo` here; as `on_ray` otherwise."""
    for item in todo:
        try:
            done = do(item)
        except BrokenPipeError:
            raise
        except Exception as error:
            yield item, error
        else:
            yield item, done


def on_ray(open: Callable[[], Callable[[T], R]], todo: Sequence[T], address: str) -> Iterator[tuple[T, R | Exception]]:
    """Do each of `todo` on a Ray cluster, and yield what became of it, in the order in which they end.

    There is one worker for each GPU of the cluster, or for each core where it has none. Each calls `open` once, in the
    folder that this process is in, for what does one item; everything goes through pickle. An item whose worker dies is
    done once more, by the worker that takes its place.

    Args:
        open: such as a `functools.partial` of a function of a module. It fails for all.
        todo: the items.
        address: as `ray.init` takes it: host:port, ray://host:port, auto, or local for a cluster of this process.

    Raises:
        ValueError: Ray is not installed, or no cluster is there; or what `open` raises.
    """
    if not todo:
        return
    with _cluster(address) as ray:
        room, what = ray.cluster_resources(), "CPU"
        options: dict[str, Any] = {"num_cpus": 1}
        if room.get("GPU"):
            what, options = "GPU", {"num_cpus": 1, "num_gpus": 1}
        kind = ray.remote(_Worker).options(max_restarts=-1, max_task_retries=1, **options)
        left, running = iter(todo), dict[Any, tuple[Any, T]]()

        def give(worker: Any) -> None:
            for item in islice(left, 1):
                running[worker.do.remote(item)] = worker, item
                return
            ray.kill(worker)  # its room may be what the worker of a lost machine waits for

        for _ in range(min(len(todo), max(1, int(room.get(what, 1))))):
            give(kind.remote(open, Path.cwd()))
        try:
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                worker, item = running.pop(done)
                try:
                    found: R | Exception | _Unopened = ray.get(done)
                except ray.exceptions.RayActorError:
                    found = OSError("its worker died over it twice")
                except ray.exceptions.RayError as error:  # what came of it cannot be pickled
                    found = OSError(first_line_of(error))
                if isinstance(found, _Unopened):
                    raise found.error
                give(worker)
                yield item, found
        finally:
            for worker, _ in running.values():
                ray.kill(worker)


@dataclass
class _Unopened:
    error: Exception


class _Worker(Generic[T, R]):
    """What Ray starts in a process of its own."""

    def __init__(self, open: Callable[[], Callable[[T], R]], folder: Path):
        self.open, self.folder = open, folder
        self.one: Callable[[T], R] | None = None

    def do(self, item: T) -> R | Exception | _Unopened:
        try:
            if self.one is None:
                os.chdir(self.folder)
                self.one = self.open()
        except Exception as error:
            return _Unopened(error.with_traceback(None))
        try:
            return self.one(item)
        except Exception as error:
            return error.with_traceback(None)


@contextlib.contextmanager
def _cluster(address: str) -> Generator[Any]:
    """Ray, connected; if it was before, as it is."""
    try:
        import ray
    except ImportError:
        raise ValueError(f"ray={address}: Ray is not installed; pip install 'pixdec[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        reason = f"no Ray cluster answers there ({first_line_of(error)})"
        raise ValueError(f"ray={address}: {reason}; `ray start --head` starts one") from error
    try:
        yield ray
    finally:
        ray.shutdown()
