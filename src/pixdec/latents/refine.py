"""Brings an encoder's latent nearer to its image, by gradient descent through the decoder that belongs to it.

An encoder guesses in one pass what its decoder needs; the best latent z minimises |e|² + 16·|ē|², where the error
e = decode(z) − x and ē are its means over 4 x 4 pixels: an error that is the same over a few pixels is seen as a drift
of colour. A few steps from the guess make up for most of what it missed. Only the latent moves: no weight does.

B batch · C latent channels · h, w latent grid · f pixels per latent, in both directions
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

RATE = 0.1  # of Adam's first step, in deviations of a normalised latent; falls to zero along a half cosine
BETAS = (0.8, 0.95)  # short memories, for a few steps
COARSE = 4  # pixels a side of what means are taken over; such an error counts as often as it has pixels
TILE, HALO = 512, 64  # pixels a side that are decoded at once, and what is decoded around them for their sake


def refine(latent: Tensor, images: Tensor, decode: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Normalised latents (B,C,h,w) of images (B,3,h·f,w·f) in [-1,1] -> latents whose decode is nearer to the images,
    float32.

    decode: latents (B,C,h',w') -> images (B,3,h'·f,w'·f), differentiable; it is shown at most TILE + 2·HALO pixels a
    side, whatever the size of the image. Every image of a batch goes its own way, as it would alone.

    Raises:
        ValueError: steps below 0.
    """
    if steps < 0:
        raise ValueError(f"steps={steps}: expected 0 (leave the latent as it is) or more")
    if steps == 0:
        return latent.float()
    with torch.inference_mode(False), torch.enable_grad():
        target = images.detach().clone()
        found = latent.detach().float().clone().requires_grad_()
        factor = images.shape[2] // latent.shape[2]
        tiles = list(itertools.product(*(_parts(side, TILE // factor) for side in latent.shape[2:])))
        optimizer = torch.optim.Adam([found], lr=RATE, betas=BETAS)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            for rows, columns in tiles:
                _error(found, target, decode, rows, columns).backward()
            optimizer.step()
    return found.detach()


def _error(latent: Tensor, images: Tensor, decode: Callable[[Tensor], Tensor], rows: range, columns: range) -> Tensor:
    """The error of the pixels of these rows and columns of latents."""
    factor = images.shape[2] // latent.shape[2]
    halo = math.ceil(HALO / factor)
    top, left = max(0, rows.start - halo), max(0, columns.start - halo)
    decoded = decode(latent[:, :, top : rows.stop + halo, left : columns.stop + halo])
    down, across = _pixels(rows, top, factor), _pixels(columns, left, factor)
    wanted = images[:, :, _pixels(rows, 0, factor), _pixels(columns, 0, factor)]
    error = decoded[:, :, down, across].float() - wanted.float()
    return error.square().sum() + COARSE**2 * F.avg_pool2d(error, COARSE).square().sum()


def _pixels(latents: range, first: int, factor: int) -> slice:
    """Where the pixels of these latents are, in an image that begins with latent `first`."""
    return slice((latents.start - first) * factor, (latents.stop - first) * factor)


def _parts(length: int, most: int) -> list[range]:
    """Consecutive parts of at most so many, as even as can be."""
    count = math.ceil(length / most)
    return [range(length * i // count, length * (i + 1) // count) for i in range(count)]
