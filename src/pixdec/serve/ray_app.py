"""The service on many machines: a Ray Serve application with one front, which speaks HTTP as `http` does, and as many
replicas of the engine as the load asks for, each with a device of its own.

    serve run pixdec.serve.ray_app:app config=pixdec.toml replicas=8 gpus=1

What a replica held when it died is run once more by another. Jobs and their images stay in the front; there are no
previews of steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import exceptions, serve
from ray.serve.handle import DeploymentHandle

from pixdec.serve.engine import ATTEMPTS, Engine
from pixdec.serve.http import app_for
from pixdec.serve.jobs import Job, ServiceError, Work
from pixdec.serve.settings import ServeSettings, read_settings

_TOLD = ("result", "first", "size", "steps", "peak")


class Replica:
    """An engine, with its worker processes."""

    def __init__(self, settings: ServeSettings):
        self.engine = Engine(settings).start()
        self.engine.wait_ready(settings.start)

    async def describe(self) -> dict[str, dict[str, Any]]:
        """What is known of its models."""
        return self.engine.models

    async def run(self, work: Work, until: float) -> dict[str, Any] | ServiceError:
        """What became of a work that was to start by `until`, a time of day. Cancelling the call stops it."""
        if (left := until - time.time()) <= 0:
            return ServiceError("deadline_exceeded", "not started within its deadline")
        try:
            job = self.engine.submit(work, deadline=left)
            try:
                await asyncio.to_thread(job.wait)
            finally:
                if not job.ended:
                    self.engine.cancel(job)
        except ServiceError as failure:
            return failure
        return {"seconds": job.seconds, **{name: getattr(job, name) for name in _TOLD}}

    def check_health(self) -> None:
        """Ray replaces a replica whose workers stay away for three of these."""
        if missing := self.engine.missing():
            raise RuntimeError("; ".join(missing))


class FrontEngine(Engine):
    """The engine as `http` knows it, whose works are done by replicas."""

    def __init__(self, settings: ServeSettings, replicas: DeploymentHandle[Any]):
        super().__init__(settings)
        self.workers, self._replicas, self._calls = [], replicas, dict[str, Any]()
        self._pool = ThreadPoolExecutor(settings.queue)
        self._watch.start()
        threading.Thread(target=self._describe, daemon=True).start()

    def _describe(self) -> None:
        self.models = self._replicas.describe.remote().result()

    def missing(self) -> list[str]:
        """What keeps it from being ready."""
        return super().missing() if self.models else ["no replica has started"]

    def submit(self, work: Work, *, deadline: float | None = None, previews: bool = False) -> Job:
        """Give a work to a replica.

        Raises:
            ServiceError: as many wait as may.
        """
        if self.missing():
            raise ServiceError("not_ready", self.missing()[0])
        with self.lock:
            if sum(not job.ended for job in self.jobs.values()) >= self.settings.queue:
                raise ServiceError("queue_full", f"{self.settings.queue} requests wait")
            job = Job(work, min(deadline or self.settings.deadline, self.settings.deadline), previews=previews)
            self.jobs[job.id] = job
        self._pool.submit(self._run, job)
        return job

    def cancel(self, job: Job) -> None:
        """End a job."""
        self.end(job, "cancelled", ServiceError("cancelled", "the job was cancelled"))
        if (call := self._calls.get(job.id)) is not None:
            call.cancel()

    def _run(self, job: Job) -> None:
        found: dict[str, Any] | ServiceError = ServiceError("worker_lost", "the replicas died over it")
        for _ in range(ATTEMPTS):
            if job.ended:
                return
            try:
                job.state, job.attempts = "running", job.attempts + 1
                until = time.time() + job.deadline - time.monotonic()
                self._calls[job.id] = call = self._replicas.run.remote(job.work, until)
                found = call.result()
                break
            except exceptions.RayActorError:  # it died: another one
                continue
            except Exception as error:
                found = ServiceError("internal", f"the replica failed ({type(error).__name__})")
                break
            finally:
                self._calls.pop(job.id, None)
        if isinstance(found, ServiceError):
            self.end(job, "failed", found)
            return
        job.seconds.update(found.pop("seconds"))
        for name, value in found.items():
            setattr(job, name, value)
        job.step = job.steps or 0
        self.end(job, "done")


def application(settings: ServeSettings, replicas: int = 1, gpus: float = 0, cpus: float = 1) -> serve.Application:
    """The application: up to so many replicas, with so many GPUs and cores each."""
    batch = settings.batch_on("cuda" if gpus else "cpu")
    decoders = serve.deployment(
        ray_actor_options={"num_gpus": gpus, "num_cpus": cpus},
        max_ongoing_requests=2 * batch,
        autoscaling_config={
            "min_replicas": min(2, replicas),
            "max_replicas": replicas,
            "target_ongoing_requests": batch,
        },
        health_check_period_s=5,
    )(Replica)

    def build() -> Any:
        return app_for(FrontEngine(settings, serve.get_deployment_handle("Replica")))

    front = serve.deployment(name="Front", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})(
        serve.ingress(build)(_Front)
    )
    return front.bind(decoders.bind(settings))


class _Front:
    """One for all: it knows the jobs."""

    def __init__(self, replicas: Any):
        self.replicas = replicas


def app(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` builds: `config`, `replicas`, `gpus` and `cpus` of a replica."""
    settings = read_settings(arguments.get("config"))
    numbers = int(arguments.get("replicas", 1)), float(arguments.get("gpus", 0)), float(arguments.get("cpus", 1))
    return application(settings, *numbers)
