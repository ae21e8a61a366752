"""Quantisation: the large Linears of the blocks and nothing else, close to the exact network, smaller, and refused
where it cannot be."""

import copy
import sys

import pytest
import torch
from torch import Tensor

from battery import randomised
from pixdec.inference.config import Quantize
from pixdec.inference.quantize import is_quantized, large_linears, quantize_blocks, stored_bytes
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings

SETTINGS = PiDSettings(
    PixDiTSettings(
        hidden=128, heads=2, depth=2, pixel_width=4, pixel_hidden=128, pixel_heads=2, text_width=12, text_length=6
    ),
    AdapterSettings(width=8, blocks=1),
)
SIDE = 64


@pytest.fixture(scope="module")
def exact() -> PiD:
    return randomised(PiD(SETTINGS).initialize()).requires_grad_(False).eval()


Inputs = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def given() -> Inputs:
    torch.manual_seed(0)
    cells = SIDE // 32
    return torch.randn(2, 3, SIDE, SIDE), torch.rand(2), torch.randn(2, 6, 12), torch.randn(2, 16, cells, cells)


def called(network: PiD, given: Inputs) -> Tensor:
    x_t, t, text, latent = given
    with torch.inference_mode():
        return network(x_t, t, text.to(network.dtype), latent, torch.tensor([0.2, 0.7]))


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def quantized(network: PiD, kind: Quantize) -> PiD:
    network = copy.deepcopy(network)
    quantize_blocks(network, kind)
    return network


def test_the_products_of_the_released_network_are_chosen():
    """14 blocks of two streams with five Linears, 2 pixel blocks with four: no modulation, whose weights are read part
    by part, and no pixel MLP of 16 x 64."""
    with torch.device("meta"):
        network = PiD(PiDSettings())
    chosen = large_linears(network)
    assert len(chosen) == 14 * 2 * 5 + 2 * 4
    assert not any("modulation" in name or "embed" in name or "final" in name for name in chosen)
    assert sum(linear.weight.numel() for linear in chosen.values()) > 0.6 * sum(p.numel() for p in network.parameters())


def test_all_but_the_products_stays_bit_for_bit(exact: PiD):
    network = quantized(exact, "int8")
    chosen = set(large_linears(exact))
    for name, parameter in exact.named_parameters():
        ours = network.get_parameter(name)
        if name.endswith(".weight") and name.removesuffix(".weight") in chosen:
            assert is_quantized(ours)
            assert 0 < error(ours.dequantize(), parameter) < 0.01
        else:
            assert not is_quantized(ours)
            assert torch.equal(ours, parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_velocity_is_close_and_weights_alone_are_closer(exact: PiD, given: Inputs, dtype: torch.dtype):
    network = copy.deepcopy(exact).to(dtype)
    wanted = called(network, given)
    both, weights = called(quantized(network, "int8"), given), called(quantized(network, "int8-weights"), given)
    assert both.dtype == weights.dtype == torch.float32
    assert 0 < error(weights, wanted) < 0.02
    assert 0 < error(both, wanted) < 0.03
    if dtype == torch.float32:  # in bfloat16 both are near its own rounding
        assert error(weights, wanted) < 0.8 * error(both, wanted)


@pytest.mark.parametrize("kind", ["int8", "int8-weights"])
def test_weights_take_a_quarter_of_float32(exact: PiD, kind: Quantize):
    network = quantized(exact, kind)
    chosen = large_linears(exact).values()
    saved = stored_bytes(exact) - stored_bytes(network)
    outputs = sum(linear.out_features for linear in chosen)
    assert saved <= sum(linear.weight.nbytes for linear in chosen) * 3 / 4
    assert saved >= sum(linear.weight.nbytes for linear in chosen) * 3 / 4 - 16 * outputs  # scales, at most zero points
    assert stored_bytes(exact) == sum(p.nbytes for p in exact.parameters())


def test_blocks_are_compiled_as_one_graph(exact: PiD, given: Inputs):
    """Traced without a break; the products stay of integers. (Traced only: making machine code takes a minute.)"""
    network = quantized(exact, "int8")
    wanted = called(network, given)
    try:
        for block in (network.backbone.patch_blocks[0], network.backbone.pixel_blocks[0]):
            block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        assert error(called(network, given), wanted) < 1e-4
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["int8", "int8-weights"])
def test_the_compilers_settings_stay(exact: PiD, kind: Quantize):
    """They are the whole process's, and torchao would change them."""
    from torch._inductor import config

    names = ("coordinate_descent_tuning", "coordinate_descent_check_all_directions", "force_fuse_int_mm_with_mul")
    with config.patch(dict.fromkeys(names, False)):
        quantized(exact, kind)
        assert not any(getattr(config, name) for name in names)


def test_a_kind_that_the_device_lacks(exact: PiD):
    network = copy.deepcopy(exact)
    with pytest.raises(ValueError, match=r"quantize='fp8' on cpu.*8.9.*'int8'"):
        quantize_blocks(network, "fp8")
    assert not any(is_quantized(parameter) for parameter in network.parameters())


def test_a_network_too_small_to_gain():
    backbone = PixDiTSettings(hidden=24, heads=2, depth=1, pixel_hidden=16, pixel_heads=2, text_width=None)
    with pytest.raises(ValueError, match="no Linears of 128 x 128"):
        quantize_blocks(PiD(PiDSettings(backbone, AdapterSettings(width=8, blocks=1))), "int8")


def test_without_torchao(exact: PiD, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"pip install -U 'pixdec\[quant\]'"):
        quantize_blocks(copy.deepcopy(exact), "int8")
