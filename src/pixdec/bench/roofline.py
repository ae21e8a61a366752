"""What a device can do at most, as measured there, and what a decode asks of it, as counted.

Measured: the quickest of several large matrix products in each precision, and of several copies of a large buffer.
Counted: floating-point operations and bytes of the network's calls (`pixdec.models.cost`), not of noise, sampler and
images. Bytes are those that move if every operation runs by itself; compiled, fewer do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixdec.bench.measure import timed
from pixdec.bench.plain import plain_velocity
from pixdec.bench.settings import Job
from pixdec.decoder import PixelDecoder
from pixdec.inference.sizes import tiling_for
from pixdec.models.cost import AcceleratorKernels, Cost, Meter, decode_cost, meta_network, random_inputs
from pixdec.models.pid import PiDSettings

SPENT = 0.5  # seconds of repetitions for each peak, at least three of them
PRODUCT = {"cuda": 8192, "mps": 4096, "cpu": 2048}  # rows, columns and depth
COPIED = {"cuda": 2**31, "mps": 2**29, "cpu": 2**28}  # bytes


@dataclass(frozen=True)
class Peaks:
    """FLOP/s of matrix products in bfloat16 and in float32, and bytes/s of reading and writing."""

    bfloat16: float
    float32: float
    bandwidth: float


@dataclass(frozen=True)
class Counted:
    """FLOPs and bytes of the network's calls in one decode."""

    flops: int
    moved: int


def measure_peaks(device: torch.device) -> Peaks:
    """The most that this device reaches here."""
    low, single = (product_rate(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    return Peaks(low, single, copy_rate(device))


def product_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of the quickest product of two square matrices: 2·side³ operations each."""
    side = side or PRODUCT.get(device.type, 2048)
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * side**3 / _quickest(lambda: torch.mm(a, b, out=out), device)


def copy_rate(device: torch.device, size: int | None = None) -> float:
    """Bytes/s of the quickest copy of `size` bytes, reading and writing both counted."""
    size = size or COPIED.get(device.type, 2**28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _quickest(lambda: target.copy_(source), device)


def _quickest(call: Callable[[], Tensor], device: torch.device) -> float:
    call()
    best, spent, count = float("inf"), 0.0, 0
    began = time.perf_counter()
    while count < 3 or spent < SPENT:
        best = min(best, timed(call, device)[1])
        spent, count = time.perf_counter() - began, count + 1
    return best


def count(decoder: PixelDecoder, job: Job, *, plain: bool) -> Counted | None:
    """What the calls of one decode cost: the condition once and a call in every step; `plain`: the plain call in every
    step. In tiles, a call is that of all tiles; the adapter's heads, which each tile makes again (about a hundredth of
    its call), are counted once for the image. None for teachers, whose steps are two calls each with other text.
    """
    if decoder.model.kind != "student":
        return None
    dtype = torch.bfloat16 if job.dtype == "bfloat16" else torch.float32
    settings, steps = decoder.network.settings, job.steps or len(decoder.model.times) - 1
    if plain:
        cost = _plain_cost(settings, job, dtype)
        return Counted(steps * cost.flops, steps * cost.moved)
    condition, call = decode_cost(settings, job.side, job.side, batch=job.batch, dtype=dtype)
    flops, moved = call.flops, call.moved
    whole = (job.side, job.side)
    tiling = tiling_for(whole, decoder.tile, decoder.model.sizes, settings.backbone)
    if tiling is not None:
        tiles = list(tiling)
        _, part = decode_cost(settings, tiles[0].height, tiles[0].width, batch=job.batch, dtype=dtype)
        flops, moved = part.flops * len(tiles), part.moved * len(tiles)
    return Counted(condition.flops + steps * flops, condition.moved + steps * moved)


def _plain_cost(settings: PiDSettings, job: Job, dtype: torch.dtype) -> Cost:
    """Of one plain call, as if its weights were in `dtype`."""
    network, given = meta_network(settings, dtype), random_inputs(settings, job.side, job.side, job.batch, dtype)
    meter = Meter()
    with torch.no_grad(), AcceleratorKernels(), meter:
        plain_velocity(network, given.x_t.to(dtype), given.t, given.text, given.latent, given.sigma)
    return meter.cost()
