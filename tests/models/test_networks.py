"""The shared battery on every network, and what is particular to each."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from battery import battery, randomised
from pixdec.models.adapter import AdapterSettings, SigmaGate
from pixdec.models.execution import Execution
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.taef2 import TAEF2
from pixdec.models.tiny_vae import TinyDecoder, TinyEncoder, TinyVAE, TinyVAESettings, pack, unpack

BACKBONE = PixDiTSettings(
    hidden=48, heads=3, depth=4, pixel_width=4, pixel_hidden=32, pixel_heads=2, text_width=24, text_length=10
)
ADAPTER = AdapterSettings(width=32)
V1 = PiDSettings(BACKBONE, ADAPTER)
V1_5 = PiDSettings(
    BACKBONE, dataclasses.replace(ADAPTER, gate="token", padding="replicate", pixel_head=True, aux_rgb=True)
)
TINY = TinyVAESettings(
    encoder_widths=(8, 8, 16), decoder_widths=(8, 8, 16), encoder_depths=(1, 1, 1), decoder_depths=(1, 1, 1)
)
SILENT = PiDSettings(
    dataclasses.replace(BACKBONE, patch=8, text_width=None, reference=None),
    AdapterSettings(
        latent_channels=128, latent_factor=16, width=16, unpack=2, padding="replicate", gate="token", pixel_head=True
    ),
)
# The text that comes out of the last patch block is read by nobody.
LAST_TEXT = tuple(f"backbone.patch_blocks.3.text.{name}" for name in ("q_norm", "proj", "norm2", "mlp"))


def call(network: PiD, height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    settings = network.settings

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    latent = sigma = text = None
    if settings.adapter is not None:
        side = settings.adapter.latent_factor * settings.adapter.scale
        latent, sigma = (
            draw(2, settings.adapter.latent_channels, height // side, width // side),
            torch.tensor([0.0, 0.4]),
        )
    if settings.backbone.text_width is not None:
        text = draw(2, 5, settings.backbone.text_width)
    return network(draw(2, 3, height, width), torch.tensor([0.3, 0.9]), text, latent, sigma)


@pytest.mark.parametrize(
    ("settings", "size", "unused"),
    [
        (V1, (64, 96), LAST_TEXT),
        (V1_5, (64, 96), (*LAST_TEXT, "adapter.aux_rgb")),
        (PiDSettings(BACKBONE, adapter=None), (48, 32), LAST_TEXT),
        (dataclasses.replace(V1, prediction="x0"), (64, 96), LAST_TEXT),
        (SILENT, (128, 64), ()),
    ],
    ids=["v1", "v1.5", "prior", "x0", "silent"],
)
def test_pid(settings: PiDSettings, size: tuple[int, int], unused: tuple[str, ...], tmp_path: Path):
    battery(
        lambda: PiD(settings).initialize(),
        lambda network: call(network, *size),
        (2, 3, *size),
        tmp_path,
        unused=unused,
        low_precision=0.1,
    )


def test_tiny_vae(tmp_path: Path):
    images, latent = torch.randn(2, 3, 32, 48), torch.randn(2, 32, 4, 6)

    def dtype(network: torch.nn.Module) -> torch.dtype:
        return next(network.parameters()).dtype

    battery(lambda: TinyEncoder(TINY), lambda n: n(images.to(dtype(n))), (2, 32, 4, 6), tmp_path)
    battery(lambda: TinyDecoder(TINY), lambda n: n(latent.to(dtype(n))), (2, 3, 32, 48), tmp_path)
    assert TinyVAE(TINY)(images).shape == images.shape


def test_taef2_shapes():
    network = TAEF2()
    latent = network.encode(torch.zeros(1, 3, 32, 48))
    assert latent.shape == (1, 32, 4, 6)
    assert network.decode(latent).shape == (1, 3, 32, 48)


def test_pack_is_the_order_of_flux2():
    latent = torch.arange(32 * 4).view(1, 32, 2, 2)
    packed = pack(latent)
    for c, dy, dx in ((0, 0, 0), (0, 0, 1), (5, 1, 0), (31, 1, 1)):
        assert packed[0, c * 4 + dy * 2 + dx, 0, 0] == latent[0, c, dy, dx]
    assert torch.equal(unpack(packed), latent)


@pytest.mark.parametrize("settings", [V1, V1_5, SILENT], ids=["v1", "v1.5", "silent"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
@torch.no_grad()
def test_chunked_equals_unchunked(settings: PiDSettings, chunk: int):
    network = randomised(PiD(settings).initialize())
    assert settings.adapter is not None
    channels, side = settings.adapter.latent_channels, settings.adapter.latent_factor * 4
    latent, sigma = torch.randn(1, channels, 128 // side, 64 // side), torch.zeros(1)
    text = None if settings.backbone.text_width is None else torch.randn(1, 5, 24)
    x, t = torch.randn(1, 3, 128, 64), torch.tensor([0.5])
    condition = network.condition(latent)
    whole = network.velocity(x, t, text, condition, sigma)
    assert torch.allclose(network.velocity(x, t, text, condition, sigma, Execution(chunk=chunk)), whole, atol=2e-5)


@torch.no_grad()
def test_an_adapted_network_starts_as_its_prior():
    """Zero adapter heads: whatever the latent, the velocity is the backbone's."""
    network = PiD(V1).initialize()
    torch.nn.init.normal_(network.backbone.final_linear.weight)  # else the velocity would be zero in any case
    x, t, text = torch.randn(1, 3, 32, 32), torch.tensor([0.5]), torch.randn(1, 4, 24)
    velocities = [network(x, t, text, torch.randn(1, 16, 1, 1), torch.zeros(1)) for _ in range(2)]
    assert torch.equal(*velocities)
    assert torch.equal(velocities[0], network.backbone(x, t, text))
    assert velocities[0].abs().max() > 0


def test_gate_keeps_log_alpha_in_float32():
    gate = SigmaGate(8, "token")
    with torch.no_grad():
        gate.log_alpha.fill_(1.2345678)
    before = gate.log_alpha.item()
    gate.to(torch.bfloat16)
    assert gate.log_alpha.dtype == torch.float32
    assert gate.log_alpha.item() == before
    assert gate.content.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_gate_closes_with_noise():
    gate = SigmaGate(8, "channel")
    torch.nn.init.zeros_(gate.content.weight)
    gate.content.bias.fill_(2.0)
    x, tokens = torch.zeros(3, 1, 8), torch.ones(3, 1, 8)
    opening = gate(x, gate.prepare(tokens), torch.tensor([0.0, 0.4, 0.8]))[:, 0, 0]
    by_hand = [1 / (1 + math.exp(-(2 - 5 * sigma))) for sigma in (0.0, 0.4, 0.8)]
    assert opening.tolist() == pytest.approx(by_hand, rel=1e-6)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="hidden=50"):
        dataclasses.replace(BACKBONE, hidden=50)
    with pytest.raises(ValueError, match=r"do not fit|does not fit"):
        PiD(PiDSettings(dataclasses.replace(BACKBONE, patch=24), ADAPTER))
