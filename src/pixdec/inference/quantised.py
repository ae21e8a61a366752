"""Eight-bit weights and activations, by torchao: the short path through the large Linears of a network's blocks.

"int8": weights are rounded once, one scale for each output channel, and activations in every call, one scale for each
token; the products are of integers, which processors with VNNI and CUDA devices since Turing multiply faster than the
network's own precision. "int8-weights": weights are kept so, and computed with in the network's precision: no faster,
but smaller, and closer. "fp8": as "int8", in float8 (e4m3); it could not be measured yet.

Small Linears, modulations, gates, norms, embeddings, final layers and the base decoder stay as they are: they are a
small part of the work, and some are read part by part. Rounding activations in passes of their own takes back much of
what the products gain, so that a narrow network gains time only where it is compiled. Errors, times and bytes:
docs/benchmarks/fidelity.md.
"""

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pixdec.models.pid import PiD

Kind = Literal["int8", "int8-weights", "fp8"]

# Where the work of a block is, by the names of its Linears: all but modulations, which the blocks read part by part.
PRODUCTS = ("qkv", "proj", "gate", "up", "down", "compress", "expand")
SMALLEST = 128  # inputs and outputs of a Linear that is large: narrower ones are bound by memory, not by arithmetic
MULTIPLE = 16  # of which its sides must be for all integer and float8 kernels
FP8_CAPABILITY = (8, 9)


def quantise(network: PiD, kind: Kind) -> None:
    """Rounds the large Linears of the blocks to eight bits, in place and for good: to undo it, load the decoder again.
    LoRAs are merged before, and a network is compiled after it.

    Raises ValueError, and leaves the network as it is, for another kind, a device that lacks the arithmetic, weights
    that are not bfloat16 for "fp8", no large Linears, a network that is quantised already, or torchao missing.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(get_args(Kind))}")
    chosen = large_linears(network)
    if not chosen:
        raise ValueError(
            f"this network has no Linears of {SMALLEST} x {SMALLEST} or more in its blocks; use it as it is"
        )
    if any(is_quantised(linear.weight) for linear in chosen.values()):
        raise ValueError("the network is quantised already; load the decoder again first")
    weight = next(iter(chosen.values())).weight
    _check(kind, weight.device, weight.dtype)
    with _quiet("torchao", "torch.utils._pytree"):  # libraries for devices that are not there
        try:
            from torchao.quantization import quantize_

            config = _config(kind, weight.device)
        except ImportError as error:
            raise ValueError(f"kind={kind!r} needs torchao 0.18 or later: pip install -U 'pixdec[quant]'") from error
        quantize_(network, config, lambda _, name: name in chosen)


def large_linears(network: PiD) -> dict[str, nn.Linear]:
    """The Linears that are quantised, by name: products of the blocks, at least `SMALLEST` x `SMALLEST`, with sides
    that are multiples of `MULTIPLE`."""
    return {
        name: module
        for name, module in network.named_modules()
        if name.startswith(("backbone.patch_blocks.", "backbone.pixel_blocks."))
        and name.rpartition(".")[2] in PRODUCTS
        and isinstance(module, nn.Linear)
        and min(module.in_features, module.out_features) >= SMALLEST
        and module.in_features % MULTIPLE == module.out_features % MULTIPLE == 0
    }


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight is kept in eight bits by torchao, whose tensors pass for the dtype that they stand for."""
    return type(weight).__module__.startswith("torchao.")


def stored_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are kept; `Tensor.nbytes` has those that a quantised weight stands
    for."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(part.nbytes for tensor in tensors for part in _parts(tensor))


def _parts(tensor: Tensor) -> Iterable[Tensor]:
    if not is_quantised(tensor):
        return [tensor]
    made: Any = tensor
    names: list[str] = made.__tensor_flatten__()[0]
    return [part for name in names if (part := getattr(made, name)) is not None]


def _check(kind: Kind, device: torch.device, dtype: torch.dtype) -> None:
    if kind == "int8" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"kind='int8' on {device.type}: needs a CPU or a CUDA device; take 'int8-weights'")
    if kind != "fp8":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        name = device.type if device.type != "cuda" else torch.cuda.get_device_name(device)
        raise ValueError(f"kind='fp8' on {name}: needs CUDA capability 8.9 (Ada, Hopper) or later; take 'int8'")
    if dtype != torch.bfloat16:
        raise ValueError(f"kind='fp8' on {dtype} weights: load the decoder with dtype=torch.bfloat16")


def _config(kind: Kind, device: torch.device) -> Any:
    """torchao's settings. None of them may change those of the compiler, which are the whole process's."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )
    from torchao.utils import should_reduce_range

    match kind:
        case "int8":  # without VNNI, sums of full-range products would overflow
            return Int8DynamicActivationInt8WeightConfig(
                reduce_range=should_reduce_range(device), set_inductor_config=False
            )
        case "int8-weights":
            return Int8WeightOnlyConfig(set_inductor_config=False)
        case "fp8":
            return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)


@contextmanager
def _quiet(*loggers: str) -> Generator[None]:
    """Inside, these loggers tell of errors only."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
