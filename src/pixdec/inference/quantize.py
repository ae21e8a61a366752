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

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pixdec.inference.config import Quantize
from pixdec.io.quiet import quiet
from pixdec.models.network import Network

# Where the work of a block is, by the names of its Linears: all but modulations, which the blocks read part by part.
PRODUCTS = ("qkv", "proj", "gate", "up", "down", "compress", "expand")
SMALLEST = 128  # inputs and outputs of a Linear that is large: narrower ones are bound by memory, not by arithmetic
MULTIPLE = 16  # of which its sides must be for all integer and float8 kernels
FP8_CAPABILITY = (8, 9)


def quantize_blocks(network: Network, kind: Quantize) -> None:
    """Rounds the large Linears of the blocks to eight bits, in place and for good. LoRAs are merged before, and a
    network is compiled after it.

    Raises:
        ValueError: the device lacks the arithmetic, weights are not bfloat16 for "fp8", there are no large Linears, or
            torchao is missing. The network is as it was.
    """
    quantize_linears(network, large_linears(network), kind)


def quantize_linears(network: nn.Module, chosen: Mapping[str, nn.Linear], kind: Quantize) -> None:
    """Rounds the chosen Linears of a network, by name, to eight bits, as `quantize_blocks` does."""
    if not chosen:
        raise ValueError(
            f"quantize={kind!r}: this network has no Linears of {SMALLEST} x {SMALLEST} or more in its blocks; "
            "use it as it is"
        )
    weight = next(iter(chosen.values())).weight
    _check(kind, weight.device, weight.dtype)
    with quiet():
        try:
            from torchao.quantization import quantize_

            config = _config(kind, weight.device)
        except ImportError as error:
            raise ValueError(
                f"quantize={kind!r} needs torchao 0.18 or later: pip install -U 'pixdec[quant]'"
            ) from error
        quantize_(network, config, lambda _, name: name in chosen)


def large_linears(network: Network) -> dict[str, nn.Linear]:
    """The Linears that are quantized, by name: products of the blocks, at least `SMALLEST` x `SMALLEST`, with sides
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


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is kept in eight bits by torchao, whose tensors pass for the dtype that they stand for."""
    return type(weight).__module__.startswith("torchao.")


def stored(network: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers as they are kept: a quantized weight passes for the tensor that it stands for."""
    for tensor in (*network.parameters(), *network.buffers()):
        if not is_quantized(tensor):
            yield tensor
            continue
        made: Any = tensor
        names: list[str] = made.__tensor_flatten__()[0]
        yield from (part for name in names if (part := getattr(made, name)) is not None)


def stored_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are kept."""
    return sum(tensor.nbytes for tensor in stored(network))


def _check(kind: Quantize, device: torch.device, dtype: torch.dtype) -> None:
    if kind != "fp8":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        name = device.type if device.type != "cuda" else torch.cuda.get_device_name(device)
        raise ValueError(f"quantize='fp8' on {name}: needs CUDA capability 8.9 (Ada, Hopper) or later; take 'int8'")
    if dtype != torch.bfloat16:
        raise ValueError(f"quantize='fp8' on {dtype} weights: take dtype=torch.bfloat16")


def _config(kind: Quantize, device: torch.device) -> Any:
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
