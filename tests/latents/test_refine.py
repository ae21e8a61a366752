"""Latents brought nearer to their images through a decoder."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.latents import refine as module
from pixdec.latents.refine import refine

FACTOR = 4


class Local(nn.Module):
    """A small decoder: each pixel depends on the latents within two of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 3 * FACTOR**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        return F.pixel_shuffle(self.last(self.first(latent).tanh()), FACTOR)


@pytest.fixture
def decode() -> Local:
    torch.manual_seed(0)
    return Local().requires_grad_(False)


def mistake(decode: Local, latent: Tensor, images: Tensor) -> float:
    return float((decode(latent) - images).square().mean())


def test_each_step_counts(decode: Local):
    images = decode(torch.randn(2, 8, 6, 5))
    guess = torch.zeros(2, 8, 6, 5)
    errors = [mistake(decode, refine(guess, images, decode, steps), images) for steps in (0, 4, 16, 64)]
    assert errors[0] == mistake(decode, guess, images)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]
    assert not guess.any()  # the guess itself is left alone


def test_each_image_goes_its_own_way(decode: Local):
    images, guess = torch.rand(3, 3, 24, 20) * 2 - 1, torch.randn(3, 8, 6, 5)
    together = refine(guess, images, decode, 8)
    alone = torch.cat([refine(guess[i : i + 1], images[i : i + 1], decode, 8) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_tiles_show_nowhere(decode: Local, monkeypatch: pytest.MonkeyPatch):
    images, guess = torch.rand(1, 3, 52, 36) * 2 - 1, torch.randn(1, 8, 13, 9)
    whole = refine(guess, images, decode, 8)
    seen = list[tuple[int, ...]]()

    def watched(latent: Tensor) -> Tensor:
        seen.append(tuple(latent.shape[2:]))
        return decode(latent)

    monkeypatch.setattr(module, "TILE", 5 * FACTOR)
    monkeypatch.setattr(module, "HALO", 2 * FACTOR)  # what a pixel of this decoder depends on
    tiled = refine(guess, images, watched, 8)
    assert torch.allclose(tiled, whole, atol=1e-4)
    assert max(max(shape) for shape in seen) <= 5 + 2 * 2
    monkeypatch.setattr(module, "HALO", 0)
    assert not torch.allclose(refine(guess, images, decode, 8), whole, atol=1e-4)  # or the test could not fail


def test_it_works_where_no_gradients_are_kept(decode: Local):
    with torch.inference_mode():
        images, guess = torch.rand(1, 3, 24, 20), torch.randn(1, 8, 6, 5)
        found = refine(guess, images, decode, 2)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in decode.parameters())


def test_steps_below_none_are_refused(decode: Local):
    with pytest.raises(ValueError, match="steps=-1: expected 0"):
        refine(torch.zeros(1, 8, 6, 5), torch.zeros(1, 3, 24, 20), decode, -1)
