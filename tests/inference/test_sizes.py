"""Sizes: latents padded to what networks take, shapes that are kept, tiles of trained sizes."""

import random

import pytest
import torch
from PIL import Image

from pixdec.inference.sizes import (
    TILE,
    Frame,
    check_size,
    check_tile,
    fit,
    has_shape_of,
    nearest,
    scaled,
    tile_side,
    tiling_for,
)
from pixdec.io.images import to_pil, to_tensor
from pixdec.latents import SPACES
from pixdec.models.adapter import AdapterSettings, LatentAdapter
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.catalog import CARDS, ONLY_2048, TWO_K, TWO_TO_FOUR_K

PIXDIT = PixDiTSettings()  # patches of 16


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(("scale", "patch", "unpack"), [(1, 16, 1), (1, 32, 1), (2, 64, 1), (1, 8, 2), (4, 16, 2)])
def test_the_adapter_takes_every_padded_latent(name: str, scale: int, patch: int, unpack: int):
    """And puts out the patches of the whole frame: without padding it would refuse odd grids, or lose cells."""
    space = SPACES[name]
    unpack = unpack if space.channels % unpack**2 == 0 else 1
    settings = AdapterSettings(space.channels, space.factor, scale, width=4, blocks=0, unpack=unpack)
    adapter = LatentAdapter(settings, patch=patch, hidden=4, depth=1)
    for rows, columns in ((1, 1), (3, 2), (5, 7)):
        frame = Frame.of(rows, columns, space.factor * scale, patch)
        assert frame.size == (rows * space.factor * scale, columns * space.factor * scale)
        assert frame.whole[0] % patch == frame.whole[1] % patch == 0
        assert all(0 <= whole - size < patch for whole, size in zip(frame.whole, frame.size, strict=True))
        features = adapter.features(frame.pad(torch.zeros(1, space.channels, rows, columns)))
        assert tuple(features.shape[2:]) == (frame.whole[0] // patch, frame.whole[1] // patch)


def test_padding_repeats_the_last_row_and_column():
    latent = torch.arange(6.0).view(1, 1, 2, 3).to(torch.bfloat16)
    frame = Frame.of(2, 3, side=8, patch=32)
    padded = frame.pad(latent)
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    image = torch.arange(32 * 32.0).view(1, 1, 32, 32)
    assert torch.equal(frame.crop(image), image[..., :16, :24])
    assert Frame.of(2, 3, side=64, patch=16).pad(latent) is latent


@pytest.mark.parametrize(
    ("size", "image", "fits"),
    [
        ((64, 96), (64, 96), True),
        ((32, 48), (64, 96), True),
        ((67, 100), (64, 96), True),  # 66.7
        ((66, 100), (64, 96), True),
        ((69, 100), (64, 96), False),
        ((96, 64), (64, 96), False),
        ((1080, 1920), (1088, 1920), False),
        ((1080, 1920), (2160, 3840), True),
        ((720, 1366), (2160, 4098), True),
        ((1, 1), (4, 5), True),
        ((0, 0), (4, 5), False),
    ],
)
def test_a_size_keeps_the_shape_up_to_rounding(size: tuple[int, int], image: tuple[int, int], fits: bool):
    assert has_shape_of(size, image) is fits
    if fits:
        check_size(size, image)
    else:
        with pytest.raises(ValueError, match=rf"size=\({size[0]}, {size[1]}\).*\({image[0]}, {image[1]}\)") as refused:
            check_size(size, image)
        assert "\n" not in str(refused.value)


def test_what_is_scaled_or_offered_has_the_shape():
    draw = random.Random(0)
    for _ in range(2000):
        image = (draw.randint(1, 3000), draw.randint(1, 3000))
        assert has_shape_of(scaled(image, draw.uniform(0.01, 8)), image)
        asked = (draw.randint(1, 3000), draw.randint(1, 3000))
        offers = nearest(asked, image)
        assert offers[0][0] == asked[0]
        assert offers[1][1] == asked[1]
        assert all(has_shape_of(offer, image) for offer in offers)
    assert scaled((21, 37), 1.5) == (round(21 * 1.5), round(37 * 1.5))


def test_fit_is_the_bicubic_of_other_programs_and_stays_in_range():
    generator = torch.Generator().manual_seed(0)
    image = to_pil(torch.rand(1, 3, 60, 90, generator=generator) - 0.5)[0]
    for size in ((20, 30), (40, 60), (75, 112)):
        ours = to_pil(fit(to_tensor(image), size))[0]
        theirs = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        difference = (to_tensor(ours) - to_tensor(theirs)).abs().max() * 127.5
        assert difference < 1.5, "but for rounding, which they do after each axis"
    edge = torch.ones(1, 3, 8, 8)
    edge[..., :4] = -1
    assert fit(edge, (12, 12)).abs().max() == 1
    assert fit(edge, (8, 8)) is edge


def test_trained_outputs_are_whole_and_larger_ones_are_tiles_of_trained_sizes():
    draw = random.Random(1)
    for sizes in {card.sizes for card in CARDS if card.sizes is not None}:
        for height, width in ((2048, 2048), (1536, 2688), (2304, 1728)):
            if sizes.warning("", height, width) is None:
                assert tile_side(height, width, sizes, 16) is None
        for _ in range(500):
            height, width = (16 * draw.randint(96 if sizes.aspect > 1 else 128, 1024) for _ in range(2))
            side = tile_side(height, width, sizes, 16)
            if side is None:
                assert height * width <= sizes.largest
            else:
                assert side % 16 == 0
                assert sizes.warning("", min(side, height), min(side, width)) is None


@pytest.mark.parametrize(
    ("height", "width", "sizes", "side"),
    [
        (8192, 8192, TWO_TO_FOUR_K, TILE),
        (16384, 16384, TWO_TO_FOUR_K, TILE),
        (4096, 4096, TWO_TO_FOUR_K, None),
        (2160, 3840, TWO_TO_FOUR_K, None),  # a little wider than trained: not worth three times the work
        (2048, 8192, TWO_TO_FOUR_K, TILE),  # of a trained area, but twice as long as any image in training
        (1728, 8192, TWO_K, 2416),  # 1728x2048 would be too small
        (8192, 1536, TWO_K, 2688),  # 1.75:1
        (1024, 4096, TWO_K, None),  # no tile of it is trained, its area is
        (1024, 16384, TWO_K, TILE),
        (512, 512, TWO_K, None),
        (4096, 2048, ONLY_2048, TILE),
        (4096, 4096, None, None),
        (4096, 4112, None, TILE),
    ],
)
def test_tiles_of_some_outputs(height: int, width: int, sizes: object, side: int | None):
    assert tile_side(height, width, sizes, 16) == tile_side(width, height, sizes, 16) == side


def test_a_tiling_that_is_asked_for_is_taken_where_it_cuts():
    tiling = tiling_for((512, 768), 256, None, 16)
    assert tiling is not None
    assert (tiling.side, tiling.overlap, tiling.patch) == (256, 32, 16)
    assert tiling_for((256, 256), 256, None, 16) is None
    smallest = tiling_for((96, 96), 32, None, 16)
    assert smallest is not None
    assert smallest.overlap == 16


@pytest.mark.parametrize(("side", "near"), [(60, 64), (16, 32), (0, 32), (-32, 32), (1000, 992)])
def test_tiles_that_cannot_be(side: int, near: int):
    with pytest.raises(ValueError, match=f"tile={side}: expected a multiple of 16 pixels, at least 32; take {near}"):
        check_tile(side, 16)
    with pytest.raises(ValueError, match=f"tile={side}"):
        tiling_for((64, 64), side, None, 16)
