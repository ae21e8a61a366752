"""`VisionEncoder` on small random models of transformers, against what the models themselves compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from vision_tiny import (
    dinov2,
    dinov2_config,
    images,
    mean_and_variance,
    siglip,
    siglip_config,
    statistics,
    whole_siglip,
)

from pixdec.integrations.vision import VisionEncoder
from pixdec.latents import Statistics

IMAGENET_MEAN, IMAGENET_STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)


def encoder(space: str) -> VisionEncoder:
    return VisionEncoder("dinov2", dinov2(), statistics()) if space == "dinov2" else VisionEncoder("siglip", siglip())


def test_preprocessing_is_that_of_the_models_processors():
    from transformers import image_utils

    from pixdec.integrations.vision.preprocessing import recipe_of

    assert list(recipe_of("dinov2").mean) == image_utils.IMAGENET_DEFAULT_MEAN
    assert list(recipe_of("dinov2").std) == image_utils.IMAGENET_DEFAULT_STD
    assert list(recipe_of("siglip").mean) == image_utils.IMAGENET_STANDARD_MEAN
    assert list(recipe_of("siglip").std) == image_utils.IMAGENET_STANDARD_STD


@torch.no_grad()
def test_dinov2_is_the_models_own_output_without_affine_normalised():
    pictures = images(2, 512)
    model = copy.deepcopy(dinov2())
    model.layernorm = nn.LayerNorm(768, eps=1e-6, elementwise_affine=False)
    small = F.interpolate((pictures + 1) / 2, (448, 448), mode="bicubic", align_corners=False)
    tokens = model((small - IMAGENET_MEAN) / IMAGENET_STD).last_hidden_state
    assert tokens.shape == (2, 1 + 4 + 32 * 32, 768)
    mean, variance = mean_and_variance()
    raw = tokens[:, 5:].reshape(2, 32, 32, 768).permute(0, 3, 1, 2)
    latent = encoder("dinov2").encode(pictures)
    assert latent.space.name == "dinov2"
    assert latent.sigma.tolist() == [0.0, 0.0]
    assert latent.tensor.shape == (2, 768, 32, 32)
    torch.testing.assert_close(latent.tensor, (raw - mean) / (variance + 1e-5).sqrt(), atol=1e-4, rtol=1e-4)
    assert (dinov2().layernorm.weight - 1).abs().max() > 0.1  # the model itself keeps the affine part it came with


@torch.no_grad()
def test_siglip_is_read_before_post_layernorm():
    pictures = images(2, 256)
    small = F.interpolate((pictures + 1) / 2, (224, 224), mode="bicubic", align_corners=False, antialias=True)
    before: list[Any] = []
    tower = getattr(siglip(), "vision_model", siglip())  # older transformers wrap it once more
    hook = tower.post_layernorm.register_forward_pre_hook(lambda _, given: before.append(given[0]))
    after = siglip()((small - 0.5) / 0.5).last_hidden_state
    hook.remove()
    tokens = F.layer_norm(before[0], (1152,), eps=1e-6)
    latent = encoder("siglip").encode(pictures)
    assert latent.tensor.shape == (2, 1152, 16, 16)
    torch.testing.assert_close(latent.tensor.flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-4)
    assert (after - tokens).abs().mean() > 0.05


@pytest.mark.parametrize("space", ["dinov2", "siglip"])
def test_tokens_lie_where_their_patches_do(space: str):
    side = 448 if space == "dinov2" else 224
    grey = torch.zeros(1, 3, side, side)
    spot = grey.clone()
    spot[:, :, 14 * 3 : 14 * 4, 14 * 9 : 14 * 10] = 1
    change = (encoder(space).encode(spot).tensor - encoder(space).encode(grey).tensor).square().sum(1)[0]
    assert divmod(int(change.argmax()), change.shape[1]) == (3, 9)


@pytest.mark.parametrize(("space", "nominal"), [("dinov2", 512), ("siglip", 256)])
def test_pil_images_and_batches(space: str, nominal: int):
    tensor = images(2, nominal)
    eight_bit = ((tensor + 1) * 127.5).round().to(torch.uint8)
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in eight_bit]
    made = encoder(space)
    together = made.encode(pictures).tensor
    torch.testing.assert_close(together, made.encode(eight_bit / 127.5 - 1).tensor, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[1:], made.encode(pictures[1]).tensor, atol=1e-4, rtol=1e-4)


def test_large_images_are_first_reduced_to_the_nominal_size():
    made, large = encoder("siglip"), images(1, 768)
    as_trained = F.interpolate(large, (256, 256), mode="bicubic", align_corners=False, antialias=True)
    expected = made.encode(as_trained).tensor
    torch.testing.assert_close(made.encode(large).tensor, expected, atol=1e-4, rtol=1e-4)
    small = images(1, 512)[:, :, 2:66, 2:66]  # and pictures of several sizes make one batch
    pictures = [Image.fromarray(((p[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()) for p in (large, small)]
    assert made.encode(pictures).tensor.shape == (2, 1152, 16, 16)


def test_bfloat16_models_give_nearly_the_same():
    pictures = images(1, 224)
    rough = VisionEncoder("siglip", copy.deepcopy(siglip()).to(torch.bfloat16)).encode(pictures).tensor
    assert rough.dtype == torch.float32
    exact = encoder("siglip").encode(pictures).tensor
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 3, 256, 192), r"192x256 pixels: siglip latents stand for squares of 256x256.*ImageOps.fit"),
        (Image.new("RGB", (300, 200)), r"300x200 pixels"),
        (torch.zeros(3, 224, 224), r"shape \(3, 224, 224\): expected \(B, 3, H, H\)"),
        (torch.zeros(1, 1, 224, 224), r"shape \(1, 1, 224, 224\)"),
        (torch.zeros(1, 3, 224, 224, dtype=torch.uint8), r"torch.uint8: expected floating point in \[-1, 1\]"),
        (Image.new("L", (224, 224)), r"mode L; expected RGB"),
        ([], r"no images"),
    ],
    ids=["not-square", "pil-not-square", "no-batch", "grey", "integers", "pil-grey", "none"],
)
def test_images_that_do_not_fit(given: Any, message: str):
    refused(lambda: encoder("siglip").encode(given), message)


@pytest.mark.parametrize(
    ("space", "build", "message"),
    [
        ("dinov2", lambda: dinov2_config(hidden_size=384), "tokens have 384 channels, dinov2 latents 768"),
        ("dinov2", lambda: dinov2_config(num_register_tokens=0), "has no register tokens"),
        ("dinov2", lambda: dinov2_config(patch_size=16), "patches of 16 pixels, dinov2 of 14"),
        ("siglip", lambda: siglip_config(hidden_size=768), "tokens have 768 channels, siglip latents 1152"),
        ("siglip", lambda: siglip_config(patch_size=16), "patches of 16 pixels"),
        ("siglip", lambda: siglip_config(image_size=378), "a grid of 27x27; siglip latents have 16x16"),
        ("siglip", dinov2_config, "model of type dinov2_with_registers: siglip latents come from SigLIP-2"),
        ("dinov2", siglip_config, "model of type siglip_vision_model: dinov2 latents come from RAE on DINOv2-B with"),
    ],
    ids=["width", "registers", "patch", "siglip-width", "siglip-patch", "siglip-grid", "exchanged", "exchanged-back"],
)
def test_models_of_another_kind(space: str, build: Callable[[], Any], message: str):
    # On the meta device: only the configuration is looked at.
    config = build()
    kind = "SiglipVisionModel" if config.model_type.startswith("siglip") else "Dinov2WithRegistersModel"
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    refused(lambda: VisionEncoder(space, model, statistics() if space == "dinov2" else None), message)


def test_a_dinov2_without_registers():
    config = transformers.Dinov2Config(hidden_size=768, num_hidden_layers=1, num_attention_heads=12, patch_size=14)
    with torch.device("meta"):
        model = transformers.Dinov2Model(config)
    refused(lambda: VisionEncoder("dinov2", model, statistics()), "type dinov2: .*type dinov2_with_registers")


def test_statistics_that_do_not_fit():
    short = Statistics.from_variance(torch.zeros(768, 16, 16), torch.ones(768, 16, 16), eps=1e-5)
    message = r"shape \(768, 16, 16\): expected \(768, 32, 32\)"
    refused(lambda: VisionEncoder("dinov2", dinov2(), short), message)
    refused(lambda: VisionEncoder("dinov2", dinov2()), r"normalised by the statistics of the RAE.*read_statistics")
    refused(lambda: VisionEncoder.from_pretrained("dinov2"), r"normalised by the statistics of the RAE")
    refused(lambda: VisionEncoder("siglip", siglip(), statistics()), "without statistics")
    plain = Statistics.from_variance(torch.zeros(768, 32, 32), torch.ones(768, 32, 32), eps=1e-5)
    refused(lambda: VisionEncoder("dinov2", dinov2(), plain).encode(images(1, 448)), "looks raw")
    refused(lambda: VisionEncoder("flux1", siglip()), "flux1 latents do not come from a vision encoder")


def test_from_a_folder(tmp_path: Path):
    pictures = images(1, 224)
    siglip().save_pretrained(tmp_path / "vision")
    whole_siglip().save_pretrained(tmp_path / "whole")
    loaded = VisionEncoder.from_pretrained("siglip", tmp_path / "vision")
    torch.testing.assert_close(loaded.encode(pictures).tensor, encoder("siglip").encode(pictures).tensor)
    whole = VisionEncoder.from_pretrained("siglip", tmp_path / "whole", dtype=torch.float32)
    expected = VisionEncoder("siglip", whole_siglip()).encode(pictures).tensor
    torch.testing.assert_close(whole.encode(pictures).tensor, expected)
    assert (expected - encoder("siglip").encode(pictures).tensor).abs().mean() > 0.01


def test_dinov2_from_a_folder_and_folders_that_do_not_serve(tmp_path: Path):
    dinov2().save_pretrained(tmp_path)
    loaded = VisionEncoder.from_pretrained("dinov2", tmp_path, statistics=statistics())
    ours, theirs = loaded.model.state_dict(), dinov2().state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    refused(lambda: VisionEncoder.from_pretrained("siglip", tmp_path), r"type dinov2_with_registers: siglip latents")
    refused(lambda: VisionEncoder.from_pretrained("siglip", tmp_path / "none"), "cannot load an encoder of siglip")
    file = tmp_path / "model.safetensors"
    kept = {key: tensor for key, tensor in load_file(file).items() if "register" not in key}
    save_file(kept, file, {"format": "pt"})
    refused(
        lambda: VisionEncoder.from_pretrained("dinov2", tmp_path, statistics=statistics()),
        r"1 of the encoder's weights are missing, embeddings.register_tokens",
    )


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_importing_costs_no_transformers():
    import subprocess
    import sys

    code = "import sys, pixdec.integrations.vision; assert not {'transformers', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
