"""A worker process as the engine sees it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import threading
import time
from dataclasses import replace
from multiprocessing import connection as pipes
from typing import TYPE_CHECKING, Any

from pixdec.serve.jobs import Job
from pixdec.serve.worker import run_worker

if TYPE_CHECKING:
    from pixdec.serve.engine import Engine

logger = logging.getLogger("pixdec.serve")


class WorkerHandle:
    """The process, and the thread that feeds it and reads what it says."""

    def __init__(self, engine: Engine, device: str):
        self.engine, self.device, self.batch = engine, device, engine.settings.batch_on(device)
        self.thread = threading.Thread(target=self._run, name=f"pixdec-{device}", daemon=True)
        self.process: Any = None
        self.restarts = 0
        self.memory = 0
        self.loaded: list[str] = []
        self.unusable: str | None = None  # why a model cannot be loaded
        self._ready = self._closed = False
        self._running: dict[str, Job] = {}
        self._beat: Any = None
        self._started = 0.0
        self._sending = threading.Lock()
        self._pipe: Any = None
        self._woken, self._waking = os.pipe()
        os.set_blocking(self._waking, False)

    @property
    def running(self) -> int:
        return len(self._running)

    def wake(self) -> None:
        """There is something to do."""
        with contextlib.suppress(BlockingIOError):  # it has been told often enough
            os.write(self._waking, b"!")

    def missing(self) -> str | None:
        """Why it takes no work now."""
        if self.unusable is not None:
            return self.unusable
        if self.process is None or not self.process.is_alive():
            return "its worker is being started"
        if not self._ready:
            return "its worker is loading"
        silent = time.monotonic() - self._beat.value
        return f"its worker has been silent for {silent:.0f} s" if silent > self.engine.settings.silence else None

    def cancel(self, job: Job) -> None:
        """Tell the process that a job is not wanted."""
        if job.id in self._running:
            with contextlib.suppress(OSError, ValueError):
                self._send("cancel", job.id)

    def look(self, now: float) -> None:
        """Kill a process that has been silent for too long, or never began."""
        if self.process is None or self._closed:
            return
        settings = self.engine.settings
        silent = now - max(self._beat.value, self._started)
        if (self._ready and silent > 3 * settings.silence) or (
            not self._ready and now - self._started > settings.start
        ):
            logger.error("worker %s: silent for %.0f s, killed", self.device, silent)
            self.process.kill()

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self.wake()
        if self.process is not None:
            self.process.kill()
            self.process.join(5)
        self.thread.join(5)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._start()
                self._serve()
            except (EOFError, OSError) as error:
                if self.unusable is not None and self.restarts == 0:
                    self.engine.on_unusable(self.unusable)
                elif not self._closed:
                    logger.error("worker %s: %s", self.device, self.unusable or f"died ({type(error).__name__})")
            finally:
                self._ready = False
                self.process.kill()
                self.process.join()
            self.restarts += 1
            lost, self._running = list(self._running.values()), {}
            self.engine.put_back(lost)
            if not lost and self.restarts > 2:
                time.sleep(min(30, self.restarts / 2))  # it may never start: a model is missing

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._beat = context.Value("d", 0.0, lock=False)
        settings, mine = self.engine.settings, dict[str, Any]()
        for kind in ("models", "pipelines"):
            mine[kind] = {n: e for n, e in getattr(settings, kind).items() if e.device == self.device}
        arguments = theirs, settings.model_copy(update=mine), self.device, self._beat
        self.process = context.Process(target=run_worker, args=arguments, name=f"pixdec-{self.device}", daemon=True)
        self._started, self._pipe = time.monotonic(), ours
        self.process.start()
        theirs.close()

    def _send(self, *message: object) -> None:
        with self._sending:
            self._pipe.send_bytes(pickle.dumps(message, protocol=5))

    def _serve(self) -> None:
        timeout: float | None = None
        idle = False
        while not self._closed:
            for source in pipes.wait([self._pipe, self._woken], timeout):
                if source is self._pipe:
                    message = pickle.loads(self._pipe.recv_bytes())
                    idle = idle or message[0] in ("ready", "idle")
                    self._heard(*message)
                else:
                    os.read(self._woken, 4096)
            timeout = None
            if idle:
                batch, timeout = self.engine.take(self)
                if batch:
                    idle = False
                    self._running = {job.id: job for job in batch}
                    self._send("work", [(job.id, job.work, job.previews) for job in batch])
                    for job in batch:
                        if job.ended:  # cancelled meanwhile
                            self.cancel(job)

    def _heard(self, what: str, *said: Any) -> None:
        if what == "ready":
            self.engine.models.update(said[0])
            self._ready, self.unusable = True, None
        elif what == "unusable":
            self.unusable = said[0]
        elif what == "models":
            self.loaded, self.memory = said
        elif what == "idle":
            self._running = {}
        elif (job := self._running.get(said[0])) is not None and not job.ended:
            self._heard_of(job, what, *said[1:])

    def _heard_of(self, job: Job, what: str, *said: Any) -> None:
        if what == "started":
            seconds, job.size, job.first = said
            job.seconds.update(seconds)
        elif what == "step":
            job.step, job.steps, preview = said
            if preview is not None:
                job.tell("preview", step=job.step, steps=job.steps, image=preview)
            job.tell("state")
        elif what == "latent":
            data, shape, seconds = said
            job.seconds["generate"] = seconds
            self._running.pop(job.id)
            self.engine.queue_again(job, replace(job.work, kind="decode", data=data, shape=shape, options={}))
        elif what == "done":
            job.result, seconds, job.peak = said
            job.seconds.update(seconds)
            job.step = job.steps = said[0].settings["steps"]
            self.engine.measured(job.work, seconds["decode"], sum(not other.ended for other in self._running.values()))
            self.engine.end(job, "done")
        elif what == "failed":
            self.engine.end(job, "failed", said[0])
