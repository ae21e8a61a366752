"""Every family's real pipeline: what is captured is what the pipeline itself holds, and what its VAE would be given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import ALL, BY_NAME, FAMILIES, HEIGHT, PIXART, PROMPT, STEPS, STOP, WIDTH, Case, denoiser, noise, picture
from exact import preserving, preserving_level, stand_in

from pixdec.encoder import ImageEncoder
from pixdec.integrations.diffusers import capture
from pixdec.io.images import to_tensor
from pixdec.latents import Statistics, get_space


@dataclass
class Recording:
    """A full run that nobody stopped: the latents after each step, seen by a person's callback, and the schedule."""

    latents: list[torch.Tensor]
    sigmas: torch.Tensor


def recorded(pipe: Any, case: Case, **changes: Any) -> Recording:
    seen: list[torch.Tensor] = []

    def callback(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return {}

    pipe(**case.run_arguments(output_type="latent", callback_on_step_end=callback, **changes))
    return Recording(seen, pipe.scheduler.sigmas)


def unpacked_by_pipeline(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """By the pipeline's own code: (B, C, h, w), FLUX.2's with 128 channels."""
    if hasattr(pipe, "_unpack_latents_with_ids"):
        grid = torch.empty(latents.shape[0], 1, HEIGHT // 16, WIDTH // 16)
        return pipe._unpack_latents_with_ids(latents, pipe._prepare_latent_ids(grid))
    if hasattr(pipe, "_unpack_latents"):
        return pipe._unpack_latents(latents, HEIGHT, WIDTH, 8).reshape(latents.shape[0], -1, HEIGHT // 8, WIDTH // 8)
    return latents


@pytest.mark.parametrize("case", ALL, ids=str)
def test_latents_and_sigma_are_the_pipelines_own(case: Case):
    pipe = case.build()
    full = recorded(pipe, case)
    assert len(full.latents) == STEPS - case.start
    stops = [case.start + 1, STOP, None]
    captured = capture(pipe, stop_after=stops, **case.run_arguments())
    for stop, latent in zip(stops, captured, strict=True):
        done = STEPS if stop is None else stop
        held = unpacked_by_pipeline(pipe, full.latents[done - case.start - 1])
        sigma = float(full.sigmas[done])
        if case.space == "sdxl":  # the Euler scheduler holds z + sigma·noise
            assert torch.allclose(latent.tensor, preserving(held, sigma), rtol=1e-6)
            sigma = preserving_level(sigma)
        else:
            assert torch.equal(latent.tensor, held)
        assert latent.sigma.tolist() == pytest.approx([sigma], rel=1e-6)
        assert latent.space == get_space(case.space)
    assert not torch.equal(captured[0].tensor, captured[1].tensor)
    assert captured[2].sigma == 0


@pytest.mark.parametrize("case", [*ALL, PIXART], ids=str)
def test_no_call_is_made_after_the_stop(case: Case):
    pipe = case.build()
    calls: list[int] = []
    hook = denoiser(pipe).register_forward_hook(lambda *_: calls.append(1))
    try:
        alone = capture(pipe, stop_after=STOP, **case.run_arguments())
        assert len(calls) == STOP - case.start
        several = capture(pipe, stop_after=[None, STOP], **case.run_arguments())
        assert len(calls) == STOP - case.start + STEPS - case.start
    finally:
        hook.remove()
    assert torch.equal(alone.tensor, several[1].tensor)
    assert torch.equal(alone.sigma, several[1].sigma)


@pytest.mark.parametrize("case", [*ALL, PIXART], ids=str)
def test_denormalised_it_is_what_the_pipeline_gives_its_vae(case: Case, monkeypatch: pytest.MonkeyPatch):
    pipe = case.build()
    given: list[torch.Tensor] = []
    decode = pipe.vae.decode

    def recording(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(latents)
        return decode(latents, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "decode", recording)
        pipe(**case.run_arguments(output_type="pt"))
    latent = capture(pipe, **case.run_arguments())
    statistics = Statistics.from_vae(pipe.vae) if case.space == "flux2" else None
    raw = latent.space.denormalize(latent.tensor, statistics)
    if case.name == "sd3-inpaint":  # encodes with the shift and, unlike SD3's other pipelines, forgets it in decoding
        raw = raw - pipe.vae.config.shift_factor
    assert torch.allclose(raw, given[0].reshape(raw.shape), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_run_that_ends_at_an_image_ends_at_the_latent_that_its_vae_encodes(
    case: Case, monkeypatch: pytest.MonkeyPatch
):
    """The model of a distribution that is one image: velocity (x − z)/sigma, with z brought in as the pipeline does."""
    pipe = case.build()
    image = to_tensor(picture())
    target = as_pipeline_encodes(pipe, case, image)
    # At sigma 0, which the loop of an older Z-Image reaches, there is nothing left to move.
    stand_in(monkeypatch, pipe, case, lambda x, sigma: (x - target) / torch.as_tensor(sigma).clamp_min(1e-6))
    latent = capture(pipe, **case.run_arguments())
    encoded = ImageEncoder(latent.space, pipe.vae, "the pipeline's VAE").encode(image)
    assert encoded.tensor.std() > 0.01
    assert torch.allclose(latent.tensor, encoded.tensor, atol=2e-4, rtol=1e-3)


def as_pipeline_encodes(pipe: Any, case: Case, image: torch.Tensor) -> torch.Tensor:
    """An image → what the pipeline's loop would hold for it, by diffusers' own formulas."""
    vae, config = pipe.vae, pipe.vae.config
    with torch.no_grad():
        if case.space == "flux2":
            return pipe._pack_latents(pipe._encode_vae_image(image, torch.Generator()))
        if case.space == "qwen-image":
            raw = vae.encode(image.unsqueeze(2)).latent_dist.mode()
            mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
            latents = (raw - mean) / std
            return pipe._pack_latents(latents, 1, 16, *latents.shape[-2:])
        raw = vae.encode(image).latent_dist.mode()
    latents = (raw - (config.shift_factor or 0)) * config.scaling_factor
    return pipe._pack_latents(latents, 1, 16, *latents.shape[-2:]) if case.space == "flux1" else latents


def test_a_pipeline_without_callbacks_is_watched_in_its_scheduler():
    pipe = PIXART.build()
    seen: list[torch.Tensor] = []
    pipe(**PIXART.run_arguments(output_type="latent", callback=lambda _i, _t, x: seen.append(x), callback_steps=1))
    sigma = float(pipe.scheduler.sigmas[STOP])
    latent = capture(pipe, stop_after=STOP, **PIXART.run_arguments())
    assert torch.equal(latent.tensor, seen[STOP - 1])
    assert float(latent.sigma) == pytest.approx(preserving_level(sigma))


def test_sdxl_base_and_refiner_share_a_schedule():
    """`denoising_end` is the pipeline's own stop, read off as any other place; `denoising_start` a later beginning."""
    case = BY_NAME["sdxl"]
    pipe, refiner = case.build(), BY_NAME["sdxl-img2img"].build()
    full = recorded(pipe, case)
    share = 0.6  # time step 400 of 1000: behind the third of six
    latent = capture(pipe, **case.run_arguments(denoising_end=share))
    assert torch.allclose(latent.tensor, preserving(full.latents[2], full.sigmas[3]), rtol=1e-5)
    assert float(latent.sigma) == pytest.approx(preserving_level(full.sigmas[3]))
    with pytest.raises(ValueError, match=r"denoising_end=0.6 and stop_after=4"):
        capture(pipe, stop_after=4, **case.run_arguments(denoising_end=share))

    half_done = pipe(**case.run_arguments(denoising_end=share, output_type="latent")).images
    arguments = {"prompt": PROMPT, "guidance_scale": 1.0, "num_inference_steps": STEPS, "denoising_start": share}
    calls: list[int] = []
    hook = refiner.unet.register_forward_hook(lambda *_: calls.append(1))
    refined = capture(refiner, stop_after=5, image=half_done, **arguments)
    hook.remove()
    assert len(calls) == 2
    assert float(refined.sigma) == pytest.approx(preserving_level(full.sigmas[5]))
    with pytest.raises(ValueError, match=r"stop_after=3: nothing is left.*begins after step 3 of 6.*ask for 4 to 6"):
        capture(refiner, stop_after=3, image=half_done, **arguments)


def test_batches_keep_their_order():
    case = BY_NAME["flux"]
    pipe = case.build()
    arguments = {
        "prompt": ["a red fox", "blue boat"],
        "num_images_per_prompt": 2,
        "generator": [torch.Generator().manual_seed(5) for _ in range(4)],
    }
    latent = capture(pipe, stop_after=STOP, **case.run_arguments(**arguments))
    assert latent.tensor.shape[0] == 4
    assert latent.sigma.shape == (4,)
    first, second, third, _ = latent.tensor
    assert torch.equal(first, second)
    assert not torch.allclose(first, third, atol=1e-3)


def test_a_pipeline_without_a_vae_needs_its_space_named():
    case = BY_NAME["flux"]
    whole, bare = case.build(), case.build()
    bare.vae = None
    with pytest.raises(ValueError, match=r"no pipe\.vae.*space='flux1'"):
        capture(bare, stop_after=STOP, **case.run_arguments())
    latent = capture(bare, stop_after=STOP, space="flux1", **case.run_arguments())
    assert torch.equal(latent.tensor, capture(whole, stop_after=STOP, **case.run_arguments()).tensor)


def test_true_guidance_and_user_latents():
    """Two calls a step, and a noise of one's own."""
    case = BY_NAME["qwen-image"]
    pipe = case.build()
    changes = {
        "true_cfg_scale": 3.0,
        "negative_prompt_embeds": noise(1, 6, 32, seed=8),
        "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
        "latents": noise(1, 24, 64, seed=9),
    }
    full = recorded(pipe, case, **changes)
    calls: list[int] = []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    latent = capture(pipe, stop_after=STOP, **case.run_arguments(**changes))
    hook.remove()
    assert len(calls) == 2 * STOP
    assert torch.equal(latent.tensor, unpacked_by_pipeline(pipe, full.latents[STOP - 1]))


def test_lora_stays_on():
    peft = pytest.importorskip("peft", reason="diffusers loads LoRA through peft")
    case = BY_NAME["sd3"]
    pipe = case.build()
    plain = capture(pipe, stop_after=STOP, **case.run_arguments())
    pipe.transformer.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name="test"
    )
    try:
        full = recorded(pipe, case)
        tuned = capture(pipe, stop_after=STOP, **case.run_arguments())
        assert torch.equal(tuned.tensor, full.latents[STOP - 1])
        assert not torch.allclose(tuned.tensor, plain.tensor, atol=1e-4)
    finally:
        pipe.transformer.delete_adapters(["test"])
