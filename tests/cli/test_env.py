from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import pixdec


def test_env_names_what_results_depend_on(run: Callable[..., Any]) -> None:
    outcome = run("env")
    assert outcome.code == 0
    assert f"pixdec: {pixdec.__version__}\n" in outcome.out and f"torch: {torch.__version__}" in outcome.out
    assert "bfloat16 units" in outcome.out
    (record,) = run("env", "--json").records
    assert [f"{name}: {value}" for name, value in record.items()] == outcome.out.splitlines()
