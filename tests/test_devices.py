"""devices: memory given back."""

from __future__ import annotations

import gc
import weakref

import torch

from pixdec.devices import release_memory


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
