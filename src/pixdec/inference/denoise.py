"""One batch from noise to image: its noise levels, its sampler, and the network as a whole or in tiles.

B batch · C latent channels · H, W output pixels, whole patches · T text tokens · E their width
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from pixdec.inference.runner import Arrangement
from pixdec.inference.sharing import share_images
from pixdec.models.pid import PiD
from pixdec.sampling.flow import resolution_shift, shifted_times, student_times
from pixdec.sampling.samplers import NoiseSource, Step, dpm_solver, guided, student
from pixdec.sampling.tiling import tiled_velocity
from pixdec.weights.load import LoadedDecoder

TEACHER_STEPS = 25
TEACHER_GUIDANCE = 5.0
TEACHER_START = 0.999  # the first noise level before the shift


def times_for(model: LoadedDecoder, steps: int | None, height: int, width: int) -> list[float]:
    """The noise level at each step, and 0 at the end, for a network that sees height x width pixels at a time.

    ValueError for a number of steps that it does not take.
    """
    if model.kind == "student":
        trained = model.times
        return student_times(trained, len(trained) - 1 if steps is None else steps, distilled=is_distilled(model))
    shift = resolution_shift(height, width, model.version)
    return shifted_times(TEACHER_STEPS if steps is None else steps, shift, TEACHER_START)


def is_distilled(model: LoadedDecoder) -> bool:
    """Whether a network knows the noise levels of its own list only; ours has learnt all alike."""
    return model.kind == "student" and model.network.settings.prediction != "residual"


def denoised(
    network: PiD,
    *,
    latent: Tensor,
    sigma: Tensor,
    text: Tensor | None,
    negative: Tensor | None,
    guidance: float | None,
    seeds: Sequence[int],
    times: Sequence[float],
    size: tuple[int, int],
    arranged: Arrangement,
) -> Iterator[Step]:
    """A normalised latent (B,C,h,w) of noise levels sigma (B,) -> the steps to its image, each x0 (B,3,*size), float32,
    in [-1,1], as it is `arranged`. All tensors are on the network's device.

    guidance: None for a few-step student; else that of a teacher, from `negative` to `text`, both (B,T,E) for networks
    that read text.
    """
    tiling, context, chunk = arranged.tiling, arranged.context, arranged.chunk
    condition = network.condition(latent, tokens=arranged.keep_tokens)
    call = arranged.graphs or network.velocity

    def velocity(x_t: Tensor, t: Tensor, *, text: Tensor | None) -> Tensor:
        if tiling is None:
            with share_images(network, context):
                return call(x_t, t, text, condition, sigma, chunk)
        return tiled_velocity(
            lambda tile, cropped: call(tile, t, text, cropped, sigma, chunk), x_t, condition, tiling, context
        )

    calls = len(times) - 1 if guidance is None else 1
    noise, shape = NoiseSource(seeds, latent.device, calls), (len(seeds), 3, *size)
    if guidance is None:
        yield from student(partial(velocity, text=text), noise, shape, times)
        return
    denoise = guided(partial(velocity, text=text), partial(velocity, text=negative), guidance)
    for step in dpm_solver(denoise, noise(shape), times):
        yield replace(step, x0=step.x0.clamp(-1, 1))
