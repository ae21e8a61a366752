"""How much memory the parts of a decode take, counted while the real network, tiling and sampler run on tensors without
values: nothing here has to be kept in step with them.

Tensors of a CPU are imitated by PyTorch's fake tensors, which take the kernels that a CPU takes; those of accelerators
by the meta device with fused attention.

B batch · H, W output pixels · p patch side
"""

import math
import re
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pixdec.inference.offload import resident_bytes
from pixdec.models.cost import META, AcceleratorKernels, Meter, meta_network, random_inputs
from pixdec.models.execution import Execution
from pixdec.models.pid import Condition, PiD, PiDSettings
from pixdec.sampling.samplers import dpm_solver, guided, student
from pixdec.sampling.tiling import Tiling, tiled_velocity

_TIMES = (0.9, 0.6, 0.3, 0.0)  # three steps: whatever is alive in one is so in the third
_GUIDANCE = 5.0
_PART = re.compile(r"backbone|backbone\.[a-z_]+(\.\d+)?|gates\.\d+|pixel_gate|adapter\.[a-z_]+(\.\d+)?")


@dataclass(frozen=True)
class Counted:
    """Bytes alive at the end and, at the most, on the way."""

    kept: int
    peak: int


@dataclass(frozen=True)
class State:
    """Bytes of a sampler's images: while the network is called, and at the most between calls."""

    during_calls: int
    between: int


@dataclass(frozen=True)
class _Stage:
    """What makes tensors without values that pass for those of a device."""

    device: torch.device
    fake: FakeTensorMode | None

    @classmethod
    def of(cls, device_type: str) -> Self:
        # Constants of modules have values.
        return (
            cls(META, None)
            if device_type != "cpu"
            else cls(torch.device("cpu"), FakeTensorMode(allow_non_fake_inputs=True))
        )

    def network(self, settings: PiDSettings, dtype: torch.dtype) -> PiD:
        """A new one, that has nothing from calls before."""
        network = meta_network(settings, dtype).requires_grad_(False)
        if self.fake is not None:
            with self.fake:
                tensors = {key: torch.empty(x.shape, dtype=x.dtype) for key, x in network.state_dict().items()}
            network.load_state_dict(tensors, assign=True)
        return network

    @contextmanager
    def entered(self) -> Generator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.fake is None:
                stack.enter_context(AcceleratorKernels())
            else:
                stack.enter_context(_forgetful())
                stack.enter_context(self.fake)
            yield


@contextmanager
def _forgetful() -> Generator[None]:
    """Inside, functions of the network that keep their results (tables for a device) do not: a table without values
    must not be there for the next decode."""
    kept = list[tuple[Any, str, Any]]()
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("pixdec.layers", "pixdec.models")):
            kept += [(module, name, f) for name, f in vars(module).items() if hasattr(f, "cache_parameters")]
    for module, name, function in kept:
        setattr(module, name, function.__wrapped__)
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


@lru_cache(maxsize=64)
def count_weights(settings: PiDSettings, dtype: torch.dtype, *, offloaded: bool) -> int:
    """Bytes of weights on the device."""
    network = meta_network(settings, dtype)
    return resident_bytes(network) if offloaded else sum(p.nbytes for p in network.parameters())


@lru_cache(maxsize=256)
def count_condition(
    settings: PiDSettings, height: int, width: int, batch: int, dtype: torch.dtype, *, tokens: bool, device_type: str
) -> Counted:
    """Bytes of the condition for images of height x width, beside the latents that it is made of."""
    stage = _Stage.of(device_type)
    network = stage.network(settings, dtype)
    with stage.entered():
        given = random_inputs(settings, height, width, batch, dtype, stage.device)
        assert given.latent is not None, "a prior is no decoder"
        with Meter(work=False) as meter:
            condition = network.condition(given.latent, tokens=tokens)
            kept = meter.alive
        del condition
    return Counted(kept, meter.most)


@lru_cache(maxsize=256)
def count_call(
    settings: PiDSettings,
    height: int,
    width: int,
    batch: int,
    dtype: torch.dtype,
    *,
    chunk: int,
    tokens: bool,
    tile: bool,
    device_type: str,
) -> Counted:
    """Bytes that a call of the network for height x width pixels takes, beside its inputs and its output, which is
    not kept. `tile`: these pixels are a part of a larger image.

    What many chunks take is found from two images of few: between one part's beginning or end and the next, the peak
    grows evenly with the image's rows.
    """
    few = _heights_of_few_chunks(settings, height, width, chunk)
    found = [
        _count_call(settings, rows, width, batch, dtype, chunk=chunk, tokens=tokens, tile=tile, device_type=device_type)
        for rows in (few or [height])
    ]
    if few is None:
        kept, peaks = found[0]
        return Counted(kept, max(peaks.values()))
    (less, more), share = found, (height - few[1]) / (few[1] - few[0])
    peaks = (peak + share * (peak - less[1][moment]) for moment, peak in more[1].items())
    return Counted(round(more[0] + share * (more[0] - less[0])), round(max(peaks)))


def _heights_of_few_chunks(settings: PiDSettings, height: int, width: int, chunk: int) -> tuple[int, int] | None:
    """Two heights of images whose peaks tell that of height x width; None if that is not much higher."""
    backbone, patch = settings.backbone, settings.backbone.patch
    together = max(1, chunk // (width // patch))  # rows of patches in a chunk
    if backbone.window is not None:
        together = max(1, together // backbone.window) * backbone.window
    unit = math.lcm(together * patch, _cell(settings))
    # Without windows only the pixel blocks are counted chunk by chunk, and most of the time goes elsewhere.
    return (2 * unit, 4 * unit) if height >= (8 if backbone.window is not None else 32) * unit else None


def _count_call(
    settings: PiDSettings,
    height: int,
    width: int,
    batch: int,
    dtype: torch.dtype,
    *,
    chunk: int,
    tokens: bool,
    tile: bool,
    device_type: str,
) -> tuple[int, dict[str, int]]:
    """Bytes that the network keeps, and the most that are alive at each moment: inside a part, or after it until the
    next one."""
    stage = _Stage.of(device_type)
    network = stage.network(settings, dtype)
    with stage.entered():
        given = random_inputs(settings, *_whole(settings, height, width, larger=tile), batch, dtype, stage.device)
        assert given.latent is not None, "a prior is no decoder"
        x_t, condition = given.x_t, network.condition(given.latent, tokens=tokens and not tile)
        if tile:
            patch = settings.backbone.patch
            x_t, condition = x_t[:, :, :height, :width], condition.crop(0, 0, height, width, patch)
        with Meter(work=False) as meter, _moments(meter, network) as peaks:
            velocity = network.velocity(x_t, given.t, given.text, condition, given.sigma, Execution(chunk=chunk))
        del velocity
        return meter.alive, peaks


@contextmanager
def _moments(meter: Meter, network: PiD) -> Generator[dict[str, int]]:
    """Inside, collects the peaks that `_count_call` has."""
    peaks, handles, moment = dict[str, int](), list[Any](), "beginning"

    def turn(following: str, *_: object) -> None:
        nonlocal moment
        peaks[moment] = max(peaks.get(moment, 0), meter.most)
        moment = following
        meter.reset()

    for name, module in network.named_modules():
        if _PART.fullmatch(name):
            handles.append(module.register_forward_pre_hook(partial(turn, f"inside {name}")))
            handles.append(module.register_forward_hook(partial(turn, f"after {name}")))
    try:
        yield peaks
        turn("end")
    finally:
        for handle in handles:
            handle.remove()


@lru_cache(maxsize=256)
def count_state(
    height: int,
    width: int,
    batch: int,
    *,
    patch: int,
    tiling: Tiling | None,
    teacher: bool,
    device_type: str,
) -> State:
    """Bytes of noise, state and estimates of a decode whose caller keeps each step until the next."""
    stage, shape = _Stage.of(device_type), (batch, 3, height, width)
    during = 0
    with stage.entered(), torch.device(stage.device):
        places = torch.empty(batch, 1, height // patch, width // patch)

        def noise(_: object) -> Tensor:
            if device_type != "cpu":
                return torch.randn(shape)  # drawn in host memory, then copied
            return torch.stack([torch.randn(shape[1:]) for _ in range(batch)])

        def velocity(x_t: Tensor, _: object) -> Tensor:
            nonlocal during
            during = max(during, meter.alive)
            return torch.empty(x_t.shape)

        def denoise(x_t: Tensor, _: Tensor) -> Tensor:
            return velocity(x_t, None) if tiling is None else tiled_velocity(velocity, x_t, condition, tiling)

        with Meter(work=False) as meter:
            condition = Condition(places, None, None)
            if teacher:
                both = guided(denoise, denoise, _GUIDANCE)
                steps = (step.x0.clamp(-1, 1) for step in dpm_solver(both, noise(shape), _TIMES))
            else:
                steps = (step.x0 for step in student(denoise, noise, shape, _TIMES))
            kept = None
            for x0 in steps:
                kept = x0
            del kept
    return State(during, meter.most)


def _cell(settings: PiDSettings) -> int:
    """The side in pixels of the smallest image, of which others are multiples."""
    assert settings.adapter is not None
    return math.lcm(settings.adapter.latent_factor * settings.adapter.scale, settings.backbone.patch)


def _whole(settings: PiDSettings, height: int, width: int, *, larger: bool) -> tuple[int, int]:
    """The size of an image that a network can be called for as a whole: this one, or one that has it as a part."""
    cell = _cell(settings)
    return ((height // cell + 1) * cell, (width // cell + 1) * cell) if larger else (height, width)
