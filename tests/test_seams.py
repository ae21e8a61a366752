"""No visible seam where the bundled decoder's tiles meet, and a measure that would see one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pixdec.decoder import PixelDecoder
from pixdec.inference.config import InferenceConfig
from pixdec.io.images import resize
from pixdec.sampling.tiling import Tile, Tiling

SIDE = 640  # output pixels; three tiles of 256 a side
TILING = Tiling(SIDE, SIDE, side=256, overlap=32, patch=4)
PATCHES = (-24, -16, -8, 8, 16, 24)  # columns of the same place in their patch: a decode has its patches' grid in it


def photograph(side: int) -> Tensor:
    """(1,3,side,side) in [-1,1] with the spectrum and the hard edges of a photograph."""
    generator, image, grid = torch.Generator().manual_seed(0), torch.zeros(1, 3, side, side), 2
    while grid <= side:
        image += resize(torch.randn(1, 3, grid, grid, generator=generator), side, side) * (2 / grid) ** 0.9
        grid *= 2
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    image += 0.8 * ((rows**2 + columns**2) < 0.4).float() - 0.8 * ((rows + 0.3 * columns) > 0.35).float()
    return (0.4 * image).tanh()


def steps_at_borders(extra: Tensor) -> list[float]:
    """For every side at which a tile ends inside the image: the gradient energy of `extra` (1,3,H,W) across it, over
    that along the columns beside it."""
    found: list[float] = []
    for image, tiles in ((extra, list(TILING)), (extra.transpose(2, 3), list(map(turned, TILING)))):
        energy = image.diff(dim=3).square().mean((0, 1))  # of the step from each column to the next
        for tile in tiles:
            beside = energy[tile.top : tile.top + tile.height].mean(0)
            for edge in (tile.left, tile.left + tile.width):
                if 0 < edge < SIDE:
                    found.append(float(beside[edge - 1] / beside[[edge - 1 + n for n in PATCHES]].mean()))
    return found


def turned(tile: Tile) -> Tile:
    return Tile(tile.left, tile.top, tile.width, tile.height)


@pytest.fixture(scope="module")
def decoder() -> Iterator[PixelDecoder]:
    decoder = PixelDecoder.from_pretrained(device="cpu", dtype=torch.float32)
    yield decoder


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return photograph(SIDE // 4)


@pytest.fixture(scope="module")
def whole(decoder: PixelDecoder, latent: Tensor) -> Tensor:
    return decoder.decode(latent, steps=1, output="pt")


def tiled(decoder: PixelDecoder, latent: Tensor) -> Tensor:
    decoder.config = InferenceConfig(tile=TILING.side)
    return decoder.decode(latent, steps=1, output="pt")


def test_no_seam(decoder: PixelDecoder, latent: Tensor, whole: Tensor):
    """One step, so that no later one smooths it."""
    extra = tiled(decoder, latent) - whole
    assert extra.abs().max() > 0, "no tile was used"
    assert extra.diff(dim=3).square().mean() < 1e-2 * whole.diff(dim=3).square().mean()
    steps = steps_at_borders(extra)
    assert len(steps) == 24
    assert max(steps) < 3
    assert sum(steps) / len(steps) < 1


def test_the_measure_sees_the_seam_of_one_tile_without_blending(
    decoder: PixelDecoder, latent: Tensor, whole: Tensor, monkeypatch: pytest.MonkeyPatch
):
    blended, hard = Tiling.weight, list(TILING)[1]

    def weight(tiling: Tiling, tile: Tile, device: torch.device) -> Tensor:
        weights = blended(tiling, tile, device)
        return torch.ones_like(weights) if tile == hard else weights

    monkeypatch.setattr(Tiling, "weight", weight)
    steps = steps_at_borders(tiled(decoder, latent) - whole)
    assert max(steps) > 6
    assert sum(steps) / len(steps) > 1.3
