"""A command that runs in this process, and tiny models with random weights in place of the bundled ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from pixdec.cli import main
from pixdec.encoder import _named  # pyright: ignore[reportPrivateUsage]
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings
from pixdec.weights.load import save_autoencoder, save_decoder

VAE = TinyVAESettings(
    encoder_widths=(8, 8, 8), encoder_depths=(0, 0, 0), decoder_widths=(8, 8, 8), decoder_depths=(0, 0, 0)
)
BACKBONE = PixDiTSettings(
    patch=8,
    hidden=16,
    heads=2,
    depth=1,
    pixel_width=4,
    pixel_hidden=16,
    pixel_heads=2,
    pixel_depth=1,
    text_width=None,
    reference=None,
)
ADAPTER = AdapterSettings(latent_channels=128, latent_factor=16, scale=4, width=8, blocks=1, unpack=2, gate="token")
TIMES = (0.999, 0.5, 0.0)


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left: exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def refused(self, *words: str) -> None:
        """Exit code 2, one line on stderr with all these words, nothing on stdout."""
        assert self.code == 2
        assert self.out == ""
        assert self.err.startswith("pixdec: ")
        assert self.err.count("\n") == 1
        assert all(word in self.err for word in words), self.err


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `pixdec` with these arguments, each turned into text."""

    def run(*arguments: object) -> Outcome:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random models under the names of the bundled ones."""
    folder = tmp_path_factory.mktemp("bundled")
    torch.manual_seed(0)
    settings = PiDSettings(BACKBONE, ADAPTER)
    decoder = PiD(settings).initialize(seed=0)
    for parameter in decoder.parameters():  # zero where training starts: then nothing would depend on steps or latent
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_decoder(
        decoder,
        folder / "pixdec-nano.safetensors",
        name="pixdec-nano",
        space="flux2",
        version="nano",
        licence="Apache-2.0",
        times=TIMES,
    )
    save_autoencoder(TinyVAE(VAE), folder / "pixdec-tiny.safetensors", name="pixdec-tiny", licence="Apache-2.0")
    return folder


@pytest.fixture(autouse=True)
def models(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tiny models stand in for the bundled ones, and nothing is fetched."""
    monkeypatch.setattr("pixdec.weights.catalog.BUNDLED", bundled)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it was imported
    _named.cache_clear()
    yield
    _named.cache_clear()  # or the stand-in goes on decoding in other tests


@pytest.fixture
def photo() -> Callable[..., Path]:
    """Write a smooth RGB picture to a path, and return the path."""

    def photo(path: Path, width: int = 32, height: int = 16, seed: int = 0) -> Path:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randint(30, 225, (3, 4, 3), generator=generator, dtype=torch.uint8).numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        return path

    return photo


@pytest.fixture
def names() -> Callable[[Path], list[str]]:
    """All files below a folder, hidden ones too."""
    return lambda folder: sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
