"""What tests of the service share."""

import time

from benchmarks.serve import picture, served, work
from pixdec.serve.settings import ServeSettings

QUICK = ServeSettings(batch=4, silence=2, delay=0.02, start=600)

__all__ = ["QUICK", "arrived", "picture", "served", "until", "work"]


def until(found, seconds=120):
    """What `found` gives when it gives anything: a machine that is busy takes long."""
    end = time.monotonic() + seconds
    while not (last := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return last


def arrived(engine, before):
    """The job that the engine got after `before`, ids of jobs."""
    return until(lambda: next((job for id, job in list(engine.jobs.items()) if id not in before), None))
