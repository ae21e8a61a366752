"""What the machine has: the device to take when none is named, whether its processor computes in bfloat16, and its
memory given back."""

import gc

import torch


def best_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; one that emulates it is many times slower than in
    float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is quick on a device: not on a processor, nor on an NVIDIA GPU before Ampere, that emulates
    it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or has_bfloat16_units()


def release_memory() -> None:
    """Give back what models held that nothing refers to any more."""
    gc.collect()  # a model may be part of reference cycles, and a pipeline with hooks is
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
