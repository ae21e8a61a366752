"""Generators in the space of a vision encoder: stopped early, and what they hold decoded.

DiT-DH and Scale-RAE are no diffusers pipelines; each brings its own loop. A loop that yields after each step is all
that is asked of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from pixdec.integrations.vision.recipes import check_grid
from pixdec.latents import Latent, get_space

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixdec.decoder import PixelDecoder

Condition = TypeVar("Condition")
_Condition = TypeVar("_Condition", contravariant=True)

Stop: TypeAlias = int | float | None
"""A whole number: after that many steps. A fraction between 0 and 1: after the first step whose sigma is at most that.
None: at the end."""


class LatentGenerator(Protocol[_Condition]):
    """Anything that is called with what to make (captions, class numbers, …) and yields (latent, sigma) as it denoises.

    One pair after each step: the normalised latent (B,C,h,w) = (1 − sigma)·z + sigma·noise, and its sigma in [0,1]; one
    number, or (B,). The noise itself, sigma 1, may come first and is not counted as a step.
    """

    def __call__(self, condition: _Condition, /) -> Iterable[tuple[Tensor, float | Tensor]]: ...


def capture(
    generator: LatentGenerator[Condition], condition: Condition, space: str, *, stop_after: Stop = None
) -> Latent:
    """Runs a generator up to `stop_after` and returns the latent it holds there; later steps are not made.

    The generator runs without gradients, and is closed where it stops: its `finally` and `with` blocks end there.

    Raises ValueError for a bad stop, one that the run does not reach, pairs that are none, and latents that are not
    normalised ones of `space` on its grid (32x32 for "dinov2", 16x16 for "siglip").
    """
    _check_stop(stop_after)
    target = get_space(space)
    latent, sigma = _run(generator, condition, stop_after)
    held = Latent(latent.detach(), target, sigma)
    check_grid(held.tensor, target)
    return held


def generate(
    generator: LatentGenerator[Condition],
    condition: Condition,
    decoder: PixelDecoder,
    *,
    stop_after: Stop = None,
    prompt: str | Sequence[str] | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
) -> list[Image]:
    """Runs a generator up to `stop_after` and decodes what it holds, 4x (DINOv2) or 8x (SigLIP-2) larger.

    prompt: the decoder's captions, one or one for each image. None takes the condition if that is a caption or a list
    of them, otherwise (class numbers) none. steps, seed: see `PixelDecoder.decode`.

    Raises ValueError as `capture` and `PixelDecoder.decode` do.
    """
    latent = capture(generator, condition, decoder.space.name, stop_after=stop_after)
    if prompt is None:
        prompt = _captions(condition) if decoder.model.needs_text else ""
    return decoder.decode(latent, prompt, seed=seed, steps=steps)


def _run(generator: LatentGenerator[Condition], condition: Condition, stop: Stop) -> tuple[Tensor, float | Tensor]:
    held: tuple[Tensor, float | Tensor] | None = None
    step, level = 0, 1.0
    states = iter(generator(condition))
    try:
        with torch.no_grad():
            for state in states:
                latent, sigma = _pair(state)
                level = float(torch.as_tensor(sigma, dtype=torch.float32).max())
                if step == 0 and level >= 1:
                    continue
                step += 1
                held = latent, sigma
                if stop is not None and _reached(stop, step, level):
                    return held
    finally:
        close = getattr(states, "close", None)  # generators have it, other iterators need none
        if close is not None:
            close()
    if held is None:
        raise ValueError("the generator yielded no latent with sigma below 1; sigma runs from 1, noise, down to 0")
    if stop is not None:
        raise ValueError(
            f"stop_after={stop}: the generator ended after {step} steps with sigma {level:.3g}; "
            "ask for a stop before that, or None"
        )
    return held


def _reached(stop: float, step: int, level: float) -> bool:
    # In float32 like the level: 0.2 as a tensor of a generator is a little more than the 0.2 that was asked for.
    return step == stop if isinstance(stop, int) else level <= float(torch.tensor(stop, dtype=torch.float32))


def _check_stop(stop: object) -> None:
    step = isinstance(stop, int) and not isinstance(stop, bool) and stop >= 1
    if not (stop is None or step or (isinstance(stop, float) and 0 < stop < 1)):
        raise ValueError(
            f"stop_after={stop!r}: expected a number of steps from 1, a sigma between 0.0 and 1.0, or None"
        )


def _pair(state: object) -> tuple[Tensor, float | Tensor]:
    if isinstance(state, tuple) and len(cast("tuple[object, ...]", state)) == 2:
        latent, sigma = cast("tuple[object, object]", state)
        if isinstance(latent, Tensor) and isinstance(sigma, Tensor | float | int):
            return latent, sigma
    raise ValueError(f"the generator yielded a {type(state).__name__}; expected pairs (latent, sigma)")


def _captions(condition: object) -> str | list[str]:
    if isinstance(condition, str):
        return condition
    each = list(cast("Sequence[object]", condition)) if isinstance(condition, list | tuple) else []
    captions = [caption for caption in each if isinstance(caption, str)]
    return captions if captions and len(captions) == len(each) else ""
