"""Generators in the space of a vision encoder: stopped early, and what they hold decoded.

DiT-DH and Scale-RAE are no diffusers pipelines; each brings its own loop. A loop that yields after each step is all
that is asked of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor

from pixdec.integrations.stops import Stop, check_stops, is_reached
from pixdec.integrations.vision.preprocessing import check_grid
from pixdec.latents import Latent, get_space

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixdec.decoder import PixelDecoder

Condition = TypeVar("Condition")
_Condition = TypeVar("_Condition", contravariant=True)


class LatentGenerator(Protocol[_Condition]):
    """Anything that is called with what to make (captions, class numbers, …) and yields (latent, sigma) as it denoises.

    One pair after each step: the normalised latent (B,C,h,w) = (1 − sigma)·z + sigma·noise, and its sigma in [0,1]; one
    number, or (B,). The noise itself, sigma 1, may come first and is not counted as a step.
    """

    def __call__(self, condition: _Condition, /) -> Iterable[tuple[Tensor, float | Tensor]]: ...


@overload
def capture(
    generator: LatentGenerator[Condition], condition: Condition, *, space: str, stop_after: Sequence[Stop]
) -> list[Latent]: ...


@overload
def capture(
    generator: LatentGenerator[Condition], condition: Condition, *, space: str, stop_after: Stop = None
) -> Latent: ...


def capture(
    generator: LatentGenerator[Condition],
    condition: Condition,
    *,
    space: str,
    stop_after: Stop | Sequence[Stop] = None,
) -> Latent | list[Latent]:
    """Runs a generator up to `stop_after` and returns the latent it holds there; later steps are not made.

    The generator runs without gradients, and is closed where it stops: its `finally` and `with` blocks end there.

    Args:
        generator: see `LatentGenerator`.
        condition: what it is called with.
        space: the space of its latents.
        stop_after: a list of stops gives a list of latents from one run.

    Raises:
        ValueError: a bad stop, one that the run does not reach, pairs that are none, and latents that are not
            normalised ones of `space` on its grid (32x32 for "dinov2", 16x16 for "siglip").
    """
    target = get_space(space)
    latents = [Latent(latent, target, sigma) for latent, sigma in _run(generator, condition, check_stops(stop_after))]
    for latent in latents:
        check_grid(latent.tensor, target)
    return latents if isinstance(stop_after, list | tuple) else latents[0]


def generate(
    generator: LatentGenerator[Condition],
    decoder: PixelDecoder,
    condition: Condition,
    *,
    stop_after: Stop = None,
    decoder_prompt: str | Sequence[str] | None = None,
    decoder_steps: int | None = None,
    decoder_seed: int | Sequence[int] = 0,
) -> list[Image]:
    """Runs a generator up to `stop_after` and decodes what it holds, 4x (DINOv2) or 8x (SigLIP-2) larger.

    decoder_prompt: the decoder's prompts, one or one for each image. None takes the condition if that is a text or a
    list of texts, otherwise (class numbers) none. decoder_steps, decoder_seed: see `PixelDecoder.decode`.

    Raises ValueError as `capture` and `PixelDecoder.decode` do.
    """
    if isinstance(stop_after, list | tuple):
        raise ValueError(f"stop_after={stop_after!r}: one set of images is made; give one stop")
    latent = capture(generator, condition, space=decoder.space.name, stop_after=stop_after)
    if decoder_prompt is None:
        decoder_prompt = _captions(condition) if decoder.model.needs_text else ""
    return decoder.decode(latent, decoder_prompt, seed=decoder_seed, steps=decoder_steps)


def _run(
    generator: LatentGenerator[Condition], condition: Condition, stops: Sequence[Stop]
) -> list[tuple[Tensor, float | Tensor]]:
    """What the generator held at each stop: latent and sigma."""
    numbers = [None if stop == "auto" else stop for stop in stops]  # no published run of such a space stops early
    held: list[tuple[Tensor, float | Tensor] | None] = [None] * len(stops)
    step, level = 0, 1.0
    last: tuple[Tensor, float | Tensor] | None = None
    states = iter(generator(condition))
    try:
        with torch.no_grad():
            for state in states:
                latent, sigma = _pair(state)
                level = float(torch.as_tensor(sigma, dtype=torch.float32, device="cpu").max())
                if step == 0 and level >= 1:
                    continue
                step += 1
                last = latent.detach(), sigma
                for i, number in enumerate(numbers):
                    if number is not None and held[i] is None and is_reached(number, step, level):
                        held[i] = last
                if all(each is not None for each in held):
                    break
    finally:
        close = getattr(states, "close", None)  # generators have it, other iterators need none
        if close is not None:
            close()
    if last is None:
        raise ValueError("the generator yielded no latent with sigma below 1; sigma runs from 1, noise, down to 0")
    missed = next((number for number, each in zip(numbers, held, strict=True) if each is None and number), None)
    if missed is not None:
        raise ValueError(
            f"stop_after={missed}: the generator ended after {step} steps with sigma {level:.3g}; "
            "ask for a stop before that, or None"
        )
    return [each or last for each in held]


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
