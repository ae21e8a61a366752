"""devices: memory given back, and where bfloat16 is quick."""

from __future__ import annotations

import contextlib
import gc
import platform
import subprocess
import sys
import weakref

import pytest
import torch

from pixdec.devices import computes_in_bfloat16, has_bfloat16_units, release_memory


def test_models_in_reference_cycles_are_released() -> None:
    gc.disable()  # or it might come by itself
    try:
        network = torch.nn.Linear(2, 2)
        network.itself = [network]
        seen = weakref.ref(network)
        del network
        assert seen() is not None
        release_memory()
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("capability", "quick"), [((7, 5), False), ((8, 0), True)], ids=["Turing", "Ampere"])
def test_bfloat16_that_a_gpu_emulates_is_not_quick(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], quick: bool
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert computes_in_bfloat16(torch.device("cuda")) is quick


def test_a_processor_held_to_avx2_has_no_bfloat16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert has_bfloat16_units()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not has_bfloat16_units()


_REUSES = """
import resource
from pathlib import Path
import torch
from pixdec.devices import reused_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

before, size = held(), 2**27
with reused_memory(), reused_memory():
    block = torch.zeros(size, dtype=torch.uint8)
    del block
    assert held() - before > size / 2
assert held() - before < size / 2
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_reused_memory_goes_back_at_the_end() -> None:
    # in a process of its own: here, an earlier test may have left as much free memory as the block takes
    subprocess.run([sys.executable, "-c", _REUSES], check=True)
