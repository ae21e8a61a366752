"""`decoder.as_vae()`, and decoders of `rgb`, which enlarge what a pipeline's own VAE decodes, in six families."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from cases import BY_NAME, FAMILIES, HEIGHT, PIXART, STOP, WIDTH, Case, denoiser
from torch.nn import functional

from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder, first_decode
from pixdec.integrations.diffusers import DecoderVAE, attach, capture, generate
from pixdec.io.tensors import to_pil
from pixdec.latents import Latent, get_space

DecoderOf = Callable[[str], PixelDecoder]


class Enlarger:
    """A decoder of `rgb` that shows what it was given: every pixel four times larger, and darker by its sigma."""

    space, device = get_space("rgb"), torch.device("cpu")
    model = SimpleNamespace(name="enlarger", needs_text=False)

    def decode(self, latent: Latent, prompt: str = "", *, output: str = "pil", **_: Any) -> Any:
        assert latent.space is self.space
        large = functional.interpolate(latent.tensor, scale_factor=4.0) - latent.sigma.view(-1, 1, 1, 1)
        return to_pil(large) if output == "pil" else (large.clamp(-1, 1) + 1) / 2


@pytest.fixture(scope="module")
def enlarger() -> Any:
    return Enlarger()


def same(one: Any, other: Any) -> bool:
    """Images of one size, at most a rounding to 8 bits apart."""
    first, second = (np.asarray(image).astype(int) for image in (one, other))
    return first.shape == second.shape and int(np.abs(first - second).max()) <= 1


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_script_changes_by_one_line(case: Case, decoder_of: DecoderOf):
    pipe, decoder = case.build(), decoder_of(case.space)
    expected = generate(pipe, decoder, decoder_seed=7, decoder_prompt="", **case.run_arguments())
    pipe.vae = decoder.as_vae(seed=7)
    (image,) = pipe(**case.run_arguments()).images
    assert image.size == (4 * WIDTH, 4 * HEIGHT)
    assert same(image, expected[0])


def test_pipelines_that_encode_need_their_vae(decoder_of: DecoderOf):
    case, decoder = BY_NAME["flux-img2img"], decoder_of("flux1")
    pipe = case.build()
    expected = generate(pipe, decoder, **case.run_arguments())
    own = pipe.vae
    pipe.vae = decoder.as_vae()
    with pytest.raises(ValueError, match=r"only decodes; .*as_vae\(pipe\.vae\)"):
        pipe(**case.run_arguments())
    pipe.vae = decoder.as_vae(own)
    assert same(pipe(**case.run_arguments()).images[0], expected[0])
    with pytest.raises(ValueError, match="a VAE of sdxl, and small-flux1 decodes flux1"):
        decoder.as_vae(tiny.vae_sdxl())


@pytest.mark.parametrize("case", [*FAMILIES, PIXART], ids=str)
def test_a_decoder_of_images_enlarges_what_the_vae_decodes(case: Case, enlarger: Any):
    """To the end of the run the pipeline's own image is what is enlarged, by whichever of the four ways."""
    pipe = case.build()
    own = pipe(**case.run_arguments(output_type="pt")).images
    image = 2 * own - 1
    low = capture(pipe, space="rgb", **case.run_arguments())
    assert (low.space.name, low.sigma.tolist()) == ("rgb", [0.0])
    assert torch.allclose(low.tensor.clamp(-1, 1), image, atol=1e-4)
    expected = enlarger.decode(low)[0]
    assert same(generate(pipe, enlarger, **case.run_arguments())[0], expected)
    with attach(pipe, enlarger):
        assert same(pipe(**case.run_arguments()).images[0], expected)
    pipe.vae = DecoderVAE(enlarger, pipe.vae)
    assert same(pipe(**case.run_arguments()).images[0], expected)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_the_bundled_decoder_serves_every_family(case: Case):
    pipe, decoder = case.build(), PixelDecoder.from_pretrained(device="cpu")
    assert decoder.space.is_image
    (image,) = generate(pipe, decoder, stop_after=STOP, decoder_steps=1, **case.run_arguments())
    assert image.size == (4 * WIDTH, 4 * HEIGHT)
    with decoder.attach(pipe, stop_after=STOP, steps=1):
        assert same(pipe(**case.run_arguments()).images[0], image)
    pipe.vae = decoder.as_vae(pipe.vae, steps=1)
    assert pipe(**case.run_arguments()).images[0].size == (4 * WIDTH, 4 * HEIGHT)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_at_an_early_stop_it_is_the_generators_own_estimate(case: Case, enlarger: Any):
    pipe = case.build()
    calls: list[int] = []
    hook = denoiser(pipe).register_forward_hook(lambda *_: calls.append(1))
    low, noisy = (capture(pipe, stop_after=STOP, space=space, **case.run_arguments()) for space in ("rgb", None))
    image = generate(pipe, enlarger, stop_after=STOP, **case.run_arguments())[0]
    with attach(pipe, enlarger, stop_after=STOP):
        attached = pipe(**case.run_arguments()).images[0]
    hook.remove()
    assert len(calls) == 4 * STOP
    assert torch.equal(low.sigma, noisy.sigma)
    assert float(low.sigma) > 0
    direct = first_decode(noisy, pipe.vae)
    assert low.tensor.shape == direct.tensor.shape
    assert not torch.allclose(low.tensor, direct.tensor, atol=1e-3)  # the noise is gone
    assert same(image, enlarger.decode(low)[0])
    assert same(attached, image)


def test_first_decode_says_what_to_give(enlarger: Any):
    latent = Latent(torch.randn(1, 16, 4, 4), "flux1")
    with pytest.raises(ValueError, match=r"a latent of flux1.*give the generator's.*AutoencoderKL or TAE"):
        first_decode(latent)
    with pytest.raises(ValueError, match="enlarger enlarges the image that the pipeline's own VAE decodes"):
        DecoderVAE(enlarger)


def test_first_decode_by_a_tae_and_by_the_bundled_autoencoder():
    import diffusers

    torch.manual_seed(0)
    tae = diffusers.AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )
    image = first_decode(Latent(torch.randn(1, 16, 4, 6), "flux1", 0.3), tae)
    assert (image.space.name, tuple(image.tensor.shape)) == ("rgb", (1, 3, 32, 48))
    assert image.sigma.tolist() == pytest.approx([0.3])
    picture = torch.rand(1, 3, 32, 32) * 0.2
    encoder = ImageEncoder.from_pretrained()
    latent = encoder.encode(picture)
    assert torch.allclose(first_decode(latent, "pixdec-tiny").tensor, encoder.decode(latent.tensor).float(), atol=1e-3)


def test_a_half_precision_vae_that_overflows_is_run_in_float32():
    vae = copy.deepcopy(tiny.vae_sdxl())
    latent = Latent(torch.randn(1, 4, 8, 8), "sdxl")
    expected = first_decode(latent, vae).tensor
    vae.half()
    assert vae.config.force_upcast
    assert torch.allclose(first_decode(latent, vae).tensor, expected, atol=0.02)
    assert vae.dtype == torch.float16
