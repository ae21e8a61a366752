"""Scorers that are language models."""

from collections.abc import Callable

import torch

from pixdec.evaluate.metrics.table import Metric

SCORERS: dict[str, Callable[[torch.device], Metric]] = {}


def open_scorer(name: str, device: torch.device) -> Metric:
    """The scorer of that name, loaded. ValueError if that cannot be done."""
    return SCORERS[name](device)
