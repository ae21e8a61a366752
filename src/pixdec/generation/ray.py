"""Many items over many machines: each is done by one of the workers that a Ray cluster has room for.

Ray's actors, not Ray Data, which was tried (2.60): it repeats for ever what kills its worker, but for arguments that go
in 2.64; a machine that was lost took 3 of 20 items with it, none here; Ray Client (`ray://`) refuses its actors; and it
needs pandas and pyarrow, where what is handed around are names of files, not tables.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
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
    folder that this process is in, for what does one item; everything goes through pickle. An item whose worker dies,
    alone or with its machine, is done once more by another.

    Args:
        open: such as a `functools.partial` of a function of a module. It fails for all.
        todo: the items.
        address: as `ray.init` takes it: host:port, ray://host:port, auto, or local for a cluster of this process.

    Raises:
        ValueError: Ray is not installed, or no cluster is there.
        OSError: no worker starts; or what `open` raises.
    """
    if not todo:
        return
    with _cluster(address) as ray:
        room, what = ray.cluster_resources(), "CPU"
        options: dict[str, Any] = {"num_cpus": 1}
        if room.get("GPU"):
            what, options = "GPU", {"num_cpus": 1, "num_gpus": 1}
        kind = ray.remote(_Worker).options(**options)
        left = deque((item, 1) for item in todo)  # and which attempt at it
        running = dict[Any, tuple[Any, tuple[T, int] | None]]()

        def start() -> None:  # no item waits for a worker that has no room yet
            worker = kind.remote(open, Path.cwd())
            running[worker.ready.remote()] = worker, None

        for _ in range(min(len(todo), max(1, int(room.get(what, 1))))):
            start()
        try:
            while left or any(given for _, given in running.values()):
                (done,), _ = ray.wait(list(running), num_returns=1)
                worker, given = running.pop(done)
                try:
                    found: R | Exception | _Unopened = ray.get(done)
                except ray.exceptions.RayActorError as error:
                    if given is None:
                        if not running:
                            raise OSError(f"ray={address}: no worker starts ({first_line_of(error)})") from error
                        continue
                    start()
                    item, attempt = given
                    if attempt == 1:
                        left.appendleft((item, 2))
                    else:
                        yield item, OSError("its worker died over it twice")
                    continue
                except ray.exceptions.RayError as error:  # what came of it cannot be pickled
                    found = OSError(first_line_of(error))
                if isinstance(found, _Unopened):
                    raise found.error
                if left:
                    following = left.popleft()
                    running[worker.do.remote(following[0])] = worker, following
                else:
                    ray.kill(worker)  # its room may be what the worker of a lost machine waits for
                if given is not None:
                    yield given[0], found
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

    def ready(self) -> None:
        """It lives."""

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
