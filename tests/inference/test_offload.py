"""Weights that visit the device block by block: the same results, two blocks there at a time, and all put back."""

from pathlib import Path

import pytest
import torch

from battery import randomised
from pixdec.inference.offload import blocks_of, offload_blocks, resident_bytes, weight_bytes
from pixdec.models.adapter import AdapterSettings
from pixdec.models.cost import Inputs, Meter, meta_network, random_inputs
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.train.recipes import nano_network
from pixdec.weights.load import load_decoder, save_decoder

SETTINGS = PiDSettings(
    PixDiTSettings(
        hidden=48, heads=4, depth=5, pixel_width=4, pixel_hidden=32, pixel_heads=2, text_width=12, text_length=6
    ),
    AdapterSettings(width=16, blocks=1),
)


@pytest.fixture
def network() -> PiD:
    return randomised(PiD(SETTINGS).initialise()).requires_grad_(False)


@pytest.fixture(scope="module")
def given() -> Inputs:
    torch.manual_seed(0)
    return random_inputs(SETTINGS, 64, 96, device=torch.device("cpu"))


def call(network: PiD, given: Inputs) -> torch.Tensor:
    return network(given.x_t, given.t, given.text, given.latent, given.sigma)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_the_results_are_the_same_bits(network: PiD, given: Inputs, ahead: int, mode: type[torch.no_grad]):
    with mode():
        whole = call(network, given)
        with offload_blocks(network, "cpu", ahead=ahead) as offloaded:
            assert torch.equal(call(network, given), whole)
            assert torch.equal(call(network, given), whole)
        assert offloaded.fetched == 2 * 7, "each of the seven blocks is fetched once in every call"
        assert torch.equal(call(network, given), whole)


@torch.no_grad()
def test_windowed_blocks_that_run_in_bands_are_fetched_once():
    network = randomised(PiD(nano_network()).initialise()).requires_grad_(False)
    given = random_inputs(nano_network(), 128, 128, device=torch.device("cpu"))
    condition = network.condition(given.latent)
    whole = network.velocity(given.x_t, given.t, None, condition, given.sigma, 64)
    with offload_blocks(network, "cpu") as offloaded:
        assert torch.equal(network.velocity(given.x_t, given.t, None, condition, given.sigma, 64), whole)
    assert offloaded.fetched == 7


@torch.no_grad()
def test_only_the_buffers_take_memory(network: PiD, given: Inputs):
    """Of what is new while the network runs, the weights of two blocks are all that a call as a whole does not take."""
    places = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    call(network, given)  # the network keeps tables for this size
    with Meter() as plain:
        call(network, given)
    with Meter() as moved:
        offloaded = offload_blocks(network, "cpu")
        call(network, given)
        assert {name: parameter.data_ptr() for name, parameter in network.named_parameters()} == places
    buffers = moved.most - plain.most
    inside = sum(p.nbytes for block in blocks_of(network) for p in block.parameters())
    assert buffers == offloaded.resident - (weight_bytes(network) - inside)
    assert buffers < inside
    assert offloaded.resident == resident_bytes(network)
    del plain, moved
    offloaded.close()
    assert {name: parameter.data_ptr() for name, parameter in network.named_parameters()} == places


@torch.no_grad()
def test_while_a_block_runs_no_other_has_its_weights_on_the_device(network: PiD, given: Inputs):
    blocks = blocks_of(network)
    resting = [block.get_parameter(next(iter(dict(block.named_parameters())))).data_ptr() for block in blocks]
    seen = list[list[bool]]()

    def look(*_: object) -> None:
        now = [next(block.parameters()).data_ptr() for block in blocks]
        seen.append([a != b for a, b in zip(now, resting, strict=True)])

    with offload_blocks(network, "cpu"):
        for block in blocks:
            block.register_forward_pre_hook(look)
        call(network, given)
    assert seen == [[i == j for j in range(7)] for i in range(7)]


@torch.no_grad()
def test_weights_that_change_between_calls_are_fetched_anew(network: PiD, given: Inputs):
    with offload_blocks(network, "cpu"):
        before = call(network, given)
        network.backbone.patch_blocks[0].image.qkv.weight.mul_(1.5)  # as a LoRA's strength does
        after = call(network, given)
    assert not torch.equal(before, after)
    assert torch.equal(call(network, given), after)


@torch.no_grad()
def test_an_error_inside_a_block_leaves_the_weights_in_place(network: PiD, given: Inputs):
    whole, places = call(network, given), [p.data_ptr() for p in network.parameters()]

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    with offload_blocks(network, "cpu"):
        stop = network.backbone.patch_blocks[2].image.qkv.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="stop"):
            call(network, given)
        assert [p.data_ptr() for p in network.parameters()] == places
        stop.remove()
        assert torch.equal(call(network, given), whole)
    assert torch.equal(call(network, given), whole)


@torch.no_grad()
def test_a_mapped_file_is_read_where_it_lies(network: PiD, given: Inputs, tmp_path: Path):
    path = tmp_path / "mapped.safetensors"
    save_decoder(network, path, name="mapped", space="flux1", version="v1", licence="Apache-2.0")
    mapped = load_decoder(path, device="cpu", dtype=torch.float32).network
    whole, places = call(mapped, given), [p.data_ptr() for p in mapped.parameters()]
    assert len({place % 64 for place in places}) > 1, "in a file, tensors follow one another closely"
    with offload_blocks(mapped, "cpu"):
        assert [p.data_ptr() for p in mapped.parameters()] == places
        assert torch.equal(call(mapped, given), whole)


def test_what_cannot_be_offloaded(network: PiD):
    with pytest.raises(ValueError, match="ahead=0"):
        offload_blocks(network, "cpu", ahead=0)
    with pytest.raises(ValueError, match="has no values"):
        offload_blocks(meta_network(SETTINGS).requires_grad_(False), "cpu")
    with offload_blocks(network, "cpu"), pytest.raises(ValueError, match="already"):
        offload_blocks(network, "cpu")
    network.requires_grad_(True)
    with pytest.raises(ValueError, match="wants a gradient"):
        offload_blocks(network, "cpu")


def test_a_device_that_takes_nothing_leaves_the_network_as_it_was(network: PiD, given: Inputs):
    if torch.cuda.is_available():
        pytest.skip("needs a device that is not there")
    places = [p.data_ptr() for p in network.parameters()]
    with pytest.raises((RuntimeError, AssertionError)):
        offload_blocks(network, "cuda")
    assert [p.data_ptr() for p in network.parameters()] == places
    with torch.no_grad():
        call(network, given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@torch.inference_mode()
def test_on_cuda_the_results_are_the_same_bits(network: PiD):
    given = random_inputs(SETTINGS, 64, 96, device=torch.device("cuda"))
    with offload_blocks(network, "cuda"):
        moved = [call(network, given) for _ in range(3)]
        assert network.backbone.patch_blocks[0].image.qkv.weight.is_pinned()
    assert not next(network.parameters()).is_cuda
    network.cuda()
    assert all(torch.equal(each, call(network, given)) for each in moved)
    with offload_blocks(network, "cuda"):  # from the device and back to it
        assert torch.equal(call(network, given), moved[0])
    assert all(p.is_cuda for p in network.parameters())
