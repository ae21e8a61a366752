"""A decode planned to fit in memory: the quickest arrangement that takes no more than is allowed.

Predictions are counted on the real network (`pixdec.inference.counting`). They hold for the plain path; what a compiler
fuses takes less.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, lcm
from typing import Literal

import torch

from pixdec.inference.counting import Counted, count_call, count_condition, count_state, count_weights
from pixdec.inference.sizes import WHOLE, tiling_for
from pixdec.models.nano import NanoSettings
from pixdec.models.pid import PiDSettings
from pixdec.sampling.tiling import Tiling
from pixdec.weights.catalog import Sizes

Offload = Literal["none", "blocks"]
DeviceType = Literal["cpu", "cuda", "mps"]

CHUNKS = 1024, 256  # patches that the pixel blocks work on at a time, the usual number first
TILES = 2048, 1024, 512  # pixels a side
_MANY = 16  # chunks: where there are more, smaller ones save nothing that counts
TEXT_ENCODER = 5_600_000_000  # bytes: Gemma-2-2B's weights in bfloat16 (5.23 GB), and eight captions on their way

# What is there beside the tensors: a constant, and a share of the activations that the allocator leaves unused.
# CPU: the resident set of a process with this package after a small decode, and what larger ones have above their
# tensors; measured on Linux with torch 2.13 built without CUDA and the bundled model (decodes to 512² … 2048²).
# CUDA: context and kernels (commonly 0.4 to 0.5 GB), the libraries' workspaces; all of it assumed, as for MPS.
_BESIDE = {"cpu": (310_000_000, 0.15), "cuda": (550_000_000, 0.05), "mps": (200_000_000, 0.05)}


@dataclass(frozen=True)
class DecodePlan:
    """How images of height x width pixels are decoded, and what that takes at the most, in bytes of the device.

    Attributes:
        batch: images in all; `images` of them are decoded at a time.
        dtype: of the weights.
        chunk: patches that the pixel blocks work on at a time; 0 for a network without.
        tile: side in pixels of the tiles that network calls run in; None for whole images.
        keep_tokens: whether the adapter's tokens are kept for all steps, or made in every call.
        offload: "blocks" if the weights of blocks are in host memory until their turn (`pixdec.inference.offload`).
        captions: where the caption encoder runs, if it must: on the "device" before the decode, where it fits beside
            the weights, or on the "host"; None for networks without text. It is gone before the decode begins, and is
            not in the peak.
        weights, inputs: of the network; latents and text.
        making, condition: what is made of the latents once, while it is made and afterwards.
        state: noise, state and estimates of the sampler while the network is called, and finished images that wait.
        call: one call of the network.
        between: the most that the sampler, or the image's way out, takes between calls; finished images included, and
            what the network keeps.
        allowance: for what is no tensor: context, workspaces, fragments.
        limit: what was allowed.
        notes: what else there is to know, a line each.
    """

    height: int
    width: int
    batch: int
    device_type: DeviceType
    dtype: torch.dtype
    images: int
    chunk: int
    tile: int | None
    keep_tokens: bool
    offload: Offload
    captions: Literal["device", "host"] | None
    weights: int
    inputs: int
    making: int
    condition: int
    state: int
    call: int
    between: int
    allowance: int
    limit: int
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """The most bytes of tensors at once, as `torch.cuda.max_memory_allocated` counts them."""
        return self.weights + self.inputs + self._activations

    @property
    def total(self) -> int:
        """The peak with its allowance: what must be free."""
        return self.peak + self.allowance

    @property
    def _activations(self) -> int:
        return max(self.making, self.condition + max(self.state + self.call, self.between))

    @property
    def how(self) -> str:
        """The arrangement in words."""
        tokens = "the adapter's tokens " + ("kept" if self.keep_tokens else "made in every call")
        parts = [
            "as a whole" if self.tile is None else f"in tiles of {self.tile}",
            str(self.dtype).removeprefix("torch."),
        ]
        parts += [tokens, f"pixel blocks {self.chunk} patches at a time"] if self.chunk else []
        return ", ".join([*parts, "blocks' weights in host memory"] if self.offload == "blocks" else parts)

    def lines(self) -> list[str]:
        """The plan in words."""
        count = "1 image" if self.batch == 1 else f"{self.batch} images, {self.images} at a time"
        parts = ("weights", "inputs", "condition", "state", "call")
        if self.making > self.condition + max(self.state + self.call, self.between):
            parts = ("weights", "inputs", "making")
        elif self.between > self.state + self.call:
            parts = ("weights", "inputs", "condition", "between")
        names = {"call": "one call of the network", "making": "making the condition", "between": "sampler"}
        sum_of = " + ".join(f"{names.get(part, part)} {_gigabytes(getattr(self, part))}" for part in parts)
        return [
            f"{self.width}x{self.height}, {count}, on {self.device_type}: {self.how}",
            f"peak {_gigabytes(self.peak)} GB = {sum_of}",
            f"with {_gigabytes(self.allowance)} GB beside the tensors {_gigabytes(self.total)} GB of "
            f"{_gigabytes(self.limit)} GB",
            *self.notes,
        ]


def plan_decode(
    settings: PiDSettings,
    height: int,
    width: int,
    *,
    batch: int = 1,
    dtype: torch.dtype,
    low: torch.dtype | None = None,
    limit: int,
    device_type: DeviceType,
    sizes: Sizes | None = None,
    tile: int | None = None,
    teacher: bool = False,
) -> DecodePlan:
    """The quickest arrangement of a decode to height x width pixels, whole patches, that fits in `limit` bytes.

    First those that give the same image: the adapter's tokens kept or made in every call (a hundredth slower), fewer
    images at a time, smaller chunks, the blocks' weights in host memory (but on a CPU, where that is where they are).
    Then weights in `low` precision, if that is given. Then smaller tiles, unless `tile` says how large they are; beyond
    the trained `sizes` there are tiles to begin with, as `pixdec.inference.sizes.tile_side` has it.

    Raises ValueError, naming the least that would do, if nothing fits; and for a network that takes no latent.
    """
    if settings.adapter is None:
        raise ValueError("a text-to-image prior takes no latent: there is no decode to plan")
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1")
    patch = settings.backbone.patch
    multiple = lcm(settings.adapter.latent_factor * settings.adapter.scale, patch)
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ValueError(f"{width}x{height}: expected sides that are multiples of {multiple}")
    asked = _Asked(settings, height, width, batch, dtype, limit, device_type, sizes, tile, teacher)
    groups = list(_arrangements(asked, low))
    for group in groups:
        if (quickest := _fitting(asked, group[0])) is not None:
            return quickest
        if _fitting(asked, group[-1]) is not None:
            return next(plan for each in group[1:] if (plan := _fitting(asked, each)) is not None)
    frugal = [_plan(asked, group[-1]) for group in groups]
    # The first that is within a hundredth of the least: not smaller tiles for a few bytes.
    least = next(plan for plan in frugal if plan.total <= 1.01 * min(each.total for each in frugal))
    raise ValueError(
        f"{width}x{height} does not fit in {_gigabytes(limit)} GB: the least that would do is "
        f"{_gigabytes(least.total, up=True)} GB ({least.how}); allow more memory, or take a smaller image"
    )


@dataclass(frozen=True)
class _Asked:
    """What a plan is made for, as `plan_decode` has it."""

    settings: PiDSettings
    height: int
    width: int
    batch: int
    dtype: torch.dtype
    limit: int
    device_type: DeviceType
    sizes: Sizes | None
    tile: int | None
    teacher: bool

    def tiling(self, side: int | None) -> Tiling | None:
        """As the decoder has it for a side, or without one."""
        backbone = self.settings.backbone
        return tiling_for((self.height, self.width), side, self.sizes, backbone.patch, backbone.period)

    @property
    def image(self) -> int:
        """Bytes of an image, float32."""
        return 4 * 3 * self.height * self.width


@dataclass(frozen=True)
class _Arrangement:
    """What a plan may choose."""

    tiling: Tiling | None
    dtype: torch.dtype
    offload: Offload
    images: int
    chunk: int
    keep_tokens: bool


def _arrangements(asked: _Asked, low: torch.dtype | None) -> Iterator[list[_Arrangement]]:
    """All that are thought of, in the order in which they are tried, in groups; the last of a group takes the least
    memory of it."""
    usual, patch = asked.tiling(asked.tile), asked.settings.backbone.patch
    tilings = [usual]
    if asked.tile is None:
        now = max(asked.height, asked.width) if usual is None else usual.side
        sides = [side // patch * patch for side in TILES]
        tilings += [asked.tiling(side) for side in sides if 2 * patch <= side < now]
    offloads: Sequence[Offload] = ("none",) if asked.device_type == "cpu" else ("none", "blocks")
    for tiling in tilings:
        height, width = _seen(asked, tiling)
        patches = height * width // patch**2
        chunks = [CHUNKS[0], *(chunk for chunk in CHUNKS[1:] if CHUNKS[0] > patches / _MANY)]
        for dtype in [asked.dtype] if low in (None, asked.dtype) else [asked.dtype, low]:
            for offload in offloads:
                yield [
                    _Arrangement(tiling, dtype, offload, images, chunk, tokens)
                    for images in _fewer(min(asked.batch, max(1, WHOLE // (asked.height * asked.width))))
                    for chunk in chunks
                    for tokens in ([True, False] if tiling is None else [False])
                ]


def _fewer(images: int) -> list[int]:
    """images, half of them, …, 1"""
    return [images] if images == 1 else [images, *_fewer(-(-images // 2))]


def _seen(asked: _Asked, tiling: Tiling | None) -> tuple[int, int]:
    """The pixels that the network sees in a call."""
    if tiling is None:
        return asked.height, asked.width
    return min(tiling.side, asked.height), min(tiling.side, asked.width)


def _fitting(asked: _Asked, by: _Arrangement) -> DecodePlan | None:
    """The plan of an arrangement if it fits. Most of the counting is that of the call, which may not be needed."""
    if _plan(asked, by, calls=False).total > asked.limit:
        return None
    plan = _plan(asked, by)
    return plan if plan.total <= asked.limit else None


def _plan(asked: _Asked, by: _Arrangement, *, calls: bool = True) -> DecodePlan:
    """An arrangement with its prediction; without `calls` as if these took nothing."""
    settings, device, whole = asked.settings, asked.device_type, (asked.height, asked.width)
    assert settings.adapter is not None
    backbone, latent = settings.backbone, settings.adapter.latent_channels * asked.height * asked.width
    latent = 4 * latent // (settings.adapter.latent_factor * settings.adapter.scale) ** 2
    text = by.dtype.itemsize * backbone.text_length * (backbone.text_width or 0) * (2 if asked.teacher else 1)
    condition = count_condition(settings, *whole, by.images, by.dtype, tokens=by.keep_tokens, device_type=device)
    state = count_state(
        *whole, by.images, patch=backbone.patch, tiling=by.tiling, teacher=asked.teacher, device_type=device
    )
    seen, tile = _seen(asked, by.tiling), by.tiling is not None
    call = Counted(0, 0)
    if calls:
        call = count_call(
            settings, *seen, by.images, by.dtype, chunk=by.chunk, tokens=by.keep_tokens, tile=tile, device_type=device
        )
    weights = count_weights(settings, by.dtype, offloaded=by.offload == "blocks")
    finished = asked.image * (asked.batch - by.images)
    # The last estimates, all images as they go out, and all of them in one tensor.
    out = asked.image * (by.images + 2 * asked.batch)
    made = finished + condition.peak
    used = max(made, condition.kept + finished + max(state.during_calls + call.peak, state.between + call.kept), out)
    constant, share = _BESIDE[device]
    plan = DecodePlan(
        height=asked.height,
        width=asked.width,
        batch=asked.batch,
        device_type=device,
        dtype=by.dtype,
        images=by.images,
        chunk=by.chunk,
        tile=None if by.tiling is None else by.tiling.side,
        keep_tokens=by.keep_tokens,
        offload=by.offload,
        captions=None,
        weights=weights,
        inputs=by.images * (latent + text),
        making=made,
        condition=condition.kept,
        state=finished + state.during_calls,
        call=call.peak,
        between=max(
            finished + state.between + call.kept, out - condition.kept
        ),  # the condition is gone when images go out
        allowance=int(constant + share * used),
        limit=asked.limit,
    )
    captions = None
    if backbone.text_width is not None:
        fits = weights + TEXT_ENCODER + plan.allowance <= asked.limit
        captions = "device" if fits and device != "cpu" else "host"
    return replace(plan, captions=captions, notes=tuple(_notes(asked, by, captions, weights)))


def _notes(asked: _Asked, by: _Arrangement, captions: str | None, weights: int) -> Iterator[str]:
    """What is not as a reader would think."""
    encoder = f"the caption encoder, {_gigabytes(TEXT_ENCODER)} GB while it runs,"
    if captions == "device":
        yield f"{encoder} is needed for new captions only, and gone before the decode"
    elif captions is not None and asked.device_type != "cpu":
        yield f"{encoder} does not fit beside the weights: new captions are embedded on the CPU"
    elif captions is not None and weights + TEXT_ENCODER + _BESIDE["cpu"][0] > asked.limit:
        yield f"{encoder} does not fit beside the weights: embed new captions elsewhere and copy their cache here"
    if by.dtype != asked.dtype:
        names = (str(each).removeprefix("torch.") for each in (by.dtype, asked.dtype))
        yield "{} in the place of {}: the image is the same but for rounding".format(*names)
    if by.tiling is not None and by.tiling != asked.tiling(asked.tile):
        side = by.tiling.side
        yield f"tiles of {side}: smaller than the network would be given; fine structure may differ from tile to tile"


def _gigabytes(size: int, *, up: bool = False) -> str:
    """10⁹ bytes with two decimals."""
    return f"{(ceil(size / 1e7) / 100 if up else size / 1e9):.2f}"


# Bytes of a nano's decode for each output pixel: the condition, the sampler's state, and a call in 16 bits, each
# measured on a CPU (docs/benchmarks).
_NANO = {"condition": 13, "state": 36, "call": 110}


def plan_nano(
    settings: NanoSettings, size: tuple[int, int], batch: int, dtype: torch.dtype, limit: int, device_type: DeviceType
) -> DecodePlan:
    """As `plan_decode`, for the small network: as many images at a time as fit, then in tiles.

    Raises:
        ValueError: nothing fits; names the least that would do.
    """
    pixels, weights = size[0] * size[1], int(1.3e6 * dtype.itemsize)
    constant, share = _BESIDE[device_type]
    least: DecodePlan | None = None
    sides = [None, *(side for side in TILES if side < max(size))]
    for side, images in ((side, images) for side in sides for images in _fewer(batch)):
        seen = pixels if side is None else min(side, size[0]) * min(side, size[1])
        call = images * seen * _NANO["call"] * dtype.itemsize // 2
        state, condition = images * pixels * _NANO["state"], images * pixels * _NANO["condition"]
        plan = DecodePlan(
            *size,
            batch=batch,
            device_type=device_type,
            dtype=dtype,
            images=images,
            chunk=0,
            tile=side,
            keep_tokens=False,
            offload="none",
            captions=None,
            weights=weights,
            inputs=12 * images * pixels // settings.scale**2,
            making=condition,
            condition=condition,
            state=state + 12 * pixels * (batch - images),
            call=call,
            between=36 * batch * pixels,
            allowance=int(constant + share * (condition + state + call)),
            limit=limit,
        )
        if plan.total <= limit:
            return plan
        least = plan if least is None or plan.total < least.total else least
    assert least is not None
    raise ValueError(
        f"{size[1]}x{size[0]} does not fit in {_gigabytes(limit)} GB: the least that would do is "
        f"{_gigabytes(least.total, up=True)} GB ({least.how}); allow more memory, or take a smaller image"
    )
