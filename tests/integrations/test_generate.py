"""`generate` and `attach`: what a pipeline's user gets, decoded by us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import ALL, BY_NAME, FAMILIES, HEIGHT, PROMPT, STOP, WIDTH, Case, denoiser, half_mask
from PIL import Image

from pixdec.decoder import PixelDecoder
from pixdec.integrations.diffusers import attach, capture, generate
from pixdec.latents import Latent, get_space

DecoderOf = Callable[[str], PixelDecoder]


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_attached_and_generated_images_are_the_decoded_latent(case: Case, decoder_of: DecoderOf):
    pipe, decoder = case.build(), decoder_of(case.space)
    calls: list[int] = []
    hook = denoiser(pipe).register_forward_hook(lambda *_: calls.append(1))
    images = generate(pipe, decoder, stop_after=STOP, decoder_steps=1, decoder_seed=7, **case.run_arguments())
    with decoder.attach(pipe, stop_after=STOP, steps=1, seed=7):
        attached = pipe(**case.run_arguments()).images
    hook.remove()
    assert len(calls) == 2 * STOP
    latent = capture(pipe, stop_after=STOP, **case.run_arguments())
    caption = PROMPT if decoder.model.needs_text and "prompt" in case.arguments() else ""
    expected = decoder.decode(latent, caption, seed=7, steps=1)
    for made in (images, attached):
        assert [image.size for image in made] == [(4 * WIDTH, 4 * HEIGHT)]
        assert np.array_equal(np.asarray(made[0]), np.asarray(expected[0]))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_attaching_leaves_no_trace(case: Case, decoder_of: DecoderOf):
    pipe, decoder = case.build(), decoder_of(case.space)
    before = pipe(**case.run_arguments(output_type="pt")).images
    marks = traces(pipe)
    attachment = attach(pipe, decoder, stop_after=STOP, decoder_steps=1)
    assert isinstance(pipe, case.build().__class__)
    larger = pipe(**case.run_arguments(output_type="pt")).images
    assert larger.shape[-2:] == (4 * before.shape[-2], 4 * before.shape[-1])
    attachment.detach()
    attachment.detach()
    assert traces(pipe) == marks
    assert torch.equal(pipe(**case.run_arguments(output_type="pt")).images, before)


def traces(pipe: Any) -> list[tuple[type, list[str], list[str]]]:
    """Class, attributes, and which of them are functions, of the pipeline and all its parts."""
    return [
        (type(part), sorted(vars(part)), [name for name, value in vars(part).items() if callable(value)])
        for part in (pipe, *(part for _, part in sorted(pipe.components.items()) if hasattr(part, "__dict__")))
    ]


def test_output_types(decoder_of: DecoderOf):
    case, decoder = BY_NAME["sdxl"], decoder_of("sdxl")
    pipe = case.build()

    def made(**changes: Any) -> Any:
        return generate(pipe, decoder, stop_after=STOP, decoder_steps=1, **case.run_arguments(**changes))

    tensor = made(output_type="pt")
    assert tensor.shape == (1, 3, 4 * HEIGHT, 4 * WIDTH)
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    array = made(output_type="np")
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    (image,) = made()
    assert isinstance(image, Image.Image)
    assert np.abs(np.asarray(image) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6
    latent = made(output_type="latent")
    assert isinstance(latent, Latent)
    assert torch.equal(latent.tensor, capture(pipe, stop_after=STOP, **case.run_arguments()).tensor)
    assert torch.equal(made(output_type="pt", return_dict=True).images, tensor)
    assert torch.equal(made(output_type="pt", return_dict=False)[0], tensor)
    with pytest.raises(ValueError, match=r"output_type='jpg': expected one of 'pil', 'np', 'pt', 'latent'"):
        made(output_type="jpg")
    for name in ("output_type", "return_dict"):
        with pytest.raises(ValueError, match=f"{name}=.*leave it out"):
            capture(pipe, **case.run_arguments(**{name: "pil"}))


def test_several_stops(decoder_of: DecoderOf):
    case, decoder = BY_NAME["sd3"], decoder_of("sd3")
    pipe = case.build()
    several = generate(
        pipe, decoder, stop_after=[3, STOP, None], decoder_steps=1, **case.run_arguments(output_type="pt")
    )
    assert len(several) == 3
    alone = generate(pipe, decoder, stop_after=STOP, decoder_steps=1, **case.run_arguments(output_type="pt"))
    assert torch.equal(several[1], alone)
    assert not torch.equal(several[0], alone)


def test_captions_go_with_their_images(decoder_of: DecoderOf):
    case, decoder = BY_NAME["flux"], decoder_of("flux1")
    pipe = case.build()
    asked = decoder.captions.asked  # type: ignore[union-attr]
    arguments = {"prompt": ["a red fox", "blue boat"], "num_images_per_prompt": 2, "output_type": "pt"}
    images = generate(pipe, decoder, stop_after=STOP, decoder_steps=1, **case.run_arguments(**arguments))
    assert images.shape[0] == 4
    assert asked[-1] == ["a red fox", "a red fox", "blue boat", "blue boat"]
    generate(pipe, decoder, decoder_prompt="a boat", decoder_steps=1, **case.run_arguments(**arguments))
    assert asked[-1] == ["a boat"] * 4
    embedded = BY_NAME["flux-img2img"]
    generate(embedded.build(), decoder, decoder_steps=1, **embedded.run_arguments())
    assert asked[-1] == [""]


def test_z_image_is_given_a_list_of_its_own(decoder_of: DecoderOf):
    """It writes its chat template into the list of prompts; captions and the person's list stay as they are."""
    case, decoder = BY_NAME["z-image"], decoder_of("z-image")
    prompts = ["a red fox"]
    generate(case.build(), decoder, stop_after=STOP, decoder_steps=1, **case.run_arguments(prompt=prompts))
    assert prompts == ["a red fox"]
    assert decoder.captions.asked[-1] == ["a red fox"]  # type: ignore[union-attr]


def test_a_decoder_of_another_space_is_refused_before_anything_runs(decoder_of: DecoderOf):
    case = BY_NAME["sdxl"]
    pipe = case.build()
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    for call in (generate, attach):
        arguments = case.run_arguments() if call is generate else {}
        with pytest.raises(ValueError, match=r"latents of sdxl, and small-sd3 decodes sd3; take a decoder of sdxl"):
            call(pipe, decoder_of("sd3"), **arguments)
    hook.remove()
    assert not calls


def test_attached_calls_are_the_pipelines_own(decoder_of: DecoderOf):
    """Arguments by position, tuples, and latents, which are those at the stop."""
    case, decoder = BY_NAME["flux"], decoder_of("flux1")
    pipe = case.build()
    arguments = case.run_arguments()
    prompt = arguments.pop("prompt")
    with attach(pipe, decoder, stop_after=STOP, decoder_steps=1):
        latents = pipe(**case.run_arguments(output_type="latent")).images
        by_position = pipe(prompt, **arguments).images[0]
        (by_tuple,) = pipe(**case.run_arguments(return_dict=False))
        assert np.array_equal(np.asarray(by_position), np.asarray(by_tuple[0]))
        assert decoder.captions.asked[-1] == [PROMPT]  # type: ignore[union-attr]
        held = capture(pipe, stop_after=STOP, **case.run_arguments())  # by hand, while attached
        assert torch.equal(get_space("flux1").unpack(latents, HEIGHT // 8, WIDTH // 8), held.tensor)
        assert np.array_equal(np.asarray(decoder.decode(held, PROMPT, steps=1)[0]), np.asarray(by_position))
        with pytest.raises(ValueError, match="attached already; detach that first"):
            attach(pipe, decoder)
    assert type(pipe).__name__ == "FluxPipeline"
    with pytest.raises(ValueError, match=r"stop_after=\[3, 4\]: an attached pipeline returns one set"):
        attach(pipe, decoder, stop_after=[3, 4])  # type: ignore[arg-type]


def test_arguments_that_a_pipeline_only_takes_as_extra_ones_arrive(decoder_of: DecoderOf):
    """SDXL's callback of old is one of its `**kwargs`."""
    case = BY_NAME["sdxl"]
    pipe = case.build()
    seen: list[int] = []
    with attach(pipe, decoder_of("sdxl"), stop_after=STOP, decoder_steps=1):
        pipe(**case.run_arguments(callback=lambda step, _timestep, _latents: seen.append(step), callback_steps=1))
    assert seen == list(range(STOP))


def test_a_pipeline_that_is_attached_is_still_saved_under_its_name(tmp_path: Any, decoder_of: DecoderOf):
    import json

    pipe = BY_NAME["flux2-klein"].build()
    with attach(pipe, decoder_of("flux2")):
        pipe.scheduler.save_pretrained(tmp_path)
        pipe.save_config(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "Flux2KleinPipeline"


def test_detaches_after_an_error(decoder_of: DecoderOf):
    case = BY_NAME["sd3"]
    pipe = case.build()
    marks = traces(pipe)

    def fails(*_: Any) -> Any:
        raise KeyError("the person's own mistake")

    with pytest.raises(KeyError, match="own mistake"), attach(pipe, decoder_of("sd3")):
        pipe(**case.run_arguments(callback_on_step_end=fails))
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    assert [mark[2] for mark in traces(pipe)] == [mark[2] for mark in marks]


def test_what_needs_the_vaes_image_is_refused(decoder_of: DecoderOf):
    case = BY_NAME["sdxl-inpaint"]
    pipe = case.build()
    with pytest.raises(ValueError, match="padding_mask_crop pastes"):
        generate(pipe, decoder_of("sdxl"), **case.run_arguments(padding_mask_crop=8, mask_image=half_mask()))
    pipe.safety_checker = object()
    with pytest.raises(ValueError, match="safety_checker"):
        generate(pipe, decoder_of("sdxl"), **case.run_arguments())


def test_sdxl_marks_its_images(decoder_of: DecoderOf):
    """The library for watermarks need not be there, so one that paints a corner white."""

    class Corner:
        def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
            images = images.clone()
            images[..., :2, :2] = 1
            return images

    case, decoder = BY_NAME["sdxl"], decoder_of("sdxl")
    pipe = case.build()
    plain = generate(pipe, decoder, decoder_steps=1, **case.run_arguments(output_type="pt"))
    pipe.watermark = Corner()
    marked = generate(pipe, decoder, decoder_steps=1, **case.run_arguments(output_type="pt"))
    assert (marked[..., :2, :2] == 1).all()
    assert torch.allclose(marked[..., 2:, 2:], plain[..., 2:, 2:], atol=1e-6)
    assert generate(pipe, decoder, decoder_steps=1, **case.run_arguments())[0].getpixel((0, 0)) == (255, 255, 255)
