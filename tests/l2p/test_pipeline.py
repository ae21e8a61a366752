"""Sampling against the original's, image to image, and what a call of the pipeline takes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from l2p_reference import byte_image, distance, facts, model, needs_reference, tensors, text, unit
from PIL import Image
from small import TEXT, diffusers, saved

from pixdec.cli import main
from pixdec.io.tensors import to_pil, to_tensor
from pixdec.l2p import PixelModel, PixelPipeline, load_model, open_weights, save_weights, transplant
from pixdec.l2p.pixel_pipeline import large_linears
from pixdec.sampling.flow import shifted_times
from pixdec.text.words import SCHEME


def embed(prompts, device):
    return [unit(each, 3 + len(each) % 5, TEXT) for each in prompts]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixel")
    made, _ = transplant(open_weights(saved(folder / "transformer", dim=128, axes_dims=[16, 24, 24])), 16)
    save_weights(made, folder / "small.safetensors")
    return folder / "small.safetensors"


@pytest.fixture
def pipe(small: Path) -> PixelPipeline:
    weights = open_weights(small)
    return PixelPipeline(load_model(weights), embed, weights)


@needs_reference
def test_noise_levels():
    for name in tensors() if needs_reference else ():
        if name.startswith("grid."):
            steps, strength, shift = (float(part.lstrip("abcdefghijklmnopqrstuvwxyz")) for part in name[5:].split("_"))
            assert distance(torch.tensor(shifted_times(int(steps), shift, strength)[:-1]), name) < 1e-6


@needs_reference
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("sample.p16", {}),
        ("sample.p16.no_guidance", {"guidance_scale": 1.0}),
        ("sample.p16.seed", {"noise": None}),
        ("sample.p16.strength", {"strength": 0.6}),
        ("sample.p64", {"guidance_scale": 4.0}),
    ],
)
def test_sampling(name: str, changed: dict):
    patch, (height, width) = (64, (128, 192)) if "p64" in name else (16, (64, 128))
    states = []
    arguments = {
        "prompt_embeds": [text(7)],
        "negative_prompt_embeds": [unit("tiny/negative", 5, facts()["config"]["cap_feat_dim"])],
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "height": height,
        "width": width,
        "noise": unit(f"tiny/noise/{height}x{width}", 1, 3, height, width),
        "generator": torch.Generator().manual_seed(42),
        "callback_on_step_end": lambda pipe, step, t, given: states.append((t, given["latents"])),
        **({"image": byte_image("tiny/photo/64x128", 64, 128)} if "strength" in changed else {}),
        **changed,
    }
    images = PixelPipeline(model(patch), embed)(**arguments).images
    assert distance(states[-1][1], name) < 1e-5
    if name == "sample.p16":
        assert distance(torch.cat([x for _, x in states]), f"{name}.trajectory") < 1e-5
        assert distance(torch.tensor([t for t, _ in states]), f"{name}.sigmas") < 1e-6
        made = ((to_tensor(images[0]) + 1) * 127.5).round()[0].permute(1, 2, 0)
        assert float((made - tensors()[f"{name}.bytes"].float()).abs().max()) <= 1
    if name == "sample.p16.strength":
        assert distance(torch.tensor([t for t, _ in states]), f"{name}.sigmas") < 1e-6


def test_a_prompt_is_the_same_alone_and_in_a_batch(pipe: PixelPipeline):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    settings = {"num_inference_steps": 2, "height": 48, "width": 80, "output_type": "pt"}
    both = pipe(["a fox", "a lighthouse"], generator=generators(1, 2), **settings).images
    alone = pipe("a lighthouse", generator=generators(2), **settings).images
    assert float((both[1:] - alone).abs().max()) < 1e-4
    assert pipe(["a"], num_images_per_prompt=2, **settings).images.shape == (2, 3, 48, 80)
    early = pipe("a", generator=generators(1), stop_after=1, **settings).images
    assert not torch.equal(early, pipe("a", generator=generators(1), **settings).images)


def test_bands_and_offloading_change_nothing(pipe: PixelPipeline, monkeypatch):
    settings = {"prompt": "a fox", "num_inference_steps": 1, "height": 256, "width": 32, "output_type": "pt"}
    whole = pipe(**settings, generator=torch.Generator().manual_seed(0)).images
    monkeypatch.setattr("pixdec.l2p.pixel_pipeline.BAND_PIXELS", 32 * 32)
    pipe.enable_model_cpu_offload("cpu")
    assert float((pipe(**settings, generator=torch.Generator().manual_seed(0)).images - whole).abs().max()) < 1e-5


def test_eight_bits_spare_head_and_norms_and_leave_no_bands(small: Path):
    pytest.importorskip("torchao")
    weights = open_weights(small)
    chosen = set(large_linears(PixelModel(weights.settings)))
    assert chosen
    assert all(".attention." in name or ".feed_forward." in name for name in chosen)
    plain = PixelPipeline(load_model(weights), embed)
    rounded = PixelPipeline.from_pretrained(small, device="cpu", quantize="int8-weights")
    rounded.embed = embed
    assert rounded.model.dtype == torch.float32
    ramp = torch.linspace(-1, 1, 128).expand(1, 3, 64, 128)
    settings = {"prompt": "a", "num_inference_steps": 2, "height": 64, "width": 128, "guidance_scale": 1.0}
    settings |= {"image": ramp, "strength": 0.1, "output_type": "pt"}
    one, other = (p(**settings, generator=torch.Generator().manual_seed(0)).images for p in (plain, rounded))
    assert 0 < float((one - other).norm() / one.norm()) < 0.02
    levels = [len((each * 255).round().unique()) for each in (one, other)]  # banding would leave fewer
    assert levels[1] > 0.9 * levels[0]


def test_a_lora_of_the_source_changes_the_weights_it_names(pipe: PixelPipeline, tmp_path: Path):
    peft = pytest.importorskip("peft")
    source = diffusers.ZImageTransformer2DModel(**{k: v for k, v in pipe.model.settings.config.items() if k[0] != "_"})
    source.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    diffusers.ZImagePipeline.save_lora_weights(tmp_path, peft.get_peft_model_state_dict(source))
    name = "layers.1.attention.to_q"
    layer = source.get_submodule(name)
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    before = pipe.model.transformer.get_submodule(name).weight.clone()
    pipe.load_lora_weights(tmp_path / "pytorch_lora_weights.safetensors", strength=0.5)
    after = pipe.model.transformer.get_submodule(name).weight
    assert torch.allclose(after - before, 0.5 * change, atol=1e-5)
    assert not [key for key in pipe.model.state_dict() if "lora" in key]
    with pytest.raises(ValueError, match=r"small.safetensors: no LoRA"):
        pipe.load_lora_weights(tmp_path / "small.safetensors")


def test_saved_and_loaded(pipe: PixelPipeline, tmp_path: Path):
    pipe.save_pretrained(tmp_path)
    again = PixelPipeline.from_pretrained(tmp_path, device="cpu", text_encoder="nowhere/at-all")
    assert all(map(torch.equal, again.model.state_dict().values(), pipe.model.state_dict().values()))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"height": 40}, "multiples of 16"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"stop_after": 9}, "stop_after=9"),
        ({"strength": 0.5}, "without an image"),
        ({"output_type": "tiff"}, "tiff"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"prompt_embeds": [torch.zeros(1, TEXT)]}, "one of them"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, told: str, pipe: PixelPipeline):
    with pytest.raises(ValueError, match=told):
        pipe(**{"prompt": "a", "num_inference_steps": 2, "height": 32, "width": 32, **wrong})


def test_generate_on_the_command_line_goes_on_where_it_ended(small: Path, tmp_path: Path, monkeypatch, capsys):
    def load(cls, *_, **__):
        weights = open_weights(small)
        return cls(load_model(weights), embed, weights)

    monkeypatch.setattr(PixelPipeline, "from_pretrained", classmethod(load))
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red fox\na lighthouse\n")
    arguments = ["l2p", "generate", "--model", str(small), "--prompts", str(prompts), "-o", str(out), "--steps", "2"]
    arguments += ["--height", "32", "--width", "48", "--json"]
    assert main(arguments) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["width"], each["height"]) for each in first] == [(48, 32)] * 2
    assert first[0]["settings"]["prompt"] == "a red fox"
    before = Path(first[1]["output"]).read_bytes()
    Path(first[1]["output"]).unlink()
    assert main(arguments) == 0
    assert [("skipped" in json.loads(line)) for line in capsys.readouterr().out.splitlines()] == [True, False]
    assert Path(first[1]["output"]).read_bytes() == before
    assert main([*arguments, "--guidance", "3"]) == 2
    assert "guidance" in capsys.readouterr().err
    begun = tmp_path / "photo.png"
    to_pil(torch.zeros(1, 3, 40, 40))[0].save(begun)
    one = ["l2p", "generate", "--model", str(small), "--prompt", "a", "-o", str(tmp_path / "one.png"), "--steps", "2"]
    assert main([*one, "--height", "32", "--width", "32", "--image", str(begun), "--strength", "0.4"]) == 0
    assert Image.open(tmp_path / "one.png").size == (32, 32)


def test_a_small_model_of_known_words_needs_no_pipeline(tmp_path: Path):
    weights = open_weights(saved(tmp_path / "transformer", cap_feat_dim=16))
    made, _ = transplant(weights, 16, narrow=8)
    made = replace(made, repository=f"{SCHEME}a red circle", settings=replace(made.settings, side=32))
    save_weights(made, tmp_path / "words.safetensors")
    pipe = PixelPipeline.from_pretrained(tmp_path / "words.safetensors", device="cpu")
    assert pipe.model.local_decoder.bottleneck[0].out_channels == 64
    image = pipe("A red, red circle.", num_inference_steps=1).images[0]
    assert image.size == (32, 32)
    with pytest.raises(ValueError, match="'blue'; its words are a red circle"):
        pipe("a blue circle", num_inference_steps=1)
    one, other = pipe.embed(["red circle", "circle"], torch.device("cpu"))
    assert torch.equal(one[2], other[1])
    assert one.shape == (3, 16)
