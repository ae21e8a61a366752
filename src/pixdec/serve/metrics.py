"""What Prometheus reads of a service."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pixdec.serve.engine import Engine
from pixdec.serve.jobs import Job

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_OF_WORKERS = (
    ("pixdec_worker_memory_bytes", "Weights that a worker holds", "memory"),
    ("pixdec_worker_restarts", "Times that a worker was replaced", "restarts"),
    ("pixdec_running", "Images that a worker decodes now", "running"),
)


class Metrics(Collector):
    """Counts what an engine does, and reads its state when it is asked."""

    def __init__(self, engine: Engine):
        self.engine, self.registry = engine, CollectorRegistry()
        self.seconds = Histogram(
            "pixdec_request_duration_seconds",
            "Time of requests by stage",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "pixdec_batch_size",
            "Images that were decoded together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        labels = ["model", "kind"]
        self.images = Counter("pixdec_images_total", "Images made", labels, registry=self.registry)
        self.pixels = Counter("pixdec_pixels_total", "Pixels made", labels, registry=self.registry)
        self.failures = Counter("pixdec_failures_total", "Failed requests", ["reason"], registry=self.registry)
        self.registry.register(self)
        engine.on_end, engine.on_batch = self.ended, self.batches.observe

    def ended(self, job: Job) -> None:
        """Count a job."""
        for stage, seconds in job.seconds.items():
            self.seconds.labels(stage).observe(seconds)
        job.written = self.seconds.labels("write").observe
        if job.failure is not None:
            self.failures.labels(job.failure.code).inc()
        elif job.size is not None:
            self.images.labels(job.work.model, job.work.kind).inc()
            self.pixels.labels(job.work.model, job.work.kind).inc(job.size[0] * job.size[1])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The state now."""
        engine = self.engine
        yield GaugeMetricFamily("pixdec_ready", "Whether requests are taken", value=not engine.missing())
        yield GaugeMetricFamily("pixdec_queue_length", "Requests that wait", value=engine.queued)
        for name, text, read in _OF_WORKERS:
            gauge = GaugeMetricFamily(name, text, labels=["device"])
            for worker in engine.workers:
                gauge.add_metric([worker.device], getattr(worker, read))
            yield gauge

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
