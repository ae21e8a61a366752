"""ST-LPIPS: the network against an independent statement of it, on weights made up here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixdec.evaluate.metrics.st_lpips import (
    ShiftTolerantAlex,
    ShiftTolerantVGG,
    shared_alex,
    shared_vgg,
    st_lpips,
)

WIDTHS = (64, 128, 256, 512, 512)
SLICES = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {"scaling_layer.shift": torch.randn(1, 3, 1, 1) / 9, "scaling_layer.scale": torch.rand(1, 3, 1, 1) + 0.3}
    inputs = 3
    for level, (layers, width) in enumerate(zip(SLICES, WIDTHS, strict=True)):
        for layer in layers:
            conv = nn.Conv2d(inputs, width, 3)
            state[f"net.slice{level + 1}.{layer}.weight"] = 2 * conv.weight.detach()
            state[f"net.slice{level + 1}.{layer}.bias"] = conv.bias.detach()
            inputs = width
        state[f"lin{level}.model.1.weight"] = torch.rand(1, width, 1, 1)
    return state


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> ShiftTolerantVGG:
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save(state, path)
    return ShiftTolerantVGG(path)


def test_two_levels_are_those_of_the_definition(network: ShiftTolerantVGG, state: dict[str, Tensor]) -> None:
    """Level 2 in double precision, a pixel at a time: a maximum of 2 x 2 at stride 1, a 3 x 3 binomial blur at every
    second place, two convolutions, unit length."""
    images = torch.rand(2, 3, 8, 10) * 2 - 1

    def convolved(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.weight"].double(), state[f"{name}.bias"].double()
        columns = nn.functional.unfold(x, 3, padding=1)  # (B, 9 C, H W)
        return (weight.flatten(1) @ columns + bias[:, None]).relu().unflatten(2, x.shape[2:])

    x = (images.double() - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
    x = convolved(convolved(x, "net.slice1.0"), "net.slice1.2")
    first = x
    x = nn.MaxPool2d(2, stride=1)(x)
    x = nn.ReflectionPad2d(1)(x)
    taps = (1 / 4, 1 / 2, 1 / 4)
    height, width = x.shape[2] - 2, x.shape[3] - 2
    blurred = sum(
        a * b * x[:, :, i : i + height : 2, j : j + width : 2] for i, a in enumerate(taps) for j, b in enumerate(taps)
    )
    second = convolved(convolved(blurred, "net.slice2.6"), "net.slice2.8")
    for made, level in zip(network.features(images, 2), (first, second), strict=True):
        torch.testing.assert_close(made.double(), nn.functional.normalize(level, dim=1), atol=1e-5, rtol=1e-4)


def test_distance_weighs_the_squares(network: ShiftTolerantVGG, state: dict[str, Tensor]) -> None:
    a, b = (torch.rand(2, 3, 32, 32) * 2 - 1 for _ in range(2))
    levels = zip(network.features(a), network.features(b), strict=True)
    each = [
        torch.einsum("bchw,c->bhw", (f - g) ** 2, state[f"lin{i}.model.1.weight"].flatten()).mean((1, 2))
        for i, (f, g) in enumerate(levels)
    ]
    torch.testing.assert_close(network.distance(a, b), torch.stack(each).sum(0))
    torch.testing.assert_close(network.distance(a, network.features(b), (0.0, 2.0)), 2 * each[1])
    assert not network.distance(a, a).any()


def test_alex_is_that_of_the_definition(tmp_path: Path) -> None:
    """Its distance in double precision from torch's own layers, on weights made up here."""
    torch.manual_seed(1)
    sizes, kernels, names = (3, 64, 192, 384, 256, 256), (11, 5, 3, 3, 3), (0, 5, 9, 11, 13)
    blur = torch.tensor([1.0, 2.0, 1.0])
    state = {"scaling_layer.shift": torch.randn(1, 3, 1, 1) / 9, "scaling_layer.scale": torch.rand(1, 3, 1, 1) + 0.3}
    state["net.slice1.1.filt"] = (blur[:, None] * blur / 16).expand(64, 1, 3, 3).clone()
    for level, (name, kernel) in enumerate(zip(names, kernels, strict=True)):
        conv = nn.Conv2d(sizes[level], sizes[level + 1], kernel)
        state[f"net.slice{level + 1}.{name}.weight"] = 2 * conv.weight.detach()
        state[f"net.slice{level + 1}.{name}.bias"] = conv.bias.detach()
        state[f"lin{level}.model.1.weight"] = torch.rand(1, sizes[level + 1], 1, 1)
    torch.save(state, tmp_path / "alex.pth")
    a, b = (torch.rand(2, 3, 40, 48) * 2 - 1 for _ in range(2))

    def blurred(x: Tensor) -> Tensor:
        x = nn.ReflectionPad2d(2)(x)
        for axis in (2, 3):
            x = sum(w * x.narrow(axis, i, x.shape[axis] - 2) for i, w in enumerate((0.25, 0.5, 0.25)))
        return x[:, :, ::2, ::2]

    def features(images: Tensor) -> list[Tensor]:
        x, found = (images.double() - state["scaling_layer.shift"]) / state["scaling_layer.scale"], list[Tensor]()
        for level, (name, padding) in enumerate(zip(names, (2, 2, 1, 1, 1), strict=True)):
            if level in (1, 2):
                x = blurred(nn.MaxPool2d(3, 1)(x))
            weight, bias = (state[f"net.slice{level + 1}.{name}.{part}"].double() for part in ("weight", "bias"))
            x = nn.functional.conv2d(x, weight, bias, padding=padding)
            x = (blurred(x) if level == 0 else x).relu()
            found.append(nn.functional.normalize(x, dim=1))
        return found

    expected = sum(
        torch.einsum("bchw,c->bhw", (f - g) ** 2, state[f"lin{i}.model.1.weight"].double().flatten()).mean((1, 2))
        for i, (f, g) in enumerate(zip(features(a), features(b), strict=True))
    )
    found = ShiftTolerantAlex(tmp_path / "alex.pth").distance(a, b)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shared", [shared_vgg, shared_alex])
def test_weights_of_the_package(shared: Callable[[], ShiftTolerantVGG | ShiftTolerantAlex]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    try:
        network = shared()
    except ValueError as error:
        pytest.skip(str(error))
    assert st_lpips(image, image, network) == 0
    shifted, other = np.roll(image, 1, axis=1), image.swapaxes(0, 1)
    assert st_lpips(shifted, image, network) < st_lpips(other, image, network)
