"""The scripts of docs/vision-latents.md run, with tiny models in place of those they name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from vision_tiny import Captions, decoder, dinov2, mean_and_variance, noise, shaken, siglip

from pixdec.sampling.flow import shift

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vision-latents.md"

diffusers = pytest.importorskip("diffusers")
if not hasattr(diffusers, "AutoencoderRAE"):
    pytest.skip("this diffusers has no AutoencoderRAE", allow_module_level=True)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the scripts name → where it lies here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pixdec.decoder.CaptionEmbeddings", Captions)
    Image.effect_noise((300, 200), 80).convert("RGB").save("photo.jpg")
    mean, variance = mean_and_variance()
    torch.save({"mean": mean, "var": variance}, "stat.pt")
    dinov2().save_pretrained("dinov2")
    siglip().save_pretrained("siglip")
    for space in ("dinov2", "siglip"):
        decoder(tmp_path, space, scale=1)
    rae = shaken(
        diffusers.AutoencoderRAE(
            encoder_num_hidden_layers=1,
            encoder_input_size=448,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
        )
    )
    rae._latents_mean, rae._latents_std = mean, (variance + 1e-5).sqrt()
    monkeypatch.setattr(diffusers.AutoencoderRAE, "from_pretrained", lambda _: rae)
    return {
        'hf_hub_download("nyu-visionx/RAE-collections", "stats/dinov2/wReg_base/imagenet1k_512/stat.pt")': '"stat.pt"',
        '"pid-dinov2-2k"': '"dinov2.safetensors", "cpu"',
        '"pid-siglip-8x"': '"siglip.safetensors", "cpu"',
        '.from_pretrained("dinov2", ': '.from_pretrained("dinov2", "dinov2", ',
        '.from_pretrained("siglip")': '.from_pretrained("siglip", "siglip")',
    }


def test_the_scripts_of_the_page(models: dict[str, str]):
    page = PAGE.read_text()
    scripts = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(scripts) == 5
    used = dict.fromkeys(models, 0)
    names: dict[str, Any] = {
        "model": lambda x, t, _: x / t.view(-1, 1, 1, 1).clamp(min=0.5),
        "make_tokens": make_tokens,
    }
    pictures: list[Any] = []
    for script in scripts:
        for published, here in models.items():
            used[published] += published in script
            script = script.replace(published, here)
        exec(compile(script, str(PAGE), "exec"), names)
        pictures += names.pop("images", [])
    assert all(used.values())
    assert Image.open("photo-2048.png").size == (256, 256)  # the last script's; 2048 for a decoder of scale 8
    assert names["baseline"].shape == (1, 3, 512, 512)
    assert torch.equal(names["theirs"].tensor, names["latent"].tensor)
    assert [picture.size for picture in pictures] == [(512, 512)] * 2 + [(256, 256)]


def make_tokens(captions: list[str]) -> torch.Tensor:
    return noise(len(captions), 256, 1152).bfloat16()


def test_the_noise_levels_on_the_page():
    page = PAGE.read_text()
    stated = re.search(r"After step 48 of these 50, sigma is ([\d.]+); after 46, ([\d.]+); after 49, ([\d.]+);", page)
    assert stated is not None
    factor = math.sqrt(768 * 32 * 32 / 4096)
    times = [shift(1 - 0.999 * i / 50, factor) for i in range(51)]
    assert [f"{times[i]:.2f}" for i in (48, 46, 49)] == list(stated.groups())
