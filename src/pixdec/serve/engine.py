"""The engine: one queue, a worker process for each device, and batches of what fits together.

    with Engine(ServeSettings()) as engine:
        job = engine.submit(work)
        job.wait()  # Pixels

A job is decoded to the same bytes alone or in any batch (`InferenceConfig.exact`). A worker that dies or falls silent
is replaced, and what it held is run once more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

from pixdec.devices import best_device
from pixdec.serve.handle import WorkerHandle
from pixdec.serve.jobs import Job, Pixels, ServiceError, Work
from pixdec.serve.settings import ServeSettings

logger = logging.getLogger("pixdec.serve")
ATTEMPTS = 2  # at a job whose worker dies
TICK = 0.25  # seconds between looks at the time
USUAL_SPEED = 1e6  # pixels a second, until one is measured


class Engine:
    """Holds the queue, the workers and the jobs.

    Attributes:
        models: what is known of each decoder (`worker`'s description), once its worker has told.
        on_end: called with every job that ended.
        on_batch: called with the number of jobs in every batch that starts.
        on_unusable: called if a worker cannot load a model at its first start, with the reason.
    """

    def __init__(self, settings: ServeSettings | None = None):
        self.settings = (settings or ServeSettings()).on(str(best_device()))
        self.models: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self.on_end: Callable[[Job], object] = lambda job: None
        self.on_batch: Callable[[int], object] = lambda size: None
        self.on_unusable: Callable[[str], object] = logger.error
        self.speeds: dict[str, float] = {}
        self.draining = self.failed_at_close = False
        self.lock = threading.RLock()
        self._queue: list[Job] = []
        self._closed = threading.Event()
        entries = [*self.settings.models.values(), *self.settings.pipelines.values()]
        self.workers = [WorkerHandle(self, device) for device in dict.fromkeys(str(each.device) for each in entries)]
        self._watch = threading.Thread(target=self._watching, name="pixdec-watch", daemon=True)

    def start(self) -> Self:
        """Start the workers; they load while this returns."""
        for worker in self.workers:
            worker.thread.start()
        self._watch.start()
        return self

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        self.close()

    def device_of(self, work: Work) -> str:
        """The device that is next to work on it."""
        if work.kind == "generate" and work.pipeline is not None:
            return str(self.settings.pipelines[work.pipeline].device)
        return str(self.settings.models[work.model].device)

    # Asking

    def submit(self, work: Work, *, deadline: float | None = None, previews: bool = False) -> Job:
        """Put a work into the queue.

        Raises:
            ServiceError: there is no worker for it now, the queue is full, or would take longer than the deadline.
        """
        wait = min(deadline or self.settings.deadline, self.settings.deadline)
        with self.lock:
            if self.draining:
                raise ServiceError("shutting_down", "the service is shutting down")
            worker = self._worker_of(work)
            if worker.missing() is not None:
                raise ServiceError("not_ready", f"no worker for {work.model} now: {worker.missing()}")
            estimate = self.estimate(work)
            if len(self._queue) >= self.settings.queue or estimate > wait:
                message = f"{len(self._queue)} requests wait, for about {estimate:.0f} s; come again later"
                raise ServiceError("queue_full", message, retry_after=max(1, min(estimate, 30)))
            job = Job(work, wait, self._queue, previews=previews)
            self.jobs[job.id] = job
            self._queue.append(job)
        worker.wake()
        return job

    def estimate(self, work: Work) -> float:
        """Seconds until a work would start."""
        device = self.device_of(work)
        with self.lock:
            before = [job for job in self.jobs.values() if not job.ended and self.device_of(job.work) == device]
        return sum(job.work.pixels / (self.speed(job.work.model) or USUAL_SPEED) for job in before)

    def speed(self, model: str) -> float | None:
        """Pixels a second, as measured of late; before, of a small image at the start."""
        return self.speeds.get(model, self.models.get(model, {}).get("speed"))

    def cancel(self, job: Job) -> None:
        """End a job; if it runs, within a step."""
        with self.lock:
            if job in self._queue:
                self._queue.remove(job)
            elif not job.ended:
                self._worker_of(job.work).cancel(job)
            self.end(job, "cancelled", ServiceError("cancelled", "the job was cancelled"))

    def run(self, work: Work) -> Pixels:
        """The result of a work, when it is there.

        Raises:
            ServiceError: there is none.
        """
        return self.submit(work).wait()

    def missing(self) -> list[str]:
        """What keeps the service from being ready; nothing if it is."""
        if self.draining:
            return ["shutting down"]
        return [f"{worker.device}: {why}" for worker in self.workers if (why := worker.missing()) is not None]

    @property
    def queued(self) -> int:
        return len(self._queue)

    def wait_ready(self, timeout: float) -> None:
        """Wait for all workers.

        Raises:
            TimeoutError: some are still missing.
            ValueError: a model cannot be loaded.
        """
        end = time.monotonic() + timeout
        while missing := self.missing():
            for worker in self.workers:
                if worker.unusable is not None:
                    raise ValueError(worker.unusable)
            if time.monotonic() > end:
                raise TimeoutError(f"not ready after {timeout:.0f} s: {'; '.join(missing)}")
            time.sleep(0.02)

    # What workers and the watch do

    def take(self, worker: WorkerHandle) -> tuple[list[Job], float | None]:
        """The next batch of a worker: jobs of one key, the first of them the oldest. Or none, and for how many seconds
        to wait for more."""
        with self.lock:
            mine = [job for job in self._queue if self.device_of(job.work) == worker.device]
            if not mine:
                return [], None
            batch = [job for job in mine if job.work.batch_key == mine[0].work.batch_key][: worker.batch]
            left = mine[0].created + self.settings.delay - time.monotonic()
            if len(batch) < worker.batch and left > 0:
                return [], left
            now = time.monotonic()
            for job in batch:
                self._queue.remove(job)
                job.state, job.attempts = "running", job.attempts + 1
                job.seconds["queue"] = now - job.created
        self.on_batch(len(batch))
        for job in batch:
            job.tell("state")
        return batch, None

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Jobs whose worker has died: once more, or failed."""
        with self.lock:
            for job in jobs:
                if job.ended:
                    continue
                if job.attempts >= ATTEMPTS or self.draining:
                    self.end(job, "failed", ServiceError("worker_lost", "the worker died over this request"))
                else:
                    job.state = "queued"
                    self._queue.insert(0, job)

    def queue_again(self, job: Job, work: Work) -> None:
        """A job whose pipeline is done, for its decoder."""
        with self.lock:
            job.work, job.state, job.attempts = work, "queued", 0
            self._queue.append(job)
        self._worker_of(work).wake()

    def end(self, job: Job, state: Any, failure: ServiceError | None = None) -> None:
        """A job has ended."""
        if not job.ended:
            job.end(state, failure)
            self.on_end(job)

    def measured(self, work: Work, seconds: float, images: int) -> None:
        """How long images of a work took, for the estimates to come."""
        speed = work.pixels * images / max(seconds, 1e-3)
        self.speeds[work.model] = 0.8 * self.speeds.get(work.model, speed) + 0.2 * speed

    def _worker_of(self, work: Work) -> WorkerHandle:
        device = self.device_of(work)
        return next(worker for worker in self.workers if worker.device == device)

    def _watching(self) -> None:
        while not self._closed.wait(TICK):
            now = time.monotonic()
            for worker in self.workers:
                worker.look(now)
            with self.lock:
                for job in [job for job in self._queue if now > job.deadline]:
                    self._queue.remove(job)
                    failure = ServiceError("deadline_exceeded", "not started within its deadline")
                    self.end(job, "expired", failure)
                self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop results that are too old or too many: the record stays as long again, and says so."""
        kept = 0
        for job in reversed(list(self.jobs.values())):
            if job.ended_at is None:
                continue
            kept += sum(len(each.data) for each in (job.result, job.first) if each is not None)
            age = now - job.ended_at
            if age > self.settings.keep or kept > self.settings.keep_bytes:
                job.result = job.first = None
                job.work = replace(job.work, data=b"")
                job.state = "expired" if job.state == "done" else job.state
            if age > 2 * self.settings.keep:
                del self.jobs[job.id]

    # The end

    def drain(self, grace: float | None = None) -> bool:
        """Take nothing new, wait for what is there, and fail what is left after `grace` seconds. Whether all was
        done."""
        self.draining = True
        end = time.monotonic() + (self.settings.grace if grace is None else grace)
        while (left := [job for job in list(self.jobs.values()) if not job.ended]) and time.monotonic() < end:
            time.sleep(0.05)
        with self.lock:
            for job in left:
                self.end(job, "failed", ServiceError("shutting_down", "the service shut down first"))
            self._queue.clear()
        self.failed_at_close = self.failed_at_close or bool(left)
        return not left

    def close(self) -> None:
        """Stop the workers."""
        self.drain(0)
        self._closed.set()
        for worker in self.workers:
            worker.close()
