"""Generators of the vision-encoder spaces, stopped early: an exact Gaussian flow, and tiny PiD networks to decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vision_tiny import GRID, SCALE, decoder, dinov2, images, noise, siglip, statistics

from pixdec.integrations.vision import VisionEncoder, capture, generate
from pixdec.latents import Latent, get_space

SIGMAS = (1.0, 0.9, 0.75, 0.55, 0.35, 0.2, 0.1, 0.0)  # seven steps
SPREAD = 0.6  # standard deviation of the clean latents


class GaussianFlow:
    """Class-conditional, and exact: z ~ N(class / 10, SPREAD²) in every value of the latent.

    Along the flow x = (1−σ)·z + σ·noise keeps its place within its distribution: x − (1−σ)·mean grows with
    r(σ) = sqrt((1−σ)²·SPREAD² + σ²).
    """

    def __init__(self, space: str, *, with_noise: bool = False):
        self.shape = (get_space(space).channels, GRID[space], GRID[space])
        self.with_noise = with_noise
        self.steps: list[float] = []
        self.closed = False

    def __call__(self, condition: Sequence[int], /) -> Iterator[tuple[Tensor, float]]:
        self.running = self.denoise(condition)  # held here too, so that only close() ends it
        return self.running

    def denoise(self, condition: Sequence[int]) -> Iterator[tuple[Tensor, float]]:
        mean = torch.tensor(condition).view(-1, 1, 1, 1) / 10
        x = torch.stack([noise(*self.shape, seed=label) for label in condition])
        try:
            if self.with_noise:
                yield x, SIGMAS[0]
            for sigma, following in pairwise(SIGMAS):
                self.steps.append(following)
                x = (x - (1 - sigma) * mean) * (spread(following) / spread(sigma)) + (1 - following) * mean
                yield x, following
        finally:
            self.closed = True


def spread(sigma: float) -> float:
    return math.hypot((1 - sigma) * SPREAD, sigma)


@pytest.mark.parametrize("space", ["dinov2", "siglip"])
@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize(
    ("stop", "steps"), [(1, 1), (4, 4), (7, 7), (0.5, 4), (0.35, 4), (0.3, 5), (0.2, 5), (None, 7)], ids=str
)
def test_the_captured_latent_is_as_noisy_as_its_sigma(
    space: str, with_noise: bool, stop: int | float | None, steps: int
):
    flow = GaussianFlow(space, with_noise=with_noise)
    latent = capture(flow, [1, 2], space=space, stop_after=stop)
    assert flow.steps == list(SIGMAS[1 : steps + 1])  # later steps were not made
    assert flow.closed  # where it stopped
    assert latent.space.name == space
    assert latent.sigma.tolist() == pytest.approx([SIGMAS[steps]] * 2)
    for held, label in zip(latent.tensor, (1, 2), strict=True):
        # From one step to the next the standard deviation changes by a tenth and more.
        assert float(held.std()) == pytest.approx(spread(SIGMAS[steps]), rel=0.01)
        assert float(held.mean()) == pytest.approx((1 - SIGMAS[steps]) * label / 10, abs=0.01)


def test_the_generator_runs_without_gradients():
    weight = torch.ones(1, requires_grad=True)

    def generator(condition: int, /) -> Iterator[tuple[Tensor, Tensor]]:
        yield noise(condition, 1152, 16, 16) * weight, torch.full((condition,), 0.5)

    latent = capture(generator, 2, space="siglip")
    assert not latent.tensor.requires_grad
    assert latent.sigma.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("space", ["dinov2", "siglip"])
def test_encoded_and_decoded_at_the_full_grid(space: str, tmp_path: Path):
    """512 or 256 pixels in, 2048 out."""
    encoder = VisionEncoder("dinov2", dinov2(), statistics()) if space == "dinov2" else VisionEncoder(space, siglip())
    side = 16 * GRID[space]
    made = decoder(tmp_path, space, patch=64)
    latent = encoder.encode(images(1, side))
    tensor = made.decode(latent, "a red fox", steps=1, output="pt")
    assert tensor.shape == (1, 3, side * SCALE[space], side * SCALE[space]) == (1, 3, 2048, 2048)
    assert 0 <= tensor.min() < tensor.max() <= 1


def test_generated_images(tmp_path: Path):
    made = decoder(tmp_path, "siglip", scale=1)
    flow = GaussianFlow("siglip")
    pictures = generate(
        flow, made, [3, 4], stop_after=0.4, decoder_prompt=["a red fox", "a vase"], decoder_steps=1, decoder_seed=5
    )
    assert [picture.size for picture in pictures] == [(256, 256)] * 2
    assert flow.steps == [0.9, 0.75, 0.55, 0.35]
    latent = capture(flow, [3, 4], space="siglip", stop_after=4)
    expected = made.decode(latent, ["a red fox", "a vase"], steps=1, seed=5)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(pictures, expected, strict=True))


def test_captions_are_the_condition_if_that_is_text(tmp_path: Path):
    made = decoder(tmp_path, "siglip", scale=1)
    captions: Any = made.captions

    def text_conditional(condition: str | list[str], /) -> Iterator[tuple[Tensor, float]]:
        yield noise(1 if isinstance(condition, str) else len(condition), 1152, 16, 16), 0.1

    for condition, prompt in (("a fox", None), (["a fox"], None), (["a fox"], "a dog"), ("a fox", "")):
        generate(text_conditional, made, condition, decoder_steps=1, decoder_prompt=prompt)
    generate(GaussianFlow("siglip"), made, [1], decoder_steps=1)
    assert captions.asked == [["a fox"], ["a fox"], ["a dog"], [""], [""]]


@pytest.mark.parametrize("space", ["dinov2", "siglip"])
def test_with_the_released_patch(space: str, tmp_path: Path):
    """Patches of 16 pixels: one cell of the latent is 4x4 of them at 4x, 8x8 at 8x."""
    made, scale = decoder(tmp_path, space), SCALE[space]
    latent = Latent(noise(2, get_space(space).channels, 2, 3), get_space(space), [0.0, 0.4])
    image = made.decode(latent, ["a", "b"], seed=[5, 6], output="pt")
    assert made.scale == scale
    assert made.network.adapter.spread == scale
    assert image.shape == (2, 3, 2 * 16 * scale, 3 * 16 * scale)
    assert torch.equal(made.decode(latent, ["a", "b"], seed=[5, 6], output="pt"), image)
    alone = Latent(latent.tensor[1:], latent.space, 0.4)
    torch.testing.assert_close(made.decode(alone, "b", seed=6, output="pt"), image[1:], atol=1e-5, rtol=0)
    assert not torch.allclose(made.decode(alone, "b", seed=7, output="pt"), image[1:], atol=1e-3)
    for other in (Latent(alone.tensor, alone.space), Latent(alone.tensor.flip(3), alone.space, 0.4)):
        assert not torch.equal(made.decode(other, "b", seed=6, output="pt"), image[1:])


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (0, "stop_after=0: expected a number of steps from 1"),
        (True, "stop_after=True"),
        (1.0, r"stop_after=1.0: .*a sigma between 0.0 and 1.0"),
        (-0.2, "stop_after=-0.2"),
        (8, r"stop_after=8: the generator ended after 7 steps with sigma 0;"),
    ],
)
def test_stops_that_are_none(stop: Any, message: str):
    refused(lambda: capture(GaussianFlow("siglip"), [1], space="siglip", stop_after=stop), message)


def test_a_sigma_that_is_never_reached():
    def stays_noisy(condition: None, /) -> Iterator[tuple[Tensor, float]]:
        yield noise(1, 1152, 16, 16), 0.5

    refused(lambda: capture(stays_noisy, None, space="siglip", stop_after=0.2), "ended after 1 steps with sigma 0.5")


@pytest.mark.parametrize("sigma", [0.2, 0.35])
def test_a_sigma_is_reached_whatever_its_precision(sigma: float):
    for level in (sigma, torch.tensor(sigma), torch.tensor([sigma], dtype=torch.float64)):
        assert capture(
            lambda _, level=level: iter([(noise(1, 1152, 16, 16), level)]), None, space="siglip", stop_after=sigma
        )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (noise(2, 1152, 16, 16), r"yielded a Tensor; expected pairs \(latent, sigma\)"),
        ((0.5, noise(1, 1152, 16, 16)), "yielded a tuple; expected pairs"),
        ((noise(1, 1152, 16, 16), 1.0), "no latent with sigma below 1"),
        ((noise(1, 1152, 16, 16), float("nan")), r"expected noise levels in \[0, 1\]"),
        ((noise(1, 1152, 32, 32), 0.5), "siglip latent on a grid of 32x32; expected 16x16"),
        ((noise(1, 256, 1152), 0.5), r"unpack\(latent, height, width\)"),
        ((noise(1, 768, 32, 32), 0.5), "a latent of dinov2"),
        ((3 * noise(1, 1152, 16, 16) + 1, 0.0), "it looks raw"),
    ],
    ids=["no-pair", "exchanged", "only-noise", "nan", "grid", "tokens", "space", "raw"],
)
def test_what_a_generator_must_not_yield(state: Any, message: str):
    refused(lambda: capture(lambda _: iter([state]), None, space="siglip"), message)


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_several_stops_are_one_run():
    flow = GaussianFlow("siglip")
    captured = capture(flow, [1], space="siglip", stop_after=[2, 0.4, "auto", None])
    assert len(flow.steps) == len(set(flow.steps))
    alone = [capture(GaussianFlow("siglip"), [1], space="siglip", stop_after=stop) for stop in (2, 0.4, None, None)]
    for one, other in zip(captured, alone, strict=True):
        assert torch.equal(one.tensor, other.tensor)
        assert torch.equal(one.sigma, other.sigma)
