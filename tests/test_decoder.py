"""`PixelDecoder` on small random networks saved and loaded as real files."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from battery import randomised
from pixdec.decoder import PixelDecoder
from pixdec.inference.config import InferenceConfig
from pixdec.inference.sizes import fit
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.catalog import Sizes
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
    network = randomised(PiD(settings).initialize())
    path = folder / f"{kind}.safetensors"
    extra = {} if kind == "student" else {"times": ()}
    save_decoder(network, path, name="small", space="flux1", version=version, licence="Apache-2.0", kind=kind, **extra)
    decoder = PixelDecoder.from_pretrained(path, device="cpu")
    decoder.captions = Captions()
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
        ({"size": (96, 64)}, r"size=\(96, 64\).*\(64, 96\).*ask for \(96, 144\) or \(43, 64\)"),
        ({"size": (64,)}, r"size=\(64,\): expected \(height, width\)"),
        ({"size": [(64, 96), None]}, "2 sizes for 1"),
        ({"batch_size": 0}, "batch_size=0"),
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
    asked = teacher.captions.asked
    assert asked[0] == ["a cat"]
    assert asked[1][0].startswith("low quality")


def test_a_teacher_of_an_unknown_version_is_refused_before_anything_is_embedded(tmp_path: Path):
    teacher = make(tmp_path, kind="teacher", version="v3")
    with pytest.raises(ValueError, match=r"version 'v3'.*expected v1 or v1\.5"):
        teacher.decode(latents(1))
    assert teacher.captions.asked == []


def test_prior_is_no_decoder(tmp_path: Path):
    network = PiD(dataclasses.replace(SETTINGS, adapter=None)).initialize()
    path = tmp_path / "prior.safetensors"
    save_decoder(network, path, name="p", space="", version="v1", licence="Apache-2.0", kind="prior", times=())
    with pytest.raises(ValueError, match="prior"):
        PixelDecoder.from_pretrained(path)


def test_a_decoder_without_text_refuses_a_caption(tmp_path: Path):
    settings = dataclasses.replace(SETTINGS, backbone=dataclasses.replace(BACKBONE, text_width=None))
    decoder = make(tmp_path, kind="student", settings=settings)
    decoder.captions = None
    assert decoder.decode(latents(1))[0].size == (96, 64)
    with pytest.raises(ValueError, match="takes no caption"):
        decoder.decode(latents(1), "a cat")


def test_bfloat16_weights_decode_to_nearly_the_same(tmp_path: Path):
    exact = make(tmp_path, kind="student")
    rough = PixelDecoder.from_pretrained(tmp_path / "student.safetensors", device="cpu", dtype=torch.bfloat16)
    rough.captions = Captions()
    assert rough.dtype == torch.bfloat16
    assert rough.network.gates[0].log_alpha.dtype == torch.float32
    a, b = exact.decode(latents(1), output="pt"), rough.decode(latents(1), output="pt")
    assert 0 < (a - b).abs().mean() < 0.02


def calls(decoder: PixelDecoder) -> list[int]:
    """Grows by the number of images each time the decoder takes up a batch."""
    found: list[int] = []
    decoder.network.adapter.conv_in.register_forward_hook(lambda _, given, __: found.append(given[0].shape[0]))
    return found


def test_a_size_is_reached_by_resampling_what_the_model_decodes(student: PixelDecoder):
    latent = latents(2)
    own = student.decode(latent, output="pt")
    for size in ((32, 48), (43, 64), (100, 150)):
        sized = student.decode(latent, size=size, output="pt")
        assert torch.allclose(sized, (fit(own * 2 - 1, size) + 1) / 2, atol=1e-6)
        assert student.decode(latent, size=size)[1].size == (size[1], size[0])
    assert torch.equal(student.decode(latent, size=(64, 96), output="pt"), own)


def test_only_the_last_step_of_a_stream_has_the_size(student: PixelDecoder):
    shapes = [tuple(step.x0.shape) for step in student.stream(latents(1), size=(32, 48))]
    assert shapes == [(1, 3, 64, 96)] * 3 + [(1, 3, 32, 48)]


MIXED = [latents(2), latents(1, 4, 2, seed=1), latents(1, seed=2)]
EACH = {"prompt": ["a", "b", "c", "d"], "sigma": [0.0, 0.3, 0.6, 0.1], "seed": [5, 6, 5, 9]}


def test_mixed_sizes_are_decoded_as_each_alone(student: PixelDecoder):
    taken = calls(student)
    together = student.decode(MIXED, **EACH, output="pt")
    assert taken == [3, 1], "one batch for each size"
    one_by_one = student.decode(MIXED, **EACH, output="pt", batch_size=1)
    assert taken[2:] == [1, 1, 1, 1]
    assert [tuple(part.shape) for part in together] == [(2, 3, 64, 96), (1, 3, 128, 64), (1, 3, 64, 96)]
    images = [latent[i : i + 1] for latent in MIXED for i in range(len(latent))]
    for i, (latent, several, single) in enumerate(zip(images, rows(together), rows(one_by_one), strict=True)):
        own = {name: values[i] for name, values in EACH.items()}
        alone = student.decode(latent, **own, output="pt")[0]
        assert torch.equal(single, alone)
        assert torch.allclose(several, alone, atol=1e-5)
    pictures = student.decode(MIXED, **EACH)
    assert [picture.size for picture in pictures] == [(96, 64), (96, 64), (64, 128), (96, 64)]
    arrays = student.decode(MIXED, **EACH, output="np")
    assert all(np.array_equal(a, b.permute(0, 2, 3, 1).numpy()) for a, b in zip(arrays, together, strict=True))


def rows(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [image for part in parts for image in part]


def test_a_list_takes_latents_with_levels_of_their_own_and_a_size_each(student: PixelDecoder):
    named = [Latent(latents(1), get_space("flux1"), 0.5), Latent(latents(1, 4, 2), get_space("z-image"))]
    parts = student.decode(named, size=[None, (64, 32)], output="pt")
    assert [tuple(part.shape) for part in parts] == [(1, 3, 64, 96), (1, 3, 64, 32)]
    assert torch.equal(parts[0], student.decode(latents(1), sigma=0.5, output="pt"))
    with pytest.raises(ValueError, match=r"size=\(64, 96\).*\(128, 64\)"):
        student.decode(named, size=(64, 96))
    with pytest.raises(ValueError, match="expected one or more"):
        student.decode([])


def test_a_bad_latent_in_a_list_is_refused_before_any_is_decoded(student: PixelDecoder):
    taken = calls(student)
    with pytest.raises(ValueError, match="NaN"):
        student.decode([latents(1), torch.full((1, 16, 2, 3), float("nan"))])
    assert taken == []


def test_no_more_images_at_once_than_have_the_pixels_of_the_largest(
    student: PixelDecoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pixdec.inference.engine.WHOLE", 2 * 64 * 96 + 1)
    taken = calls(student)
    student.decode(latents(5))
    student.decode(latents(2, 8, 8))
    assert taken == [2, 2, 1, 1, 1]


def folding(folder: Path) -> PixelDecoder:
    """A decoder whose patch covers 2 x 2 cells of the latent."""
    return make(folder, kind="student", settings=PiDSettings(BACKBONE, AdapterSettings(scale=1, width=8, blocks=1)))


def test_grids_that_the_patch_does_not_fit_are_padded_and_cropped(tmp_path: Path):
    decoder = folding(tmp_path)
    latent = latents(2, 3, 5)
    padded = torch.cat((latent, latent[..., -1:]), 3)
    padded = torch.cat((padded, padded[..., -1:, :]), 2)
    whole = decoder.decode(padded, output="pt")
    assert whole.shape == (2, 3, 32, 48)
    assert torch.equal(decoder.decode(latent, output="pt"), whole[..., :24, :40])
    assert [step.x0.shape[2:] for step in decoder.stream(latent)] == [(24, 40)] * 4
    assert decoder.decode(latent, size=(48, 80))[0].size == (80, 48)
    decoder.config = InferenceConfig(tile=32)
    assert decoder.decode(latents(1, 5, 9))[0].size == (72, 40)


def trained_on(decoder: PixelDecoder, sizes: Sizes | None) -> PixelDecoder:
    """The same decoder of a model that was trained on these sizes."""
    return PixelDecoder(dataclasses.replace(decoder.model, sizes=sizes), decoder.captions)


def limited(decoder: PixelDecoder, monkeypatch: pytest.MonkeyPatch) -> PixelDecoder:
    """Trained on squares of 64, and no larger ones."""
    monkeypatch.setattr("pixdec.inference.sizes.TILE", 64)
    return trained_on(decoder, Sizes(64 * 64, 64 * 64, 1.0))


def test_tiles_of_a_trained_size_give_no_warning(student: PixelDecoder, monkeypatch: pytest.MonkeyPatch):
    decoder, seen = limited(student, monkeypatch), []
    decoder.network.backbone.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[2:])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoder.decode(latents(1, 2, 2))[0].size == (64, 64)
        assert decoder.decode(latents(1, 4, 3), steps=1)[0].size == (96, 128)
    assert set(seen) == {(64, 64)}
    with pytest.warns(UserWarning, match=r"^32x64 .* is outside what small was trained on"):
        decoder.decode(latents(1, 2, 1), steps=1)
    decoder.config = InferenceConfig(tile=32)
    with pytest.warns(UserWarning, match=r"^in tiles: 32x32 .* is outside what small was trained on"):
        decoder.decode(latents(1, 2, 2), steps=1)


def test_a_teacher_takes_the_noise_levels_of_what_it_sees_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    teacher = limited(make(tmp_path, kind="teacher"), monkeypatch)

    def levels(latent: torch.Tensor) -> list[float]:
        return [step.t for step in teacher.stream(latent, steps=2)]

    assert levels(latents(1, 4, 4)) == levels(latents(1, 2, 2))
    teacher = trained_on(teacher, None)
    assert levels(latents(1, 4, 4)) != levels(latents(1, 2, 2))


def test_import_costs_no_torch():
    import subprocess
    import sys

    code = "import sys, pixdec; assert 'torch' not in sys.modules; pixdec.PixelDecoder; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
