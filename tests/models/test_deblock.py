"""The deblocking filter: nothing at first, the same in bands as for the whole image, over the borders of patches."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nano import nano_network
from pixdec.models.deblock import BLOCK, REACH, Deblock
from pixdec.models.execution import Execution
from pixdec.models.pid import PiD, PiDSettings

SMALL = replace(
    nano_network(),
    backbone=replace(nano_network().backbone, hidden=32, heads=2, depth=1, pixel_hidden=32, pixel_heads=2),
    deblock=8,
)


def filled(settings: PiDSettings) -> PiD:
    """A network none of whose weights is zero."""
    network, generator = PiD(settings), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def test_at_first_it_is_not_there():
    torch.manual_seed(0)
    network = PiD(SMALL).initialise()
    assert network.deblock is not None
    assert network.deblock.conv.weight.std() > 0
    output = torch.randn(1, 3, 16, 24)
    assert torch.equal(network.deblock(output, torch.randn(1, 6, 16, 24), torch.rand(1)), output)


@torch.no_grad()
def test_bands_show_nowhere():
    network = filled(SMALL)
    latent, x_t, t, sigma = torch.randn(2, 128, 3, 2), torch.randn(2, 3, 192, 128), torch.rand(2), torch.zeros(2)
    condition = network.condition(latent)
    whole = network.velocity(x_t, t, None, condition, sigma)
    for chunk in (16, 100, 128):  # patches: bands of one row of them and of several, the last one shorter
        assert torch.allclose(
            network.velocity(x_t, t, None, condition, sigma, Execution(chunk=chunk)), whole, atol=1e-5
        )


def test_it_sees_over_borders_and_no_farther_than_it_says():
    torch.manual_seed(0)
    network = Deblock(9, 8)
    inputs, t = torch.randn(1, 6, 64, 64), torch.rand(1)
    output = torch.randn(1, 3, 64, 64, requires_grad=True)
    top = 24
    network(output, inputs, t)[:, :, top : top + BLOCK].sum().backward()
    assert output.grad is not None
    rows = output.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (top - REACH, top + BLOCK - 1 + REACH)


@pytest.mark.parametrize(
    "changed", [{"prediction": "velocity", "base": None}, {"backbone": replace(SMALL.backbone, patch=6)}]
)
def test_where_it_does_not_belong(changed: dict[str, Any]):
    with pytest.raises(ValueError, match="deblock=8: for residual networks whose patches are multiples of 4"):
        replace(SMALL, **changed)
