"""Attention kernels besides PyTorch's own choice, each compared with the exact result on the user's device before it is
trusted.

A kernel is `pixdec.layers.attention.Kernel`: (q, k, v) -> attended, all (B, heads, L, d).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast, get_args

import torch
from torch import Tensor

from pixdec.inference.config import KernelName
from pixdec.io.files import first_line_of
from pixdec.layers.attention import Kernel, attention
from pixdec.models.network import Network
from pixdec.models.pid import PiD

NAMES: Sequence[KernelName] = get_args(KernelName)

# How far a kernel may be from the exact result, ‖difference‖/‖exact‖. Rounding alone makes about a third of it.
EXACT: Mapping[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
QUANTIZED = 0.1  # for kernels that round queries and keys to 8 bits: an approximation, never chosen by "auto"

# Called by themselves, for `torch.nn.attention.sdpa_kernel` sets what all threads of the process see.
_OPERATIONS: Mapping[str, Kernel] = {
    "math": lambda q, k, v: torch.ops.aten._scaled_dot_product_attention_math(q, k, v)[0],
    "flash": lambda q, k, v: (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
        if q.device.type == "cpu"
        else torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    ),
    "efficient": lambda q, k, v: torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0],
    "cudnn": lambda q, k, v: torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0],
}
_PACKAGES: Mapping[str, tuple[str, str]] = {  # module, and what to install
    "flash3": ("flash_attn_interface", "FlashAttention-3 (its repository's folder `hopper`)"),
    "sage": ("sageattention", "pip install sageattention"),
}
_CANDIDATES: Sequence[KernelName] = ("torch", "flash3", "cudnn", "flash")  # of "auto"


@dataclass(frozen=True)
class Shape:
    """What attention is computed on: `heads` of `width`, over so many tokens."""

    heads: int
    width: int
    tokens: int


def shapes_of(network: Network, height: int, width: int) -> tuple[Shape, ...]:
    """The shapes of attention in a decode to height x width pixels: patch blocks, pixel blocks; none without any."""
    if not isinstance(network, PiD):
        return ()
    backbone = network.settings.backbone
    patches = height * width // backbone.patch**2
    text = backbone.text_length if backbone.text_width is not None else 0
    return (
        Shape(backbone.heads, backbone.hidden // backbone.heads, patches + text),
        Shape(backbone.pixel_heads, backbone.pixel_hidden // backbone.pixel_heads, patches),
    )


@cache
def choose(name: KernelName, device: torch.device, dtype: torch.dtype, shapes: tuple[Shape, ...]) -> Kernel:
    """The kernel of that name for attention of these shapes, checked (`error_of`).

    "torch" leaves the choice to PyTorch, unchecked. "auto" times PyTorch's choice and all exact kernels that are there
    and pass on each shape, and takes the fastest for each width of heads; on devices other than CUDA it is "torch".

    Raises ValueError for an unknown name, a kernel that is not installed or does not run here, or whose result is not
    finite or too far from the exact one.
    """
    if name not in NAMES:
        raise ValueError(f"attention={name!r}: expected one of {', '.join(NAMES)}")
    if name == "torch" or not shapes or (name == "auto" and device.type != "cuda"):
        return attention
    if name == "auto":
        return _by_width({shape.width: _fastest(device, dtype, shape) for shape in shapes})
    for shape in shapes:
        trusted(name, device, dtype, shape.width)
    return kernel_of(name)


@cache
def kernel_of(name: KernelName) -> Kernel:
    """The kernel of that name, as it is. ValueError if its package is not installed."""
    if name == "torch":
        return attention
    if name in _OPERATIONS:
        return _OPERATIONS[name]
    module, source = _PACKAGES[name]
    if find_spec(module) is None:
        raise ValueError(f"attention={name!r}: the package {module} is not installed; {source}")
    package = import_module(module)
    return _flash3(package.flash_attn_func) if name == "flash3" else _sage(package.sageattn)


@cache
def trusted(name: KernelName, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Its error against the exact result here, for heads of that width, found once. ValueError as `choose`."""
    bound = QUANTIZED if name == "sage" else EXACT[dtype]
    kernel = kernel_of(name)
    try:
        error = error_of(kernel, device, dtype, width)
    except RuntimeError as problem:
        reason = first_line_of(problem)
        raise ValueError(f"attention={name!r}: does not run on {device}, {dtype} ({reason}); take 'torch'") from problem
    if not error <= bound:
        raise ValueError(
            f"attention={name!r}: on {device}, {dtype}, with heads of {width} its result is {error:.2g} away from the "
            f"exact one, at most {bound:g} is trusted; take 'torch'"
        )
    return error


def error_of(kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """‖kernel − exact‖ / ‖exact‖ on random queries, keys and values, one channel of the keys ten times as large as the
    others, as trained networks have it; NaN if any value is not finite. The exact result is computed in float64 on the
    CPU."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 1000, width, generator=generator, device="cpu").to(dtype) for _ in range(3))
    k[..., 0] *= 10
    scores = (q.double() @ k.double().transpose(-1, -2)) * width**-0.5
    exact = scores.softmax(-1) @ v.double()
    found = kernel(q.to(device), k.to(device), v.to(device)).cpu().double()
    return float((found - exact).norm() / exact.norm())


def _fastest(device: torch.device, dtype: torch.dtype, shape: Shape) -> Kernel:
    """The fastest trusted kernel on tensors of that shape."""
    q, k, v = (torch.randn(1, shape.heads, shape.tokens, shape.width, device=device, dtype=dtype) for _ in range(3))
    times = dict[KernelName, float]()
    for name in _CANDIDATES:
        try:
            if name != "torch":
                trusted(name, device, dtype, shape.width)
            times[name] = _seconds(partial(kernel_of(name), q, k, v), device)
        except (ValueError, RuntimeError):  # not installed, not for this device, or not trusted: it does not compete
            continue
    return kernel_of(min(times, key=times.__getitem__))


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """The shortest of three runs, after one that does not count."""
    found = list[float]()
    for _ in range(4):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _by_width(kernels: Mapping[int, Kernel]) -> Kernel:
    if len(different := set(kernels.values())) == 1:
        return different.pop()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels[q.shape[-1]](q, k, v)

    return attend


def _flash3(function: Callable[..., Any]) -> Kernel:
    """Takes (B, L, heads, d); some versions return the log-sum-exp beside the result."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    return cast(Kernel, torch.compiler.disable(attend))


def _sage(function: Callable[..., Any]) -> Kernel:
    """Takes (B, heads, L, d)."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return function(q.contiguous(), k.contiguous(), v.contiguous(), tensor_layout="HND", is_causal=False)

    return cast(Kernel, torch.compiler.disable(attend))
