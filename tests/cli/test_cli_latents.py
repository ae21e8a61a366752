"""pixdec encode and decode: images to latent files and back."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.inference.config import InferenceConfig
from pixdec.io.images import read_image, read_settings, to_tensor
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.nano import Nano, NanoSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.text import CaptionEmbeddings
from pixdec.weights.load import save_decoder

Run = Callable[..., Any]
Photo = Callable[..., Path]
Names = Callable[[Path], list[str]]
METADATA = {"pixdec": "latent", "space": "flux2", "sigma": "[0.0]"}


def latents(count: int = 1, height: int = 2, width: int = 3) -> Tensor:
    return 0.7 * torch.randn(count, 128, height, width, generator=torch.Generator().manual_seed(0))


def saved(path: Path, tensor: Tensor, sigma: float = 0.0, **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Latent(tensor, get_space("flux2"), sigma).save(path, settings or None)
    return path


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(read_image(path))


def reader(path: Path) -> Path:
    """A decoder that reads text, with small random weights."""
    backbone = PixDiTSettings(hidden=16, heads=2, depth=1, pixel_width=4, pixel_hidden=16, pixel_heads=2)
    adapter = AdapterSettings(latent_channels=128, latent_factor=16, width=8, blocks=1)
    torch.manual_seed(0)
    network = PiD(PiDSettings(backbone, adapter)).initialize()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_decoder(network, path, name="reads-text", space="flux2", version="v1", licence="Apache-2.0")
    return path


# ---- encode


def test_encode_writes_what_the_encoder_gives(run: Run, photo: Photo, tmp_path: Path) -> None:
    source, target = photo(tmp_path / "in.png", 48, 32), tmp_path / "z.safetensors"
    outcome = run("encode", source, "-o", target, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.records == [{"input": str(source), "output": str(target), "space": "flux2", "shape": [1, 128, 2, 3]}]
    latent = Latent.load(target)
    expected = ImageEncoder.from_pretrained().encode(to_tensor(read_image(source)))
    assert torch.equal(latent.tensor, expected.tensor.cpu())
    assert latent.sigma.tolist() == [0]


def test_encode_and_decode_folders(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "sub" / "b.jpg")
    assert run("encode", tmp_path / "in", "-o", tmp_path / "z").code == 0
    assert names(tmp_path / "z") == ["a.safetensors", "sub/b.safetensors"]
    outcome = run("decode", tmp_path / "z", "-o", tmp_path / "out", "--format", "jpg", "--steps", 1)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert names(tmp_path / "out") == ["a.jpg", "sub/b.jpg"]


def test_encode_refuses_sides_that_do_not_fit_and_goes_on(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    odd, bad = photo(tmp_path / "odd.png", 40, 32), tmp_path / "bad.png"
    run("encode", odd, "-o", tmp_path / "z.safetensors").refused("odd.png: 40x32", "multiples of 16", "pixdec upscale")
    bad.write_text("no image")
    outcome = run("encode", odd, bad, photo(tmp_path / "good.png"), "-o", tmp_path / "z")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 2
    assert names(tmp_path / "z") == ["good.safetensors"]


def test_encode_without_a_bundled_encoder_for_the_space(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    run("encode", photo(tmp_path / "in.png"), "-o", tmp_path / "z.safetensors", "--space", "sd3").refused("sd3")
    assert names(tmp_path) == ["in.png"]


def test_encode_to_a_full_disk(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    source = photo(tmp_path / "in.png", 64, 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        outcome = run("encode", source, "-o", tmp_path / "z.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    outcome.refused("cannot write", "z.safetensors")
    assert names(tmp_path) == ["in.png"]


# ---- decode


def test_decode_writes_what_the_decoder_gives(run: Run, tmp_path: Path) -> None:
    source = saved(tmp_path / "z.safetensors", latents(), sigma=0.5)
    outcome = run("decode", source, "-o", tmp_path / "out.png", "--seed", 4, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    expected: Image.Image = PixelDecoder.from_pretrained().decode(Latent.load(source), seed=4)[0]
    assert np.array_equal(np.asarray(read_image(tmp_path / "out.png")), np.asarray(expected))
    (record,) = outcome.records
    assert (record["width"], record["height"]) == (192, 128)
    assert read_settings(tmp_path / "out.png") == record["settings"]
    expected_settings = {
        "verb": "decode",
        "model": "pixdec-nano",
        "space": "flux2",
        "sigma": 0.5,
        "seed": 4,
        "steps": 2,
    }
    assert record["settings"].items() >= expected_settings.items()


def test_decode_to_a_size_and_in_tiles(run: Run, tmp_path: Path) -> None:
    source, target = saved(tmp_path / "z.safetensors", latents()), tmp_path / "out.png"
    outcome = run("decode", source, "-o", target, "--size", "96x64", "--tile", 64, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    decoder = PixelDecoder.from_pretrained()
    decoder.config = InferenceConfig(tile=64)
    (expected,) = decoder.decode(Latent.load(source), size=(64, 96))
    assert np.array_equal(pixels(target), np.asarray(expected))
    (record,) = outcome.records
    assert (record["width"], record["height"]) == (96, 64)
    assert read_settings(target).items() >= {"width": 96, "height": 64, "tile": 64, "scale": 4}.items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "64x96"), ["--size 64x96", "z.safetensors", "192x128", "144x96 or 64x43"]),
        (("--size", "1024"), ["--size 1024", "WIDTHxHEIGHT"]),
        (("--size", "24000x16000"), ["24000x16000", "the limit is 16384 a side"]),
        (("--tile", 8), ["--tile 8", "at least 16"]),
        (("--memory", "30 MB"), ["z.safetensors: 192x128 does not fit in 0.03 GB", "allow more memory"]),
    ],
)
def test_sizes_and_tiles_that_cannot_be(
    run: Run, names: Names, tmp_path: Path, options: tuple[object, ...], words: list[str]
) -> None:
    source = saved(tmp_path / "z.safetensors", latents())
    run("decode", source, "-o", tmp_path / "out.png", *options).refused(*words)
    assert names(tmp_path) == ["z.safetensors"]


def test_the_plans_of_a_file_of_latents(run: Run, names: Names, tmp_path: Path) -> None:
    source = saved(tmp_path / "z.safetensors", latents(2))
    outcome = run("decode", source, "-o", tmp_path / "out" / "x.png", "--plan", "--memory", "2.5GiB", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    told = [(Path(record["output"]).name, record["plan"]) for record in outcome.records]
    assert [name for name, _ in told] == ["x-1.png", "x-2.png"]
    assert [(plan["width"], plan["height"], plan["limit"]) for _, plan in told] == [(192, 128, 2684354560)] * 2
    assert names(tmp_path) == ["z.safetensors"]
    assert not (tmp_path / "out").exists()


def test_more_steps_than_a_few_step_model_has_learnt_are_refused(run: Run, tmp_path: Path) -> None:
    source = saved(tmp_path / "z.safetensors", latents(1))
    run("decode", source, "-o", tmp_path / "x.png", "--steps", 6).refused("--steps 6: this decoder takes 1 to 2 steps")


def test_a_file_of_several_latents_gives_several_images(run: Run, names: Names, tmp_path: Path) -> None:
    source = saved(tmp_path / "z.safetensors", latents(2))
    assert run("decode", source, "-o", tmp_path / "out" / "x.png", "--steps", 1).code == 0
    assert names(tmp_path / "out") == ["x-1.png", "x-2.png"]
    one = saved(tmp_path / "one.safetensors", latents(2)[1:])
    assert run("decode", one, "-o", tmp_path / "one.png", "--steps", 1, "--seed", 1).code == 0
    second = np.asarray(read_image(tmp_path / "out" / "x-2.png"))
    assert np.array_equal(np.asarray(read_image(tmp_path / "one.png")), second)


def test_a_latents_own_seed_is_taken_unless_another_is_given(run: Run, tmp_path: Path) -> None:
    """And its prompt left, for this decoder reads no text."""
    told = saved(tmp_path / "told.safetensors", latents(2), prompt="a red fox", seed=6)
    silent = saved(tmp_path / "silent.safetensors", latents(2))

    def decoded(source: Path, *arguments: object) -> list[np.ndarray[Any, Any]]:
        assert run("decode", source, "-o", tmp_path / "x.png", "--steps", 2, *arguments).code == 0
        paths = [tmp_path / "x-1.png", tmp_path / "x-2.png"]
        assert [read_settings(path)["prompt"] for path in paths] == ["", ""]
        seeds.append([read_settings(path)["seed"] for path in paths])
        return [pixels(path) for path in paths]

    seeds: list[list[object]] = []
    own, given, unnamed, zero = decoded(told), decoded(silent, "--seed", 6), decoded(silent), decoded(told, "--seed", 0)
    assert seeds == [[6, 7], [6, 7], [0, 1], [0, 1]]
    assert np.array_equal(own, given)
    assert np.array_equal(unnamed, zero)
    assert not np.array_equal(own, zero)


def test_a_latents_own_prompt_is_taken_unless_another_is_given(
    run: Run, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXDEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment on import
    embeddings = CaptionEmbeddings()
    for seed, caption in enumerate(("a red fox", "snow", "")):
        embedding = torch.randn(300, 2304, generator=torch.Generator().manual_seed(seed)).bfloat16()
        embeddings.cache.store(embeddings.key(caption), embedding)
    for name, settings in (("fox", {"prompt": "a red fox"}), ("boat", {"prompt": "a boat"}), ("none", {})):
        saved(tmp_path / "z" / f"{name}.safetensors", latents(), **settings)
    model = ("--model", reader(tmp_path / "reads-text.safetensors"), "--steps", 1, "--device", "cpu")

    outcome = run("decode", tmp_path / "z", "-o", tmp_path / "own", *model)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "boat.safetensors" in outcome.err
    assert "'a boat' has no embedding" in outcome.err
    assert names(tmp_path / "own") == ["fox.png", "none.png"]
    assert [read_settings(tmp_path / "own" / f"{name}.png")["prompt"] for name in ("fox", "none")] == ["a red fox", ""]
    expected = PixelDecoder.from_pretrained(tmp_path / "reads-text.safetensors", device="cpu")
    (image,) = expected.decode(Latent.load(tmp_path / "z" / "fox.safetensors"), "a red fox", steps=1)
    assert np.array_equal(pixels(tmp_path / "own" / "fox.png"), np.asarray(image))

    assert run("decode", tmp_path / "z", "-o", tmp_path / "given", "--prompt", "snow", *model).code == 0
    assert not np.array_equal(pixels(tmp_path / "given" / "fox.png"), pixels(tmp_path / "own" / "fox.png"))
    assert run("decode", tmp_path / "z", "-o", tmp_path / "empty", "--prompt", "", *model).code == 0
    for folder, caption in (("given", "snow"), ("empty", "")):
        assert names(tmp_path / folder) == ["boat.png", "fox.png", "none.png"]
        assert {read_settings(path)["prompt"] for path in (tmp_path / folder).iterdir()} == {caption}
    assert np.array_equal(pixels(tmp_path / "empty" / "none.png"), pixels(tmp_path / "own" / "none.png"))


def test_all_prompts_are_embedded_at_one_loading(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXDEC_CACHE", str(tmp_path / "cache"))
    loads: list[list[str]] = []

    def load(*_: object, **__: object) -> Callable[[list[str]], Tensor]:
        loads.append([])

        def encode(captions: list[str]) -> Tensor:
            loads[-1] += captions
            return torch.zeros(len(captions), 300, 2304, dtype=torch.bfloat16)

        return encode

    monkeypatch.setattr("pixdec.text.CaptionEncoder.from_pretrained", load)
    for name in ("fox", "boat"):
        saved(tmp_path / "z" / f"{name}.safetensors", latents(), prompt=name)
    model = ("--model", reader(tmp_path / "reads-text.safetensors"), "--steps", 1, "--device", "cpu")
    assert run("decode", tmp_path / "z", "-o", tmp_path / "out", *model).code == 0
    assert loads == [["boat", "fox"]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": "7"}, ["its seed='7'", "--seed"]),
        ({"seed": True}, ["its seed=True", "--seed"]),
        ({"seed": 2**70}, ["its seed=1180591620717411303424", "--seed"]),
        ({"prompt": ["a", "b"]}, ["its prompt is ['a', 'b']", "--prompt"]),
    ],
)
def test_settings_of_a_wrong_kind_are_refused_unless_the_options_say(
    run: Run, names: Names, tmp_path: Path, settings: dict[str, object], words: list[str]
) -> None:
    source = saved(tmp_path / "z.safetensors", latents(), **settings)
    run("decode", source, "-o", tmp_path / "x.png").refused("z.safetensors", *words)
    assert names(tmp_path) == ["z.safetensors"]
    assert run("decode", source, "-o", tmp_path / "x.png", "--steps", 1, "--seed", 3, "--prompt", "").code == 0


def test_images_of_several_files_do_not_meet(run: Run, names: Names, tmp_path: Path) -> None:
    batch = saved(tmp_path / "z.safetensors", latents(2))
    other = saved(tmp_path / "z-1.safetensors", latents())
    run("decode", batch, other, "-o", tmp_path / "out").refused("z-1.png", "both", "would be written there")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".latent", ".pt", ".npy"])
def test_latents_of_other_programs_are_read_with_a_space(
    run: Run, names: Names, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, values = tmp_path / "in" / f"x{suffix}", latents(3)
    path.parent.mkdir()
    if suffix == ".latent":
        save_file({"latent_tensor": values, "latent_format_version_0": torch.tensor([])}, path)
    elif suffix == ".pt":
        torch.save(values, path)
    else:
        np.save(path, values.numpy())
    run("decode", path, "-o", tmp_path / "out").refused(f"x{suffix}", "names no space", "--space")
    opened = []
    load = Latent.load
    monkeypatch.setattr(Latent, "load", lambda *args, **kwargs: opened.append(args) or load(*args, **kwargs))
    assert run("decode", path.parent, "-o", tmp_path / "out", "--space", "flux2", "--steps", 1).code == 0
    assert names(tmp_path / "out") == ["x-1.png", "x-2.png", "x-3.png"]
    assert len(opened) == 2  # to plan, and to decode
    saved(tmp_path / "same.safetensors", values)
    run("decode", tmp_path / "same.safetensors", "-o", tmp_path / "same", "--steps", 1)
    for i in (1, 2, 3):
        one, same = (np.asarray(Image.open(tmp_path / name)) for name in (f"out/x-{i}.png", f"same/same-{i}.png"))
        assert np.array_equal(one, same)


def test_a_decoder_of_images_is_given_what_an_autoencoder_decodes(run: Run, tmp_path: Path) -> None:
    """By name, or by what encoded the latent; one of another space needs to be told."""
    nano = tmp_path / "nano.safetensors"
    facts: dict[str, Any] = {"space": "rgb", "version": "nano", "licence": "Apache-2.0", "times": (0.9, 0.0)}
    save_decoder(Nano(NanoSettings(width=8, blocks=1, detail=4, embedding=8)), nano, name="small-nano", **facts)
    latent = Latent(0.5 * latents(2), "flux2")
    latent.save(tmp_path / "silent.safetensors")
    latent.save(tmp_path / "told.safetensors", {"encoder": "pixdec-tiny"})
    assert run("decode", tmp_path / "told.safetensors", "-o", tmp_path / "b", "--model", nano).code == 0
    options = ("--vae", "pixdec-tiny", "--model", nano)
    assert run("decode", tmp_path / "silent.safetensors", "-o", tmp_path / "c", *options).code == 0
    Latent(torch.randn(1, 16, 4, 4), "flux1").save(tmp_path / "other.safetensors")
    run("decode", tmp_path / "other.safetensors", "-o", tmp_path / "d", "--model", nano).refused("--vae: a diffusers")
    rows, columns = latent.tensor.shape[2:]
    for one, other in ((tmp_path / f"b/told-{i}.png", tmp_path / f"c/silent-{i}.png") for i in (1, 2)):
        image = np.asarray(Image.open(one))
        assert image.shape == (64 * rows, 64 * columns, 3)
        assert np.array_equal(image, np.asarray(Image.open(other)))


def refused_latent(path: Path, kind: str) -> list[str]:
    """Write a latent that must be refused; the words of the refusal."""
    if kind == "missing":
        return ["there is no such file"]
    if kind == "truncated":
        data = saved(path, latents()).read_bytes()
        path.write_bytes(data[:-100])
        return ["cut short"]
    if kind == "text":
        path.write_text("this is no latent")
        return ["a text file that begins"]
    if kind == "nan":
        save_file({"latent": torch.full((1, 128, 2, 2), float("nan"))}, path, METADATA)
        return ["512 of its 512 values are NaN or infinite"]
    if kind == "unmarked":
        save_file({"latent": latents()}, path)
        return ["names no space", "--space"]
    if kind == "raw":
        save_file({"latent": 9 * latents(1, 8, 8)}, path, METADATA)
        return ["it looks raw"]
    if kind == "unpacked":
        save_file({"latent": torch.randn(1, 32, 8, 8)}, path, METADATA)
        return ["(1, 32, 8, 8)", "call"]
    assert kind == "other space"
    Latent(torch.randn(1, 16, 4, 4), get_space("sd3")).save(path)
    return ["sd3", "flux2"]


KINDS = ["missing", "truncated", "text", "nan", "unmarked", "raw", "unpacked", "other space"]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_latents(run: Run, names: Names, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "z.safetensors"
    words = refused_latent(path, kind)
    before = names(tmp_path)
    run("decode", path, "-o", tmp_path / "out.png").refused("z.safetensors", *words)
    assert names(tmp_path) == before


def test_a_wrong_latent_among_good_ones(run: Run, names: Names, tmp_path: Path) -> None:
    refused_latent(tmp_path / "b.safetensors", "nan")
    saved(tmp_path / "a.safetensors", latents())
    saved(tmp_path / "c.safetensors", latents())
    outcome = run("decode", *sorted(tmp_path.iterdir()), "-o", tmp_path / "out", "--steps", 1)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert names(tmp_path / "out") == ["a.png", "c.png"]


def test_trust_accepts_odd_statistics_but_no_nan(run: Run, tmp_path: Path) -> None:
    refused_latent(tmp_path / "raw.safetensors", "raw")
    refused_latent(tmp_path / "nan.safetensors", "nan")
    assert run("decode", tmp_path / "raw.safetensors", "-o", tmp_path / "out.png", "--trust", "--steps", 1).code == 0
    run("decode", tmp_path / "nan.safetensors", "-o", tmp_path / "out.png", "--trust").refused("NaN")


def test_decode_to_a_full_disk(run: Run, names: Names, tmp_path: Path) -> None:
    source = saved(tmp_path / "z.safetensors", latents())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        outcome = run("decode", source, "-o", tmp_path / "out.png", "--steps", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    outcome.refused("cannot write", "out.png")
    assert names(tmp_path) == ["z.safetensors"]
