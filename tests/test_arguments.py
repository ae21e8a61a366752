"""What a person gives to `decode`: integers of any kind, one line for what does not fit, and nothing from torch's
defaults."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec import Latent, PixelDecoder
from pixdec.generation import UpscaleSettings, upscale
from pixdec.io.arguments import items, seed_of, whole
from pixdec.io.images import read_picture, to_tensor


@pytest.fixture(scope="module")
def decoder() -> PixelDecoder:
    return PixelDecoder.from_pretrained(device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def latent() -> torch.Tensor:
    return 0.3 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind(number: object) -> None:
    assert whole("n", number) == seed_of(number) == 3
    assert type(seed_of(number)) is int


@pytest.mark.parametrize("number", [True, np.bool_(1), 3.0, np.float32(3), torch.tensor(3.0), None, "3", 2**64])
def test_anything_else_is_named(number: object) -> None:
    with pytest.raises(ValueError, match=r"^seed=.*: expected a whole number from -2\^63 to 2\^64 - 1$"):
        seed_of(number)


def test_least_and_most_are_said() -> None:
    with pytest.raises(ValueError, match="n=0: expected a whole number of at least 1"):
        whole("n", np.int32(0))
    with pytest.raises(ValueError, match="n=5: expected a whole number from 1 to 4"):
        whole("n", 5, most=4)


def test_several_are_told_from_one() -> None:
    assert [items(one) for one in ("ab", 3, None, np.int64(3), torch.tensor(3))] == [None] * 5
    assert [items(two) for two in ([1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]))] == [[1, 2]] * 4


def test_every_kind_of_integer_gives_the_same_image(decoder: PixelDecoder, latent: torch.Tensor) -> None:
    plain = decoder.decode(latent, seed=3, steps=1, size=(64, 64), output="pt")
    for seed in (np.int64(3), torch.tensor(3), [np.int32(3)], np.array([3])):
        given: dict[str, Any] = {"seed": seed, "steps": np.int64(1), "size": np.array([64, 64])}
        assert torch.equal(decoder.decode(latent, output="pt", **given), plain)


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 2**64},
        {"seed": 1.5},
        {"seed": None},
        {"seed": ["1"]},
        {"steps": 2.0},
        {"steps": 0},
        {"prompt": None},
        {"prompt": [None]},
        {"prompt": 3},
        {"size": 64},
        {"size": (64.0, 64.0)},
        {"size": "64x64"},
        {"sigma": "a"},
        {"sigma": [None]},
        {"batch_size": 1.0},
        {"output": 3},
        {"config": {"tile": 64}},
        {"callback_on_step_end": 3},
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(decoder: PixelDecoder, latent: torch.Tensor, given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ValueError, match=rf"^{name}=.*expected|^{name}=.*decoder takes"):
        decoder.decode(latent, **{"steps": 1, **given})


def test_a_latent_of_another_kind_is_named(decoder: PixelDecoder, latent: torch.Tensor) -> None:
    for wrong in (latent.numpy(), [latent.numpy()], None, "latent.safetensors"):
        with pytest.raises(ValueError, match=r"a latent must be a torch\.Tensor"):
            decoder.decode(wrong, steps=1)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_trusted_latent_takes_another_noise_level(decoder: PixelDecoder) -> None:
    raw = 255 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    trusted = Latent(raw, "rgb", statistics=False)
    decoder.decode(trusted, sigma=0.5, steps=1)
    assert trusted.with_sigma(0.5).sigma.tolist() == [0.5]
    with pytest.raises(ValueError, match="8-bit pixels"):
        decoder.decode(raw, sigma=0.5, steps=1)


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16, "meta", "autocast"], ids=str)
def defaults(request: pytest.FixtureRequest) -> Iterator[object]:
    """Torch's defaults, as another program in the same process may have set them."""
    asked = request.param
    if asked == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield asked
        return
    (torch.set_default_device if asked == "meta" else torch.set_default_dtype)(asked)
    yield asked
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.fixture(scope="module")
def expected(decoder: PixelDecoder, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return decoder.decode(latent, output="pt"), Latent(latent, "rgb").noised(0.3, 0).tensor


def test_a_seed_means_the_same_whatever_the_defaults(
    expected: tuple[torch.Tensor, torch.Tensor], decoder: PixelDecoder, latent: torch.Tensor, defaults: object
) -> None:
    assert torch.equal(decoder.decode(latent, output="pt"), expected[0])
    assert torch.equal(Latent(latent, "rgb").noised(0.3, 0).tensor, expected[1])


def test_loading_does_not_depend_on_the_defaults(
    expected: tuple[torch.Tensor, torch.Tensor], latent: torch.Tensor, defaults: object
) -> None:
    loaded = PixelDecoder.from_pretrained(device="cpu", dtype=torch.float32)
    assert torch.equal(loaded.decode(latent, output="pt"), expected[0])


def test_a_picture_is_enlarged_whatever_the_defaults(decoder: PixelDecoder, tmp_path: Path, defaults: object) -> None:
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save(tmp_path / "a.png")
    large = upscale(read_picture(tmp_path / "a.png"), decoder, settings=UpscaleSettings(size=(40, 60), steps=1))
    assert large.color.shape == (1, 3, 40, 60)
    assert to_tensor(large.pil()).dtype == torch.float32
