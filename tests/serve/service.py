"""What tests of the service share."""

from benchmarks.serve import picture, served, work
from pixdec.serve.settings import ServeSettings

QUICK = ServeSettings(batch=4, silence=2, delay=0.02)

__all__ = ["QUICK", "picture", "served", "work"]
