"""Velocity tiling: tiles cover the image, agree with the whole, and leave no seam."""

from itertools import pairwise

import pytest
import torch

from battery import randomised
from pixdec.decoder import PixelDecoder
from pixdec.inference.config import InferenceConfig
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import Condition, PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.sampling.tiling import Tile, Tiling, tiled_velocity

BACKBONE = PixDiTSettings(
    hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 192), (208, 176), (32, 400), (48, 48)])
def test_tiles_cover_the_image_and_overlap(height: int, width: int):
    tiling = Tiling(height, width, side=64, overlap=16, patch=8)
    covered = torch.zeros(1, 1, height, width)
    for tile in tiling:
        assert tile.top % 8 == tile.left % 8 == 0
        assert (tile.height, tile.width) == (min(64, height), min(64, width))
        assert tile.of(covered).shape[2:] == (tile.height, tile.width)
        tile.of(covered).add_(1)
        weight = tiling.weight(tile, covered.device)
        assert weight.min() > 0
        assert weight.max() <= 1
    assert covered.min() == 1
    lefts = sorted({tile.left for tile in tiling})
    assert all(b - a <= 64 - 16 for a, b in pairwise(lefts))


def test_a_velocity_that_looks_at_single_pixels_is_the_same_in_tiles():
    tiling = Tiling(208, 176, side=64, overlap=16, patch=8)
    x = torch.randn(2, 3, 208, 176)
    condition = Condition(torch.randn(2, 5, 26, 22), None)

    def velocity(part: torch.Tensor, crop: Condition) -> torch.Tensor:
        assert crop.features.shape[2:] == (part.shape[2] // 8, part.shape[3] // 8)
        return 2 * part + crop.features.mean(1, keepdim=True).repeat_interleave(8, 2).repeat_interleave(8, 3)

    whole = velocity(x, condition)
    assert torch.allclose(tiled_velocity(velocity, x, condition, tiling), whole, atol=1e-5)


@torch.no_grad()
def test_a_network_in_one_tile_is_the_network():
    network = randomised(PiD(PiDSettings(BACKBONE, AdapterSettings(width=8, blocks=1))).initialize())
    latent, x, text = torch.randn(1, 16, 2, 3), torch.randn(1, 3, 64, 96), torch.randn(1, 6, 12)
    t, sigma = torch.tensor([0.5]), torch.tensor([0.2])
    whole = network.velocity(x, t, text, network.condition(latent), sigma)
    tiled = tiled_velocity(
        lambda part, condition: network.velocity(part, t, text, condition, sigma),
        x,
        network.condition(latent, tokens=False),
        Tiling(64, 96, side=96, overlap=16, patch=16),
    )
    assert torch.allclose(tiled, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 60}, "side=60"),
        ({"overlap": 0}, "overlap=0"),
        ({"overlap": 40}, "overlap=40"),
        ({"height": 65}, "height=65"),
    ],
)
def test_tilings_that_cannot_be(change: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        Tiling(**{"height": 64, "width": 64, "side": 64, "overlap": 16, "patch": 8, **change})


@pytest.fixture(scope="module")
def decoded() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of soft shapes and fine stripes, decoded as a whole and in tiles of 256, (1,3,512,512) each."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 128), indexing="ij")
    low = (
        torch.stack((rows, (6.3 * columns).sin() * 0.5 + 0.5, ((rows + columns) * 60).sin() * 0.2 + 0.5))[None] * 2 - 1
    )
    latent = Latent(low, get_space("rgb"))
    decoder = PixelDecoder.from_pretrained(device="cpu", dtype=torch.float32)
    whole = decoder.decode(latent, steps=1, output="pt")  # one, so that no later one smooths it
    decoder.config = InferenceConfig(tile=256)
    return whole, decoder.decode(latent, steps=1, output="pt")


def test_tiled_is_close_to_whole(decoded: tuple[torch.Tensor, torch.Tensor]):
    whole, tiled = decoded
    psnr = -10 * (whole - tiled).square().mean().log10()
    assert 30 < psnr < 90, "90 dB would mean that no tile was used"


def test_no_seam_at_the_borders_of_tiles(decoded: tuple[torch.Tensor, torch.Tensor]):
    """What tiling adds to the image has no step at the tiles' borders: its gradient energy there is that of the patch
    borders beside them, but for a thousandth of the image's own. A decode has its patches' phase in it, so columns of
    another phase would tell nothing."""
    whole, tiled = decoded
    tiling = Tiling(512, 512, side=256, overlap=32, patch=8)
    extra = ((tiled - whole).diff(dim=3)).square().mean((0, 1, 2))  # energy of the tiles' own gradients, by column
    borders = {edge for tile in tiling for edge in (tile.left, tile.left + tile.width) if 0 < edge < 512}
    across = torch.stack([extra[edge - 1] for edge in borders]).mean()
    inside = torch.stack([extra[edge - 1 + offset] for edge in borders for offset in (-16, -8, 8, 16)]).mean()
    assert 0 < across < 2 * inside + 1e-3 * whole.diff(dim=3).square().mean()


def test_tile_reads_its_part():
    assert torch.equal(
        Tile(1, 2, 2, 3).of(torch.arange(24.0).view(1, 1, 4, 6)), torch.tensor([[[[8.0, 9, 10], [14, 15, 16]]]])
    )
