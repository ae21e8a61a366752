"""The decoder that ships: what it must never do to a picture. Most of these failed for some state of its training."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pixdec import Latent, PixelDecoder, get_space
from pixdec.evaluate.metrics.fidelity import color_drift, pattern
from pixdec.io.images import resize, to_pil, to_tensor

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def decoder() -> PixelDecoder:
    return PixelDecoder.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def face() -> Tensor:
    """(1,3,64,64): NASA's portrait of Eileen Collins, shrunk."""
    return resize(to_tensor(Image.fromarray(skimage_data.astronaut()[:256, 100:356])), 64, 64)


def enlarged(decoder: PixelDecoder, low: Tensor, sigma: float = 0.0, steps: int | None = None) -> Image.Image:
    latent = Latent(low, get_space("rgb")).noised(sigma, seed=0)
    return decoder.decode(latent, steps=steps)[0]


def lanczos(low: Tensor) -> Image.Image:
    return to_pil(resize(low, 4 * low.shape[2], 4 * low.shape[3], how="lanczos").clamp(-1, 1))[0]


def slanted(angle: float) -> Tensor:
    """(1,3,48,48): a dark and a bright half that meet in a straight line."""
    large = Image.new("RGB", (768, 768), (70, 80, 90))
    along = torch.tensor([angle]).deg2rad()
    dx, dy = 2000 * float(along.cos()), 2000 * float(along.sin())
    corners = [
        (384 - dx, 384 - dy),
        (384 + dx, 384 + dy),
        (384 + dx - dy, 384 + dy + dx),
        (384 - dx - dy, 384 - dy + dx),
    ]
    ImageDraw.Draw(large).polygon(corners, fill=(200, 190, 180))
    return to_tensor(large.resize((48, 48), Image.Resampling.BOX))


@pytest.mark.parametrize("color", [(128, 128, 128), (30, 60, 90), (235, 220, 200)])
@pytest.mark.parametrize("steps", [1, 4])
def test_what_is_flat_stays_flat_and_of_its_color(
    decoder: PixelDecoder, color: tuple[int, int, int], steps: int
) -> None:
    low = (torch.tensor(color).view(1, 3, 1, 1) / 127.5 - 1).expand(1, 3, 40, 40)
    image = np.asarray(enlarged(decoder, low, steps=steps)).astype(float)
    assert np.abs(image.mean((0, 1)) - color).max() < 2.5
    assert image[16:-16, 16:-16].std((0, 1)).max() < 1.5


@pytest.mark.parametrize("angle", [0, 12, 45, 70])
def test_an_edge_is_straight_and_has_no_halo(decoder: PixelDecoder, angle: float) -> None:
    low = slanted(angle)
    image = np.asarray(enlarged(decoder, low)).astype(float)[24:-24, 24:-24].mean(2)
    dark, bright = 80, 190
    assert image.min() > dark - 18, "a dark halo"
    assert image.max() < bright + 18, "a bright halo"
    # Stair steps and dots: along lines beside the edge the values hardly change.
    down, across = np.indices(image.shape)
    radians = np.deg2rad(angle)
    distance = (down - image.shape[0] / 2 + 0.5) * np.cos(radians) - (across - image.shape[1] / 2 + 0.5) * np.sin(
        radians
    )
    for offset in (-3.0, 3.0):
        beside = image[np.abs(distance - offset) < 0.75]
        assert beside.std() < 16, f"{offset} pixels from the edge"


@pytest.mark.parametrize("steps", [1, 4])
def test_edges_are_no_halftone(decoder: PixelDecoder, face: Tensor, steps: int) -> None:
    """Photographs have 0.1 bels, the states whose edges were rows of dots 0.8 to 1.3."""
    assert pattern(enlarged(decoder, face, steps=steps)) < 0.35


@pytest.mark.parametrize("steps", [1, 4])
def test_fur_has_no_stipple(decoder: PixelDecoder, steps: int) -> None:
    """An average of the weights of two states, neither of which had one, had 0.43 bels here."""
    cat = resize(to_tensor(Image.fromarray(skimage_data.chelsea()[:, 60:360])), 128, 128)
    assert pattern(enlarged(decoder, cat, steps=steps)) < 0.3


def test_colors_are_those_of_the_image(decoder: PixelDecoder, face: Tensor) -> None:
    assert color_drift(enlarged(decoder, face), lanczos(face)) < 1.5


def test_strength_invents_more_and_leaves_the_colors(decoder: PixelDecoder, face: Tensor) -> None:
    plain = enlarged(decoder, face)
    for sigma in (0.1, 0.3):
        image = enlarged(decoder, face, sigma)
        mean, expected = (np.asarray(each).astype(float).mean((0, 1)) for each in (image, plain))
        assert np.abs(mean - expected).max() < 5, sigma
        assert np.abs(np.asarray(image).astype(float) - np.asarray(plain)).mean() > 1, sigma


@pytest.mark.parametrize("angle", [20, 70])
def test_edges_are_sharper_than_in_plain_enlargement(decoder: PixelDecoder, angle: float) -> None:
    def steepest(image: Image.Image) -> float:
        levels = np.asarray(image).astype(float)[32:-32, 32:-32].mean(2)
        return float(np.quantile(np.hypot(np.diff(levels, axis=0)[:, 1:], np.diff(levels, axis=1)[1:]), 0.99))

    low = slanted(angle)
    assert steepest(enlarged(decoder, low)) > 1.2 * steepest(lanczos(low))


def test_borders_are_as_good_as_the_middle(decoder: PixelDecoder, face: Tensor) -> None:
    part = enlarged(decoder, face[..., :40])
    whole = enlarged(decoder, face).crop((0, 0, 160, 256))
    # Another noise and another border: means over 8 x 8 pixels agree up to the edge of the image.
    a, b = (np.asarray(each.resize((20, 32), Image.Resampling.BOX)).astype(float) for each in (part, whole))
    assert np.abs(a - b)[:, -1].mean() < 8
