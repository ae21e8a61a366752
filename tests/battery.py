"""The checks that every network passes: shape, a finite gradient for every parameter, save and load, low precision."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def battery(
    build: Callable[[], nn.Module],
    call: Callable[[nn.Module], Tensor],
    shape: Sequence[int],
    folder: Path,
    *,
    unused: Sequence[str] = (),
    low_precision: float = 0.05,
) -> None:
    """Runs `call` on networks that `build` makes.

    `unused`: parameters that the output does not depend on, by the beginning of their names; `low_precision`: how far
    bfloat16 weights may lie from float32, relative.
    """
    torch.manual_seed(0)
    network = randomised(build())
    output = call(network)
    assert tuple(output.shape) == tuple(shape)
    assert output.isfinite().all()

    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        if name.startswith(tuple(unused)):
            assert parameter.grad is None, f"{name} is listed as unused but has a gradient"
        else:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
            assert parameter.grad.abs().max() > 0, f"{name} has a zero gradient"

    save_file(network.state_dict(), folder / "network.safetensors")
    other = build()
    other.load_state_dict(load_file(folder / "network.safetensors"))
    with torch.no_grad():
        assert torch.equal(call(other), output)
        low = call(copy.deepcopy(network).to(torch.bfloat16)).float()
        error = float((low - output).norm() / output.norm())
    assert 0 < error < low_precision, f"bfloat16 weights are {error:.3f} away"


def randomised(network: nn.Module) -> nn.Module:
    """Small random values instead of the zeros that training starts from, which would hide most of a network."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network
