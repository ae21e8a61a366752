import copy
from pathlib import Path

import pytest
import torch

from battery import randomised
from pixdec.inference.compiled import BUCKETS, compile_blocks
from pixdec.models.adapter import AdapterSettings
from pixdec.models.execution import Execution
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings

SMALL = PixDiTSettings(
    patch=4, hidden=24, heads=2, depth=3, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
)


@pytest.fixture(scope="module")
def network() -> PiD:
    torch.manual_seed(0)
    made = randomised(PiD(PiDSettings(SMALL, AdapterSettings(8, latent_factor=1, width=8, blocks=1))))
    return made.eval().requires_grad_(False)  # pyright: ignore[reportReturnType]


@torch.inference_mode()
def velocity(network: PiD, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(side)
    x, latent = torch.randn(1, 3, side, side, generator=generator), torch.randn(1, 8, side // 4, side // 4)
    text = torch.randn(1, 6, 12, generator=generator)
    torch.manual_seed(1)
    condition = network.condition(torch.randn(latent.shape))
    return network.velocity(x, torch.tensor([0.5]), text, condition, torch.zeros(1), Execution(chunk=16))


@pytest.mark.parametrize("side", [16, 128])  # any number of tokens, and one of the usual ones
def test_compiled_blocks_compute_the_same(network: PiD, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIXDEC_CACHE", str(tmp_path))
    plain, compiled = velocity(network, side), copy.deepcopy(network)
    assert ((side // 4) ** 2 in BUCKETS) == (side == 128)
    compile_blocks(compiled, backend="aot_eager")
    torch.testing.assert_close(velocity(compiled, side), plain, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_compiling_leaves_the_weights_names_alone(network: PiD, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PIXDEC_CACHE", str(tmp_path))
    compiled = copy.deepcopy(network)
    compile_blocks(compiled, backend="aot_eager")
    assert compiled.state_dict().keys() == network.state_dict().keys()
