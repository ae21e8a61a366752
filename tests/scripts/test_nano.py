"""The training of the bundled decoder: its data, golden losses, and the same trajectory after a stop."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixdec.models.nano import Nano, NanoSettings
from pixdec.models.taef2 import TAEF2
from scripts.nano.crops import Data
from scripts.nano.data import DTYPE, lows, pack, page, teach
from scripts.nano.export import export
from scripts.nano.train import STAGES, Trainer, decode, locked

SMALL = NanoSettings(width=8, blocks=2, detail=4, embedding=8)
RECIPE = replace(STAGES["shape"], crop=16, batch=4, first=2, adversary=0.1, teacher=0.0, warm_up=1)
GOLDEN = (0.1996, 0.2322)  # pixels, mean of the first and of the last five steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pages and what a random autoencoder makes of them."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    taef2 = TAEF2().requires_grad_(False).to(DTYPE)
    for seed in range(2):
        image = page(seed, []).resize((416, 416))
        high = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(416, 416, 3)
        low = lows(image, taef2, None, random.Random(seed))
        assert low.shape == (3, 104, 104, 3)
        save_file({"high": high, "low": low[:1].contiguous()}, folder / f"page-{seed}.safetensors")
        save_file({"high": high, "low": low[:1].contiguous()}, folder / f"photo-{seed}.safetensors")
    return folder


def test_twenty_steps_have_golden_losses(folder: Path) -> None:
    trainer, data = Trainer(RECIPE, SMALL, None, "cpu"), Data(folder, RECIPE.crop)
    losses = [trainer.learn(data, 1.0) for _ in range(20)]
    first, last = (sum(each["pixels"] for each in part) / 5 for part in (losses[:5], losses[-5:]))
    assert (first, last) == pytest.approx(GOLDEN, rel=3e-2)
    assert losses[-1]["critic"] < losses[0]["critic"]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(folder: Path, tmp_path: Path) -> None:
    data, whole, before, after = Data(folder, RECIPE.crop), *(Trainer(RECIPE, SMALL, None, "cpu") for _ in range(3))
    expected = [whole.learn(data, 1.0) for _ in range(4)]
    found = [before.learn(data, 1.0) for _ in range(2)]
    torch.save(before.state(), tmp_path / "state.pt")
    after.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert found + [after.learn(data, 1.0) for _ in range(2)] == expected

    export(tmp_path / "state.pt", tmp_path / "nano.safetensors")
    low = torch.rand(1, 3, 8, 8) * 2 - 1
    assert [step.shape for step in decode(after.average, low, 4)] == [(1, 3, 32, 32)] * 4


def test_a_network_learns_what_lies_between_two(folder: Path) -> None:
    recipe = replace(RECIPE, adversary=0.0, phases=0.0, look=0.25, rate=0.01)
    ends = list[dict[str, torch.Tensor]]()
    for seed in range(2):
        torch.manual_seed(seed)
        end = Nano(SMALL).requires_grad_(False)
        end.last.bias.fill_(seed)  # images that are brighter by 1 after the second
        ends.append(end.state_dict())
    trainer, data = Trainer(recipe, SMALL, None, "cpu", ends), Data(folder, recipe.crop)
    losses = [trainer.learn(data, 1.0) for _ in range(30)]
    assert losses[-1]["pixels"] < 0.5 * losses[0]["pixels"]
    assert float(trainer.network.last.bias.detach().mean()) == pytest.approx(0.25, abs=0.1)


def test_stipple_is_told_from_wrong_detail() -> None:
    torch.manual_seed(0)
    detail = 0.1 * torch.randn(1, 3, 128, 128)
    dots = torch.zeros(1, 3, 128, 128)
    dots[:, :, ::4, ::4] = 0.1
    assert float(locked(dots).square().mean()) > 2 * float(locked(detail).square().mean())
    assert float(detail.square().mean()) > 10 * float(dots.square().mean())
    assert float(locked(torch.ones(1, 3, 128, 128)).abs().max()) < 1e-6


def test_a_pack_holds_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    gradient = torch.linspace(0, 255, 256).round().to(torch.uint8)
    high = gradient.view(1, 1, 256, 1).expand(3, 256, 256, 3).contiguous()
    plain = high[:, None, 1::4, 1::4].contiguous()
    variants = torch.cat((plain, 255 - plain), 1)
    save_file({"high": high, "low": variants}, folder / "teacher.safetensors")
    pack(folder, tmp_path / "pack", mebibytes=0.2)
    packed = Data(tmp_path / "pack", 16)
    assert packed.photos
    assert packed.teacher is not None
    assert torch.equal(packed.teacher["low"], variants)
    assert int((packed.teacher["high"].int() - high).abs().max()) < 8
    for teacher in (0, 1):
        high, low, is_page = packed.draw(random.Random(0), teacher=teacher, pages=0)
        assert (high.shape, low.shape) == ((3, 64, 64), (3, 16, 16))
        assert not is_page
        assert -1 <= float(high.min()) <= float(high.max()) <= 1
    (folder / "teacher.safetensors").unlink()


def test_the_teacher_sees_what_no_autoencoder_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path | None) -> torch.nn.Module:
        assert path is None
        return torch.nn.Upsample(scale_factor=4)

    monkeypatch.setattr("scripts.nano.data.load_real_esrgan", load)
    low = torch.randint(256, (2, 80, 80, 3), dtype=torch.uint8)
    save_file({"high": torch.zeros(320, 320, 3, dtype=torch.uint8), "low": low}, tmp_path / "photo.safetensors")
    teach(tmp_path, 1, None)
    first = load_file(tmp_path / "teacher.safetensors")
    teach(tmp_path, 2, None)  # goes on
    made = load_file(tmp_path / "teacher.safetensors")
    assert made["low"].shape == (2, 2, 64, 64, 3)
    assert all(torch.equal(first[key], made[key][:1]) for key in first)
    assert torch.equal(made["high"][:, ::4, ::4], made["low"][:, 0])
