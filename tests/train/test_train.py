"""Training: golden losses, exact resumption, data that depends on (seed, index) alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.taef2 import TAEF2
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings
from pixdec.train import autoencoder, decoder
from pixdec.train.data.degrade import degrade
from pixdec.train.data.photos import CropSettings, Photos, ahead
from pixdec.train.data.synthetic import draw_page
from pixdec.train.loop import LoopSettings, Run, averaged_weights, generator_at, learning_rate, power_average, train

TINY = TinyVAESettings(
    encoder_widths=(8, 8, 16), decoder_widths=(8, 8, 16), encoder_depths=(0, 1, 1), decoder_depths=(0, 1, 1)
)
NANO = PiDSettings(
    PixDiTSettings(
        patch=8,
        hidden=24,
        heads=2,
        depth=2,
        pixel_width=4,
        pixel_hidden=24,
        pixel_heads=2,
        pixel_depth=1,
        text_width=None,
        in_channels=6,
        rope_stride=1.0,
        pixel_positions="patch",
        window=4,
    ),
    AdapterSettings(
        latent_channels=128,
        latent_factor=16,
        width=8,
        blocks=1,
        unpack=2,
        padding="replicate",
        gate="token",
        pixel_head=True,
    ),
    prediction="residual",
    base=TINY,
)
LOOP = LoopSettings(steps=20, batch=4, learning_rate=2e-3, warmup=2, seed=3)
DECODER = decoder.DecoderRecipe(network=NANO, loop=LOOP, crops=CropSettings(size=64))


def pictures(step: int, size: int) -> torch.Tensor:
    """Smooth random images (4,3,size,size) in [-1,1]."""
    coarse = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").tanh()


def train_autoencoder(run: Run, teacher: TAEF2) -> list[float]:
    assert isinstance(run.network, TinyVAE)
    network = run.network
    return [
        p.losses["total"]
        for p in train(run, lambda i: autoencoder.losses(network, teacher, pictures(i, 32), 1.0), LOOP)
    ]


def new_decoder_run() -> Run:
    network = PiD(NANO).initialise(0)
    assert network.base is not None
    network.base.requires_grad_(False)
    return Run(network, LOOP)


def decoder_losses(run: Run, steps: int) -> list[float]:
    assert isinstance(run.network, PiD)
    network = run.network
    tiny = TinyVAE(TINY)
    torch.manual_seed(0)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.05)

    def losses_at(step: int) -> dict[str, torch.Tensor]:
        return decoder.losses(network, [tiny.encoder], pictures(step, 64), DECODER, generator_at(LOOP.seed, step))

    return [p.losses["total"] for _, p in zip(range(steps), train(run, losses_at, LOOP), strict=False)]


def test_autoencoder_golden_losses():
    torch.manual_seed(0)
    network, teacher = TinyVAE(TINY), TAEF2().requires_grad_(False)
    losses = train_autoencoder(Run(network, LOOP), teacher)
    assert len(losses) == 20
    assert losses[0] == pytest.approx(GOLDEN_AUTOENCODER[0], rel=1e-3)
    assert losses[-1] == pytest.approx(GOLDEN_AUTOENCODER[1], rel=2e-2)


def test_decoder_golden_losses():
    losses = decoder_losses(new_decoder_run(), 20)
    assert losses[0] == pytest.approx(GOLDEN_DECODER[0], rel=1e-3)
    assert losses[-1] == pytest.approx(GOLDEN_DECODER[1], rel=2e-2)


def test_a_resumed_run_takes_the_same_trajectory(tmp_path: Path):
    straight = new_decoder_run()
    uninterrupted = decoder_losses(straight, 8)
    first = new_decoder_run()
    head = decoder_losses(first, 5)
    first.save(tmp_path / "state.pt")
    second = new_decoder_run()
    assert not second.resume(tmp_path / "nothing.pt")
    assert second.resume(tmp_path / "state.pt")
    assert second.step == 5
    assert head + decoder_losses(second, 3) == uninterrupted
    for (name, a), b in zip(straight.average.state_dict().items(), second.average.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_averaged_weights_are_the_average(tmp_path: Path):
    run = new_decoder_run()
    decoder_losses(run, 3)
    run.save(tmp_path / "state.pt")
    weights = averaged_weights(tmp_path / "state.pt")
    PiD(NANO).load_state_dict(weights)
    name = "backbone.patch_embed.weight"
    assert torch.equal(weights[name], run.average.module.state_dict()[name])
    assert not torch.equal(weights[name], run.network.state_dict()[name])


def test_a_failed_save_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = new_decoder_run()
    run.save(tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()

    def broken(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="No space left"):
        run.save(tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_step_that_is_not_finite_stops_before_the_weights_change():
    network = torch.nn.Linear(2, 1)
    run = Run(network, LOOP)
    before = network.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 0"):
        next(train(run, lambda step: {"total": (network(torch.ones(2)) * float("nan")).sum()}, LOOP))
    assert torch.equal(network.weight, before)


def test_learning_rate():
    settings = LoopSettings(steps=100, batch=1, learning_rate=1.0, warmup=10, decay=0.5)
    assert learning_rate(settings, 0) == pytest.approx(0.1)
    assert learning_rate(settings, 30) == 1.0
    assert learning_rate(settings, 75) == pytest.approx(0.5)
    assert learning_rate(settings, 99) < 0.01


def test_power_average_weighs_recent_values():
    """The profile is n^gamma: the average of 1, 2, …, n tends to n·(gamma+1)/(gamma+2)."""
    average = torch.tensor(1.0)
    for n in range(1, 2000):
        average = power_average(average, torch.tensor(float(n + 1)), n)
    assert float(average) / 2000 == pytest.approx(7.94 / 8.94, rel=1e-2)


def test_noise_levels_cover_the_distribution():
    recipe = dataclasses.replace(DECODER, t_high=0.2)
    levels = torch.cat([decoder.noise_levels(recipe, generator_at(0, i)) for i in range(1000)])
    assert levels.min() > 0
    assert levels.max() < 1
    ratio = (levels[levels < 0.5] / (1 - levels[levels < 0.5]) / NANO.residual_std).log()
    assert float(ratio.median()) == pytest.approx(recipe.t_mean, abs=0.15)
    assert 0.2 < float((levels > 0.5).float().mean()) < 0.3


def test_degrade_is_bicubic_and_rounded():
    images = pictures(0, 64)
    low = degrade(images, 4)
    assert low.shape == (4, 3, 16, 16)
    assert torch.allclose(((low + 1) * 127.5).round(), (low + 1) * 127.5, atol=1e-4)
    flat = torch.full((1, 3, 32, 32), 0.2)
    assert (degrade(flat, 4) - 0.2).abs().max() <= 1 / 255


def test_crops_depend_on_seed_and_index_alone(tmp_path: Path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    settings = CropSettings(size=32, synthetic=0.3)
    one, two = Photos(tmp_path), Photos(tmp_path)
    batch = one.batch(settings, 5, 7, 6)
    one.batch(settings, 5, 8, 6)
    assert torch.equal(batch, two.batch(settings, 5, 7, 6))
    assert not torch.equal(batch, two.batch(settings, 6, 7, 6))
    assert batch.shape == (6, 3, 32, 32)
    assert batch.min() >= -1
    assert batch.max() <= 1
    with pytest.raises(ValueError, match="smaller than the crop"):
        one.batch(CropSettings(size=128, synthetic=0), 0, 0, 1)
    with pytest.raises(ValueError, match="no pictures"):
        (tmp_path / "empty").mkdir()
        Photos(tmp_path / "empty")


def test_pages_have_ink():
    pages = [np.asarray(draw_page(np.random.default_rng(i), 64)) for i in range(8)]
    assert all(page.shape == (64, 64, 3) for page in pages)
    assert sum(page.std() > 10 for page in pages) >= 6
    assert np.array_equal(pages[3], np.asarray(draw_page(np.random.default_rng(3), 64)))


def test_batches_made_ahead_are_the_same():
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 9:
            raise ValueError("no more")
        return 10 * step

    take = ahead(make)
    assert [take(step) for step in (3, 4, 5, 8)] == [30, 40, 50, 80]
    assert made[:3] == [3, 4, 5]
    with pytest.raises(ValueError, match="no more"):
        take(9)


GOLDEN_AUTOENCODER = (-0.5989, -0.7709)
GOLDEN_DECODER = (52.984, 37.158)
