"""A decode planned to fit in memory: the quickest arrangement that takes no more than is allowed.

What a decode takes is a sum of a few products of sizes, with coefficients that were fitted on the most bytes of tensors
that are alive at once in real decodes (within 5 % of them; `tests/inference/test_budget.py` measures again). They hold
for the plain path; what a compiler fuses takes less.

B batch · H, W output pixels · p patch side · N = B·(H/p)·(W/p) patch tokens · e bytes of a number of the weights' dtype
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, lcm

import torch

from pixdec.inference.arrangement import CHUNKS, TILES, Arrangement, Weights
from pixdec.inference.config import Quantize
from pixdec.inference.offload import numbers_of
from pixdec.inference.quantize import large_linears
from pixdec.inference.sizes import WHOLE, Size, tiling_for
from pixdec.models.nano import NanoSettings
from pixdec.models.network import Network
from pixdec.models.pid import PiDSettings
from pixdec.models.pixdit import TOKENS_AT_ONCE
from pixdec.sampling.flow import AT_ONCE
from pixdec.weights.catalog import Sizes

_ROW = 5  # bytes of scale and zero point that come with each row of a weight in eight bits
_MANY = 16  # chunks: where there are more, smaller ones save nothing that counts
TEXT_ENCODER = 5_600_000_000  # bytes: Gemma-2-2B's weights in bfloat16 (5.23 GB), and eight captions on their way

# What is there beside the tensors: a constant, and a share of the activations that the allocator leaves unused.
# CPU: the resident set of a process with this package after a small decode, and what larger ones have above their
# tensors; measured on Linux with torch 2.13 built without CUDA and the bundled model (decodes to 512² … 2048²).
# CUDA: context and kernels (commonly 0.4 to 0.5 GB), the libraries' workspaces; all of it assumed, as for MPS.
_BESIDE = {"cpu": (280_000_000, 0.15), "cuda": (550_000_000, 0.05), "mps": (200_000_000, 0.05)}

# Images (B,3,H,W) float32 of the sampler that are alive: during calls, between them, and while an estimate is made in
# float64, some of each image at a time.
_STATE = {"student": (3, 7, 5), "teacher": (5, 8, 6)}


def condition_of(
    settings: PiDSettings | NanoSettings, whole: Size, images: int, dtype: torch.dtype, *, keep_tokens: bool = True
) -> tuple[int, int]:
    """Bytes of what is made once of the latents of so many images of size `whole`: while it is made, and afterwards."""
    e, pixels = dtype.itemsize, images * whole[0] * whole[1]
    if isinstance(settings, NanoSettings):
        return 12 * pixels, 12 * pixels
    net, adapter = settings.backbone, settings.adapter
    assert adapter is not None, "a prior takes no latent: there is no decode to plan"
    n, points = pixels // net.patch**2, ceil(net.depth / adapter.interval) + adapter.pixel_head
    features = n * adapter.width * e
    tokens = n * points * (2 * net.hidden if adapter.gate == "channel" else net.hidden + 1) * e
    condition = features + (tokens if keep_tokens else 0)
    return int(max(condition, 4.1 * features)), condition


def call_of(
    settings: PiDSettings | NanoSettings, seen: Size, images: int, dtype: torch.dtype, chunk: int
) -> tuple[int, int]:
    """Bytes of one call of the network, which sees `seen` of each of so many images; and of what it keeps between
    calls."""
    e, pixels = dtype.itemsize, images * seen[0] * seen[1]
    if isinstance(settings, NanoSettings):
        folded, detail = settings.width * e / settings.scale**2, settings.detail * e
        most = max(3 * folded, folded + 2 * detail, folded + detail + 24)
        return int(pixels * ((3 + 3 / settings.scale**2) * e + most)), 0
    net = settings.backbone
    values = net.patch**2
    n = pixels // values
    words = images * net.text_length if net.text_width is not None else 0
    together = min(n, images * chunk)
    inputs = n * 3 * values * (e if e == 4 else 2 * e)  # as vectors; and the image cast, if it is
    patch = (n + words) * net.hidden * (7.9 * e - 2) + min(n, images * TOKENS_AT_ONCE) * net.hidden * (7.5 * e + 4.6)
    flat = values * net.pixel_width
    pixel = n * (net.hidden + flat) * e + 6 * flat * net.hidden * e  # conditions, pixels, modulators
    pixel += max(n * net.pixel_hidden * (6.9 * e + 5), n * net.pixel_hidden * e + together * flat * 14.15 * e)
    tables = 4 * n * (net.hidden // net.heads + net.pixel_hidden // net.pixel_heads) // images
    return int(inputs + max(patch, pixel)), tables


@dataclass(frozen=True)
class DecodePlan:
    """How images of height x width pixels are decoded, and what that takes at the most, in bytes of the device.

    Attributes:
        batch: images in all; `images` of them are decoded at a time.
        dtype: of the weights.
        chunk: patches that the pixel blocks work on at a time; None for a network without.
        tile: side in pixels of the tiles that network calls run in; None for whole images.
        keep_tokens: whether the adapter's tokens are kept for all steps, or made in every call.
        offload: whether the weights of blocks are in host memory until their turn (`pixdec.inference.offload`).
        parts: what is alive when most is, by name.
        allowance: for what is no tensor: context, workspaces, fragments.
        limit: what was allowed.
        notes: what else there is to know, a line each.
    """

    height: int
    width: int
    batch: int
    device_type: str
    dtype: torch.dtype
    images: int
    chunk: int | None
    tile: int | None
    keep_tokens: bool
    offload: bool
    parts: Mapping[str, int]
    allowance: int
    limit: int
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """The most bytes of tensors at once, as `torch.cuda.max_memory_allocated` counts them."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """The peak with its allowance: what must be free."""
        return self.peak + self.allowance

    @property
    def how(self) -> str:
        """The arrangement in words."""
        parts = [
            "as a whole" if self.tile is None else f"in tiles of {self.tile}",
            str(self.dtype).removeprefix("torch."),
        ]
        if self.chunk is not None:
            tokens = "the adapter's tokens " + ("kept" if self.keep_tokens else "made in every call")
            parts += [tokens, f"pixel blocks {self.chunk} patches at a time"]
        return ", ".join([*parts, "blocks' weights in host memory"] if self.offload else parts)

    def lines(self) -> list[str]:
        """The plan in words."""
        count = "1 image" if self.batch == 1 else f"{self.batch} images, {self.images} at a time"
        parts = " + ".join(f"{name} {_gigabytes(size)}" for name, size in self.parts.items())
        return [
            f"{self.width}x{self.height}, {count}, on {self.device_type}: {self.how}",
            f"peak {_gigabytes(self.peak)} GB = {parts}",
            f"with {_gigabytes(self.allowance)} GB beside the tensors {_gigabytes(self.total)} GB of "
            f"{_gigabytes(self.limit)} GB",
            *self.notes,
        ]


@dataclass(frozen=True)
class Asked:
    """What a plan is made for.

    Attributes:
        size: of the outputs (height, width), whole patches; `batch` of them.
        dtype: of the weights; `low` what may take its place, if anything may.
        limit: bytes of the device.
        sizes: that the network was trained on.
        tile: side in pixels of the tiles that were asked for.
        quantize: whether large weights are kept in eight bits.
        may_offload: whether the blocks' weights may be in host memory.
        teacher: whether every step is two calls.
        loaded: dtype of the weights that the device holds whatever is computed with; None if it holds none.
    """

    size: Size
    dtype: torch.dtype
    limit: int
    device_type: str
    batch: int = 1
    low: torch.dtype | None = None
    sizes: Sizes | None = None
    tile: int | None = None
    quantize: Quantize | None = None
    may_offload: bool = False
    teacher: bool = False
    loaded: torch.dtype | None = None


def plan_decode(network: Network, asked: Asked) -> DecodePlan:
    """The quickest arrangement of a decode that fits in `asked.limit` bytes.

    First those that give the same image: the adapter's tokens kept or made in every call (a hundredth slower), fewer
    images at a time, smaller chunks, the blocks' weights in host memory (but on a CPU, where that is where they are).
    Then weights in `low` precision, if that is given. Then smaller tiles, unless `tile` says how large they are; beyond
    the trained `sizes` there are tiles to begin with, as `pixdec.inference.sizes.tile_side` has it.

    Raises:
        ValueError: nothing fits, with the least that would do; or a size or device that cannot be planned for.
    """
    multiple, (height, width) = network.patch, asked.size
    if isinstance(network.settings, PiDSettings):
        assert network.settings.adapter is not None, "a prior takes no latent: there is no decode to plan"
        multiple = lcm(network.settings.adapter.latent_factor * network.settings.adapter.scale, multiple)
    if asked.batch < 1:
        raise ValueError(f"batch={asked.batch}: expected at least 1")
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ValueError(f"{width}x{height}: expected sides that are multiples of {multiple}")
    if asked.device_type not in _BESIDE:
        raise ValueError(f"memory on {asked.device_type}: can be planned on {', '.join(_BESIDE)} only")
    numbers = {offloaded: numbers_of(network, offloaded=offloaded) for offloaded in (False, True)}
    plans = list[DecodePlan]()
    for by, images in _arrangements(network, asked):
        plan = _plan(network, asked, by, images, numbers)
        if plan.total <= asked.limit:
            return plan
        plans.append(plan)
    # The first that is within a hundredth of the least: not smaller tiles for a few bytes.
    least = next(plan for plan in plans if plan.total <= 1.01 * min(each.total for each in plans))
    raise ValueError(
        f"{width}x{height} does not fit in {_gigabytes(asked.limit)} GB: the least that would do is "
        f"{_gigabytes(least.total, up=True)} GB ({least.how}); allow more memory, or take a smaller image"
    )


def _arrangements(network: Network, asked: Asked) -> Iterator[tuple[Arrangement, int]]:
    """All that are thought of, each with so many images at a time, in the order in which they are tried."""
    patch = network.patch
    first = tiling_for(asked.size, asked.tile, asked.sizes, patch)
    tilings = [first]
    if asked.tile is None:
        now = max(asked.size) if first is None else first.side
        sides = [side // patch * patch for side in TILES if 2 * patch <= side // patch * patch < now]
        tilings += [tiling_for(asked.size, side, asked.sizes, patch) for side in sides]
    offloads = [False, True] if asked.may_offload else [False]
    for tiling in tilings:
        usual = Arrangement(asked.size, Weights(asked.dtype), tiling=tiling)
        few = usual.seen[0] * usual.seen[1] / patch**2 / _MANY
        chunks = [CHUNKS[0], *(chunk for chunk in CHUNKS[1:] if CHUNKS[0] > few)]
        for dtype in [asked.dtype] if asked.low in (None, asked.dtype) else [asked.dtype, asked.low]:
            for offload in offloads:
                for images in _fewer(min(asked.batch, max(1, WHOLE // (asked.size[0] * asked.size[1])))):
                    for chunk in chunks:
                        for keep in [True, False] if tiling is None else [False]:
                            weights = Weights(dtype, asked.quantize, offload)
                            yield replace(usual, weights=weights, chunk=chunk, keep_tokens=keep), images


def _fewer(images: int) -> list[int]:
    """images, half of them, …, 1"""
    return [images] if images == 1 else [images, *_fewer(-(-images // 2))]


def _plan(network: Network, asked: Asked, by: Arrangement, images: int, numbers: Mapping[bool, int]) -> DecodePlan:
    """An arrangement with its prediction; `numbers` are the weights on the device with and without offloading."""
    settings, dtype = network.settings, by.weights.dtype
    e, image = dtype.itemsize, 4 * 3 * asked.size[0] * asked.size[1]
    making, condition = condition_of(settings, asked.size, images, dtype, keep_tokens=by.keep_tokens)
    call, tables = call_of(settings, by.seen, images, dtype, by.chunk)
    weights, rounding = e * numbers[by.weights.offload], 0
    if asked.loaded not in (None, dtype):
        weights += asked.loaded.itemsize * numbers[False]
    if asked.quantize is not None:
        linears = large_linears(network).values()
        rounded = sum(each.weight.numel() + _ROW * each.out_features for each in linears)
        exact = e * sum(each.weight.numel() for each in linears)
        weights += rounded - (0 if asked.loaded == dtype else exact)
        rounding = 0 if asked.loaded == dtype else exact - rounded
    if isinstance(settings, NanoSettings):
        inputs = images * image // settings.scale**2
    else:
        assert settings.adapter is not None
        cell, net = settings.adapter.latent_factor * settings.adapter.scale, settings.backbone
        inputs = 4 * images * settings.adapter.latent_channels * asked.size[0] * asked.size[1] // cell**2
        inputs += images * e * net.text_length * (net.text_width or 0) * (2 if asked.teacher else 1)
    during, between, cleaning = (n * images * image for n in _STATE["teacher" if asked.teacher else "student"])
    between = max(between, cleaning + 3 * 8 * images * min(image // 4, AT_ONCE))
    if by.tiling is not None:  # the sum of the tiles' velocities and their weights
        during += images * image + image // 3
    waiting = image * (asked.batch - images)  # finished images
    # The last estimates, all images as they go out, and all of them in one tensor; the condition is gone.
    out = image * (images + 2 * asked.batch)
    moments: Sequence[Mapping[str, int]] = (
        {"weights before they are rounded": rounding},
        {"making the condition": waiting + making},
        {"condition": condition, "state": waiting + during, "one call of the network": call},
        {"condition": condition, "sampler": waiting + between + tables},
        {"images": out},
    )
    used = max(moments, key=lambda parts: sum(parts.values()))
    constant, share = _BESIDE[asked.device_type]
    plan = DecodePlan(
        height=asked.size[0],
        width=asked.size[1],
        batch=asked.batch,
        device_type=asked.device_type,
        dtype=dtype,
        images=images,
        chunk=by.chunk if isinstance(settings, PiDSettings) else None,
        tile=None if by.tiling is None else by.tiling.side,
        keep_tokens=by.keep_tokens,
        offload=by.weights.offload,
        parts={"weights": weights, "inputs": inputs, **used},
        allowance=int(constant + share * sum(used.values())),
        limit=asked.limit,
    )
    return replace(plan, notes=tuple(_notes(network, asked, by, plan)))


def _notes(network: Network, asked: Asked, by: Arrangement, plan: DecodePlan) -> Iterator[str]:
    """What is not as a reader would think."""
    if isinstance(network.settings, PiDSettings) and network.settings.backbone.text_width is not None:
        encoder = f"the caption encoder, {_gigabytes(TEXT_ENCODER)} GB while it runs,"
        fits = plan.parts["weights"] + TEXT_ENCODER + plan.allowance <= asked.limit
        if asked.device_type != "cpu":
            yield encoder + (
                " is needed for new captions only, and gone before the decode"
                if fits
                else " does not fit beside the weights: new captions are embedded on the CPU"
            )
        elif not fits:
            yield f"{encoder} does not fit beside the weights: embed new captions elsewhere and copy their cache here"
    if plan.dtype != asked.dtype:
        names = (str(each).removeprefix("torch.") for each in (plan.dtype, asked.dtype))
        yield "{} in the place of {}: the image is the same but for rounding".format(*names)
    if by.tiling is not None and by.tiling != tiling_for(asked.size, asked.tile, asked.sizes, network.patch):
        side = by.tiling.side
        yield f"tiles of {side}: smaller than the network would be given; fine structure may differ from tile to tile"


def _gigabytes(size: int, *, up: bool = False) -> str:
    """10⁹ bytes with two decimals."""
    return f"{(ceil(size / 1e7) / 100 if up else size / 1e9):.2f}"
