"""The service on many machines: a Ray Serve application with one front, which speaks HTTP as `http` does, and as many
replicas of the engine as the load asks for, each with a device of its own.

    serve run pixdec.serve.ray_app:app config=pixdec.toml replicas=8 gpus=1

What a replica held when it died is run once more by another. Where not all models fit into a replica (`model_memory`),
a request goes to one that has its model. Jobs and their images stay in the front; there are no previews of steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, Field
from ray import exceptions, serve
from ray.serve.handle import DeploymentHandle

from pixdec.serve.engine import ATTEMPTS, Engine
from pixdec.serve.http import app_for
from pixdec.serve.jobs import Job, ServiceError, Work
from pixdec.serve.settings import ServeSettings, read_settings

_TOLD = ("result", "first", "size", "steps", "peak")


class Arguments(BaseModel, extra="forbid"):
    """What `serve run` takes: a file of settings, at most how many replicas, and of each its GPUs, its cores, and how
    many models it has room for, if not for all."""

    config: str | None = None
    replicas: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0)
    cpus: float = Field(default=1, gt=0)
    models: int = Field(default=3, ge=1)


async def _held(model: str) -> str:
    return model


class Replica:
    """An engine, with its worker processes. It tells Ray which models it used last."""

    def __init__(self, settings: ServeSettings, models: int):
        self.engine = Engine(settings).start()
        self.engine.wait_ready(settings.start)
        self.held: Any = serve.multiplexed(max_num_models_per_replica=models)(_held)

    async def describe(self) -> dict[str, dict[str, Any]]:
        """What is known of its models."""
        return self.engine.models

    async def run(self, work: Work, until: float) -> dict[str, Any] | ServiceError:
        """What became of a work that was to start by `until`, a time of day. Cancelling the call stops it."""
        if (left := until - time.time()) <= 0:
            return ServiceError("deadline_exceeded", "not started within its deadline")
        try:
            if self.engine.settings.model_memory is not None:
                await self.held(work.model)
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
                one = self._replicas
                if self.settings.model_memory is not None:
                    one = one.options(multiplexed_model_id=job.work.model)
                self._calls[job.id] = call = one.run.remote(job.work, until)
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


class _Front:
    """One for all: it knows the jobs."""

    def __init__(self, replicas: Any):
        self.replicas = replicas


def app(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` builds of `Arguments`."""
    asked = Arguments.model_validate(arguments)
    settings = read_settings(asked.config)
    batch = settings.batch_on("cuda" if asked.gpus else "cpu")
    decoders = serve.deployment(
        ray_actor_options={"num_gpus": asked.gpus, "num_cpus": asked.cpus},
        max_ongoing_requests=2 * batch,
        autoscaling_config={
            "min_replicas": min(2, asked.replicas),
            "max_replicas": asked.replicas,
            "target_ongoing_requests": batch,
        },
        health_check_period_s=5,
    )(Replica)

    def build() -> Any:
        return app_for(FrontEngine(settings, serve.get_deployment_handle("Replica")))

    front = serve.deployment(name="Front", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})(
        serve.ingress(build)(_Front)
    )
    return front.bind(decoders.bind(settings, asked.models))
