"""What docs/fine-tuning.md says about decoding runs as it is written, with a LoRA for a small decoder."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from pixdec.cli import main
from pixdec.io.images import read_settings, save_image, to_pil
from pixdec.latents import Latent, get_space
from pixdec.models.pid import PiD
from pixdec.sampling.flow import STUDENT_TIMES
from pixdec.train.low_rank import LoraSettings, add_lora, lora_of
from pixdec.weights.load import load_decoder, save_decoder
from pixdec.weights.lora import save_lora
from trainset import SILENT

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fine-tuning.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the files that the page names."""
    folder = tmp_path_factory.mktemp("page")
    settings = LoraSettings(16)
    (folder / "runs" / "mine").mkdir(parents=True)
    decoder = folder / "runs" / "mine" / "decoder.safetensors"
    facts = {"space": "flux2", "version": "v1.5", "licence": "Apache-2.0", "times": STUDENT_TIMES}
    save_decoder(PiD(SILENT).initialize(), decoder, name="mine", **facts)
    network = load_decoder(decoder).network
    add_lora(network, settings)
    tensors = lora_of(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    for key in tensors:
        if "lora_B" in key:
            tensors[key].normal_(std=0.05, generator=generator)
    (folder / "runs" / "lora").mkdir(parents=True)
    path = folder / "runs" / "lora" / "lora.safetensors"
    facts = {"name": "lora", "base": "mine", "space": "flux2", "licence": "Apache-2.0"}
    save_lora(tensors, path, alpha=16.0, layers=settings.layers, network=network.settings, **facts)
    save_image(to_pil(torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1)[0], folder / "photo.png", settings={})
    (folder / "latents").mkdir()
    Latent(0.7 * torch.randn(1, 128, 2, 2, generator=generator), get_space("flux2"), 0.0).save(
        folder / "latents/a.safetensors"
    )
    return folder


def test_the_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    commands = re.findall(r"^    pixdec ((?:upscale|decode) .*)$", PAGE, re.MULTILINE)
    commands += re.findall(r"`pixdec (inspect .*?)`", PAGE)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert "base: mine" in capsys.readouterr().out
    assert read_settings(folder / "large.png")["lora_strength"] == 0.7
    assert read_settings(folder / "images" / "a.png")["lora_strength"] == 1.0


@pytest.mark.parametrize("script", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), ids=["dial", "peft"])
def test_the_scripts_run(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(script, "fine-tuning.md", "exec"), names)
    if "network" in names:
        expected = lora_of(names["network"].state_dict())
        assert all(torch.equal(tensor, expected[key]) for key, tensor in names["tensors"].items())
