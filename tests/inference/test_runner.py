"""A decoder's network is called as asked, and the image stays what it is."""

from pathlib import Path

import pytest
import torch

from battery import randomised
from pixdec.decoder import PixelDecoder
from pixdec.inference import runner
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import save_decoder

BACKBONE = PixDiTSettings(
    patch=8, hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=None
)
SETTINGS = PiDSettings(BACKBONE, AdapterSettings(latent_channels=16, width=8, blocks=1))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    network = randomised(PiD(SETTINGS).initialise())
    assert isinstance(network, PiD)
    save_decoder(network, path, name="small", space="flux1", version="v1", licence="Apache-2.0")
    return path


def opened(file: Path, **how: object) -> PixelDecoder:
    return PixelDecoder.from_pretrained(file, "cpu", **how)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def latent() -> torch.Tensor:
    return torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(file: Path, latent: torch.Tensor) -> torch.Tensor:
    return opened(file).decode(latent, output="pt")


def test_a_limit_that_all_fits_in_changes_nothing(file: Path, latent: torch.Tensor, expected: torch.Tensor):
    for memory in ("4GB", 4_000_000_000, "auto"):
        decoder = opened(file, memory=memory)
        assert torch.equal(decoder.decode(latent, output="pt"), expected)
        assert decoder.plan(128, 192).tile is None
    assert decoder.runner.memory == "auto"
    decoder.runner.memory = None
    assert torch.equal(decoder.decode(latent, output="pt"), expected)


def test_a_plan_is_followed(file: Path):
    decoder = opened(file)
    generous = decoder.plan(2048, 2048, batch=4)
    assert (generous.images, generous.keep_tokens, generous.tile) == (4, True, None)
    least = generous.total
    while True:  # down to the smallest limit that anything fits in
        decoder.runner.memory = least - 1
        try:
            least = decoder.plan(2048, 2048).total
        except ValueError as refused:
            assert "does not fit in" in str(refused)
            break
    decoder.runner.memory = least
    plan, arranged = decoder.plan(2048, 2048), decoder.runner.arrange(2048, 2048, 1)
    assert (arranged.tiling is None) == (plan.tile is None)
    assert arranged.chunk == plan.chunk
    assert not arranged.keep_tokens
    assert not plan.keep_tokens
    assert decoder.dtype == plan.dtype
    assert decoder.runner.images_at_once(2048, 2048) == 1
    decoder.tile = 512
    decoder.runner.memory = decoder.plan(2048, 2048).total
    assert decoder.runner.arrange(2048, 2048, 1).tiling is not None
    assert any("MB" in line or "GB" in line for line in plan.lines())


def test_a_decode_that_does_not_fit_is_refused_before_it_begins(file: Path, latent: torch.Tensor):
    decoder = opened(file, memory="100MB")
    with pytest.raises(ValueError, match=r"192x128 does not fit in 0\.10 GB: the least that would do is"):
        decoder.decode(latent)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"memory": "lots"}, "memory='lots': expected an amount"),
        ({"attention": "fast"}, "attention='fast': expected one of auto, torch"),
        ({"compile": "graphs"}, "compile='graphs' on cpu: CUDA graphs need a CUDA device"),
        ({"compile": "twice"}, "compile='twice': expected one of default, graphs"),
        ({"quantise": "int2"}, "kind='int2': expected one of int8"),
    ],
)
def test_what_cannot_be_is_one_line(file: Path, how: dict[str, object], line: str):
    with pytest.raises(ValueError, match=f"^{line}"):
        opened(file, **how)


def test_a_kernel_that_is_not_there_is_refused_when_it_is_needed(file: Path, latent: torch.Tensor):
    decoder = opened(file, attention="sage")
    with pytest.raises(ValueError, match="attention='sage': the package sageattention is not installed"):
        decoder.decode(latent)
    decoder.runner.attention = "math"
    decoder.decode(latent)
    assert decoder.network.backbone.kernel is not opened(file).network.backbone.kernel


def test_kernels_compute_the_same_image(file: Path, latent: torch.Tensor, expected: torch.Tensor):
    found = opened(file, attention="math").decode(latent, output="pt")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_many_tokens_are_made_in_every_call(
    file: Path, latent: torch.Tensor, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    decoder = opened(file)
    assert decoder.runner.arrange(128, 192, 1).keep_tokens
    points, tokens, both = 1, 16 * 24, 2  # one injection point; (128/8)·(192/8) tokens; with what they add to the gates
    monkeypatch.setattr(runner, "KEPT", points * tokens * 24 * both * 4 - 1)
    assert not decoder.runner.arrange(128, 192, 1).keep_tokens
    assert torch.equal(decoder.decode(latent, output="pt"), expected)


def test_what_is_compiled_is_not_quantised_afterwards(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIXDEC_CACHE", str(tmp_path))
    decoder = opened(file, compile="default")
    with pytest.raises(ValueError, match="quantise='int8': the network is compiled; quantise first"):
        decoder.runner.quantise("int8")


def test_the_weights_of_a_quantised_network_stay(file: Path):
    decoder = PixelDecoder.from_pretrained("pixdec-nano", "cpu", quantise="int8-weights")
    assert decoder.runner.quantised == "int8-weights"
    with pytest.raises(ValueError, match=r"the network is quantised \(int8-weights\); load the decoder again"):
        decoder.load_lora("any.safetensors")
    with pytest.raises(ValueError, match=r"quantised \(int8-weights\); load"):
        decoder.runner.quantise("int8")
