"""The methods themselves: names, and that they compute what they say, on the same inputs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixdec.bench.beside import prepare_beside
from pixdec.bench.names import RANDOM, Beside, parse_beside
from pixdec.bench.ours import prepare_ours, released
from pixdec.bench.roofline import copy_rate, count, product_rate
from pixdec.bench.settings import BenchSettings, Job, job_of
from pixdec.models.cost import decode_cost, meta_network

CPU = torch.device("cpu")


def job(side: int, **changes: Any) -> Job:
    return replace(job_of(BenchSettings(device="cpu"), "eager", side), dtype="float32", **changes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vae:flux1", Beside("flux1", "whole", None, None)),
        ("vae:flux2:tiled", Beside("flux2", "tiled", None, None)),
        ("vae:sdxl:sliced+lanczos", Beside("sdxl", "sliced", "lanczos", None)),
        ("tiny+real-esrgan", Beside("tiny", "whole", "real-esrgan", None)),
        ("tiny+upscaler:a+b/c:d", Beside("tiny", "whole", "upscaler", "a+b/c:d")),
        ("lanczos", Beside(None, "whole", "lanczos", None)),
    ],
)
def test_names(name: str, expected: Beside) -> None:
    assert parse_beside(name) == expected


@pytest.mark.parametrize(
    "name",
    ["", "vae", "vae:", "vae:flux9", "vae:flux2:quick", "vae:flux2:tiled:sliced", "tinier", "tiny+", "lanczos:4",
     "upscaler", "spandrel:", "spandrel:no-such-file.pth", "vae:flux2+bilinear", "tiny:tiled"],
)  # fmt: skip
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=r"^--beside "):
        parse_beside(name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sides": (100,)}, "--sides 100: expected multiples of 64"),
        ({"sides": ()}, "--sides"),
        ({"sides": (64, 64)}, "--sides 64: named twice"),
        ({"beside": ("tiny", "tiny")}, "--beside tiny: named twice"),
        ({"ours": ("quick",)}, "--ours quick"),
        ({"runs": 0}, "--runs 0"),
        ({"warmup": 0}, "--warmup 0"),
        ({"steps": 0}, "--steps 0"),
        ({"limit": 0.0}, "--limit 0"),
        ({"ours": (), "beside": ()}, "nothing to measure"),
    ],
)
def test_settings_of_nothing(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        BenchSettings(**changes)


@pytest.fixture(scope="module")
def nano() -> torch.Tensor:
    method, _ = prepare_ours("eager", job(64), CPU)
    return method.call()


def test_plain_gives_the_image_of_decode(nano: torch.Tensor) -> None:
    method, decoder = prepare_ours("plain", job(64), CPU)
    assert nano.shape == (1, 3, 64, 64) and decoder.model.name == "pixdec-nano"
    plain = method.call()
    assert plain.dtype == torch.float32 and not plain.requires_grad
    assert float((plain - nano).abs().max()) < 2e-3  # four steps of a network whose sums are ordered otherwise
    assert float(nano.std()) > 0.01


def test_batches_and_steps(nano: torch.Tensor) -> None:
    two, _ = prepare_ours("eager", job(64, batch=2, steps=1), CPU)
    plain, _ = prepare_ours("plain", job(64, batch=2, steps=1), CPU)
    images = two.call()
    assert images.shape == (2, 3, 64, 64)
    assert float((images - plain.call()).abs().max()) < 2e-3
    assert not torch.allclose(images[:1], nano, atol=1e-3)


def test_plain_in_bfloat16_keeps_float32_weights() -> None:
    """Autocast: another image than in float32, but not far; its weights stay what they are."""
    method, decoder = prepare_ours("plain", replace(job(64, steps=1), dtype="bfloat16"), CPU)
    exact, _ = prepare_ours("plain", job(64, steps=1), CPU)
    assert decoder.dtype == torch.float32
    error = float((method.call() - exact.call()).abs().max())
    assert 1e-5 < error < 0.2


def test_the_released_size_with_random_weights() -> None:
    """The parameters of the released checkpoint (v1, FLUX.1: specification §8)."""
    v1, v15 = (sum(p.numel() for p in meta_network(released(name)).parameters()) for name in RANDOM)
    assert v1 == 1_362_348_170
    assert v15 > v1


@pytest.mark.parametrize(
    "name", ["vae:flux1", "vae:sdxl", "vae:flux2:sliced", "vae:flux2+lanczos", "tiny", "tiny+lanczos", "lanczos"]
)
def test_baselines_give_the_same_size(name: str) -> None:
    method = prepare_beside(parse_beside(name), job(64), CPU)
    images = method.call()
    assert images.shape == (1, 3, 64, 64) and images.dtype == torch.float32
    assert float(images.min()) >= 0 and float(images.max()) <= 1 and float(images.std()) > 0
    assert bool(method.networks) == (name != "lanczos")
    if name != "lanczos":
        assert method.inputs[0].shape[-1] == (2 if "+" in name else 8)


def test_tiles_are_in_use() -> None:
    method = prepare_beside(parse_beside("vae:flux2:tiled"), job(64), CPU)
    assert method.networks[0].use_tiling is True


def test_a_row_group_has_one_precision() -> None:
    method = prepare_beside(parse_beside("vae:flux2"), replace(job(64), dtype="bfloat16"), CPU)
    assert {p.dtype for p in method.networks[0].parameters()} == {torch.bfloat16}
    assert method.inputs[0].dtype == torch.bfloat16
    assert method.call().dtype == torch.float32


def test_sizes_that_a_method_does_not_give() -> None:
    with pytest.raises(ValueError, match="--sides 72"):
        prepare_beside(parse_beside("tiny+lanczos"), job(72), CPU)
    with pytest.raises(ValueError, match="--sides 96"):
        prepare_ours("eager", job(96), CPU)


def test_counted_is_what_runs() -> None:
    """A decode is its condition and four calls; in tiles, the calls of all tiles."""
    _, decoder = prepare_ours("eager", job(128), CPU)
    settings = decoder.network.settings
    condition, call = decode_cost(settings, 128, 128, dtype=torch.float32)
    whole = count(decoder, job(128), plain=False)
    assert whole is not None and whole.flops == condition.flops + 4 * call.flops > 0
    plain = count(decoder, job(128), plain=True)
    # It makes the condition in every step; the rest differs by what is shared between steps.
    assert plain is not None and plain.flops == pytest.approx(4 * (condition.flops + call.flops), rel=0.05)
    assert plain.flops > whole.flops
    decoder.tile = 64
    tiled, part = count(decoder, job(128), plain=False), decode_cost(settings, 64, 64, dtype=torch.float32)[1]
    assert tiled is not None and tiled.flops == condition.flops + 4 * 9 * part.flops  # three tiles a side
    one = count(decoder, job(128, steps=1), plain=False)
    assert one is not None and one.flops < tiled.flops


def test_peaks_are_those_of_a_known_product() -> None:
    """A product of known size, timed by hand, is never quicker than the rate found says by more than noise."""
    side = 512
    rate = product_rate(CPU, torch.float32, side)
    a = torch.randn(side, side)
    started = time.perf_counter()
    for _ in range(20):
        a @ a
    by_hand = 20 * 2 * side**3 / (time.perf_counter() - started)
    assert 0.2 * by_hand < rate < 50 * by_hand
    assert 1e8 < copy_rate(CPU, 10**7) < 1e13


def test_a_folder_of_a_pipeline(tmp_path: Path) -> None:
    """diffusers' x4 upscaler, tiny and random, from a folder."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path / "upscaler"
    tiny_upscaler(diffusers, folder)
    method = prepare_beside(parse_beside(f"upscaler:{folder}"), job(64), CPU)
    assert method.call().shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="diffusers cannot load it"):
        prepare_beside(parse_beside(f"upscaler:{tmp_path / 'nothing'}"), job(64), CPU)


def tiny_upscaler(diffusers: Any, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=8, projection_dim=16)
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, in_channels=7, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, num_class_embeds=1000,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4,
    )  # fmt: skip
    diffusers.StableDiffusionUpscalePipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, low_res_scheduler=diffusers.DDPMScheduler(),
        scheduler=diffusers.DDIMScheduler(), safety_checker=None,
    ).save_pretrained(folder)  # fmt: skip
