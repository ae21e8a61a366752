"""`PixelDecoder` on small random networks saved and loaded as real files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from battery import randomised
from pixdec.decoder import PixelDecoder
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import save_decoder

BACKBONE = PixDiTSettings(
    hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
)
SETTINGS = PiDSettings(BACKBONE, AdapterSettings(width=8, blocks=1))


class Captions:
    """Embeddings that tell captions apart, and remember what they were asked."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def __call__(self, captions, device, dtype):
        self.asked.append(list(captions))
        seeds = [sum(map(ord, caption)) for caption in captions]
        each = [torch.randn(6, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(each).to(device, dtype)


@pytest.fixture
def student(tmp_path: Path) -> PixelDecoder:
    return make(tmp_path, kind="student")


def make(folder: Path, *, kind: str, settings: PiDSettings = SETTINGS, version: str = "v1") -> PixelDecoder:
    network = randomised(PiD(settings).initialise())
    path = folder / f"{kind}.safetensors"
    extra = {} if kind == "student" else {"times": ()}
    save_decoder(network, path, name="small", space="flux1", version=version, licence="Apache-2.0", kind=kind, **extra)
    decoder = PixelDecoder.from_pretrained(path, device="cpu")
    decoder._captions = Captions()
    return decoder


def latents(batch: int = 2, height: int = 2, width: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


def test_outputs_agree(student: PixelDecoder):
    latent = latents(2)
    tensor = student.decode(latent, output="pt")
    assert tensor.shape == (2, 3, 64, 96)
    assert tensor.dtype == torch.float32
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    array = student.decode(latent, output="np")
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    pictures = student.decode(latent)
    assert pictures[0].size == (96, 64)
    assert np.abs(np.asarray(pictures[1]) / 255 - array[1]).max() <= 0.5 / 255 + 1e-6


def test_one_seed_gives_one_image_whatever_the_batch(student: PixelDecoder):
    latent = latents(3)
    together = student.decode(latent, ["a", "b", "c"], sigma=[0.0, 0.3, 0.6], seed=[5, 6, 5], output="pt")
    alone = student.decode(latent[1:2], "b", sigma=0.3, seed=6, output="pt")
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(student.decode(latent[1:2], "b", 0.3, 7, output="pt"), alone, atol=1e-3)
    assert torch.allclose(
        student.decode(latent, seed=5, output="pt")[1], student.decode(latent, seed=[0, 6, 0], output="pt")[1]
    )


def test_caption_and_sigma_matter(student: PixelDecoder):
    latent = latents(1)
    plain = student.decode(latent, output="pt")
    assert not torch.equal(student.decode(latent, "a cat", output="pt"), plain)
    assert not torch.equal(student.decode(latent, sigma=0.5, output="pt"), plain)
    named = Latent(latent, get_space("flux1"), 0.5)
    assert torch.equal(student.decode(named, output="pt"), student.decode(latent, sigma=0.5, output="pt"))


def test_stream_ends_with_what_decode_gives(student: PixelDecoder):
    latent = latents(1)
    steps = list(student.stream(latent))
    assert [(step.index, step.total) for step in steps] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert torch.equal((steps[-1].x0 + 1) / 2, student.decode(latent, output="pt"))
    assert len(list(student.stream(latent, steps=2))) == 2


def test_the_adapter_runs_once(student: PixelDecoder):
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    student.network.adapter.conv_in.register_forward_hook(count)
    student.decode(latents(2))
    assert calls == 1


def test_space_of_z_image_is_that_of_flux1(student: PixelDecoder):
    assert student.decode(Latent(latents(1), get_space("z-image")))[0].size == (96, 64)
    with pytest.raises(ValueError, match=r"latent of sd3.*flux1"):
        student.decode(Latent(latents(1), get_space("sd3")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 5}, "steps=5"),
        ({"steps": 0}, "steps=0"),
        ({"prompt": ["a", "b", "c"]}, "3 captions for 2"),
        ({"seed": [1]}, "1 seeds for 2"),
        ({"size": (96, 64)}, r"size=\(96, 64\).*\(64, 96\)"),
        ({"output": "jpg"}, "output='jpg'"),
        ({"sigma": 1.5}, "1.5"),
    ],
)
def test_bad_arguments(student: PixelDecoder, arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        student.decode(latents(2), **arguments)


@pytest.mark.parametrize(
    "latent",
    [
        torch.full((1, 16, 2, 3), float("nan")),
        torch.randn(1, 6, 64),
        torch.randn(1, 16, 1, 2, 3),
        torch.randn(1, 4, 2, 3),
        torch.randn(1, 3, 64, 64),
        3 * torch.randn(1, 16, 32, 32),
    ],
    ids=["nan", "packed", "5-d", "sdxl", "image", "raw"],
)
def test_foreign_latents_are_refused_in_one_line(student: PixelDecoder, latent: torch.Tensor):
    with pytest.raises(ValueError) as refused:
        student.decode(latent)
    assert "\n" not in str(refused.value)


def test_teacher(tmp_path: Path):
    teacher = make(tmp_path, kind="teacher")
    steps = list(teacher.stream(latents(1), "a cat", steps=3))
    assert [step.total for step in steps] == [3, 3, 3]
    asked = teacher._captions.asked
    assert asked[0] == ["a cat"]
    assert asked[1][0].startswith("low quality")


def test_a_teacher_of_an_unknown_version_is_refused_before_anything_is_embedded(tmp_path: Path):
    teacher = make(tmp_path, kind="teacher", version="v3")
    with pytest.raises(ValueError, match=r"version 'v3'.*expected v1 or v1\.5"):
        teacher.decode(latents(1))
    assert teacher._captions.asked == []


def test_prior_is_no_decoder(tmp_path: Path):
    network = PiD(dataclasses.replace(SETTINGS, adapter=None)).initialise()
    path = tmp_path / "prior.safetensors"
    save_decoder(network, path, name="p", space="", version="v1", licence="Apache-2.0", kind="prior", times=())
    with pytest.raises(ValueError, match="prior"):
        PixelDecoder.from_pretrained(path)


def test_a_decoder_without_text_refuses_a_caption(tmp_path: Path):
    settings = dataclasses.replace(SETTINGS, backbone=dataclasses.replace(BACKBONE, text_width=None))
    decoder = make(tmp_path, kind="student", settings=settings)
    decoder._captions = None
    assert decoder.decode(latents(1))[0].size == (96, 64)
    with pytest.raises(ValueError, match="takes no caption"):
        decoder.decode(latents(1), "a cat")


def test_bfloat16_weights_decode_to_nearly_the_same(tmp_path: Path):
    exact = make(tmp_path, kind="student")
    rough = PixelDecoder.from_pretrained(tmp_path / "student.safetensors", device="cpu", dtype=torch.bfloat16)
    rough._captions = Captions()
    assert rough.dtype == torch.bfloat16
    assert rough.network.gates[0].log_alpha.dtype == torch.float32
    a, b = exact.decode(latents(1), output="pt"), rough.decode(latents(1), output="pt")
    assert 0 < (a - b).abs().mean() < 0.02


def test_import_costs_no_torch():
    import subprocess
    import sys

    code = "import sys, pixdec; assert 'torch' not in sys.modules; pixdec.PixelDecoder; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
