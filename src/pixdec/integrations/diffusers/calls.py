"""`capture` and `generate`: one run of a pipeline, stopped where asked, and its latent decoded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from pixdec.encoder import first_decode
from pixdec.integrations.diffusers.denoising import Held, Loop, watched
from pixdec.integrations.diffusers.noise import check_scheduler, mixture_after
from pixdec.integrations.diffusers.spaces import check_one_image, normalized, space_of
from pixdec.integrations.diffusers.stand_in import DecoderOptions, own_vae
from pixdec.integrations.stops import Stop, check_stops
from pixdec.latents import Latent, get_space

if TYPE_CHECKING:
    from torch import Tensor

    from pixdec.decoder import PixelDecoder
    from pixdec.latents import LatentSpace

_OUTPUTS = ("pil", "np", "pt", "latent")


@overload
def capture(
    pipe: Any,
    *,
    stop_after: Sequence[Stop],
    space: str | None = None,
    **pipeline_arguments: Any,
) -> list[Latent]: ...


@overload
def capture(
    pipe: Any,
    *,
    stop_after: Stop = None,
    space: str | None = None,
    **pipeline_arguments: Any,
) -> Latent: ...


def capture(
    pipe: Any,
    *,
    stop_after: Stop | Sequence[Stop] = None,
    space: str | None = None,
    **pipeline_arguments: Any,
) -> Latent | list[Latent]:
    """Runs a diffusers pipeline up to `stop_after` and returns the latent it holds there, without any VAE decode.

    pipe: any diffusers pipeline that denoises images in a latent space known here, from text or images, inpainting,
        with ControlNet or LoRA: its own code runs.
    stop_after: the number of steps to make of the full schedule of `num_inference_steps`: the transformer is not called
        again after it. Image-to-image counts alike: with strength=0.6, 24 of 28 runs from step 12 to 24. None runs to
        the end; "auto" picks a step (`stops.automatic`). A list of these gives a list of latents from one run.
    space: names the latent space of a pipeline that has no VAE, or one that does not tell. "rgb" gives the image that
        the pipeline's own VAE makes of the latent, for a decoder of images: at an early stop, of the clean latent that
        its model's last prediction amounts to.
    pipeline_arguments: as for the pipeline itself, `prompt` included.

    The `Latent` (B,C,h,w) is normalised, in the pipeline's dtype and on its device; its sigma is the noise level that
    the scheduler states for this place of its schedule, converted to the frame of the space, so 0 at the end of most.
    If the pipeline's own callback interrupts it, every later stop is the latent held then, with that noise level.

    Raises ValueError in one line: an unknown space, scheduler or kind of latent, a video pipeline, a VAE with other
    constants, a stop that the run does not have, NaN in the latent.
    """
    for name in ("output_type", "return_dict"):
        if name in pipeline_arguments:
            raise ValueError(f"{name}={pipeline_arguments[name]!r}: capture always returns a Latent; leave it out")
    stops = check_stops(stop_after)
    as_image = space is not None and get_space(space).is_image
    with own_vae(pipe):
        own = space_of(pipe, None if as_image else space)
        latents, _ = _run(pipe, stops, own, pipeline_arguments, as_image=as_image)
    return latents if isinstance(stop_after, list | tuple) else latents[0]


def generate(
    pipe: Any,
    decoder: PixelDecoder,
    *,
    stop_after: Stop | Sequence[Stop] = None,
    space: str | None = None,
    decoder_prompt: str | Sequence[str] | None = None,
    decoder_steps: int | None = None,
    decoder_seed: int | Sequence[int] = 0,
    **pipeline_arguments: Any,
) -> Any:
    """Runs a diffusers pipeline up to `stop_after` and decodes what it holds: 4x larger images, and no VAE, but for a
    decoder of `rgb`, which enlarges what the pipeline's own VAE decodes.

    stop_after, space, pipeline_arguments: see `capture`. The pipeline's `output_type` says what comes back: "pil" (the
        default) a list of images, "np" (B,H,W,3) or "pt" (B,3,H,W) in [0,1], "latent" the `Latent`, not decoded. A list
        of stops gives a list of these. With `return_dict` in the arguments they come as the pipeline itself would wrap
        them: True in its output object, False in a tuple.
    decoder_prompt, decoder_steps, decoder_seed: for the decoder. Its captions are the pipeline's prompts, each repeated
        for its images, unless `decoder_prompt` is given; decoders without text get none.

    Raises ValueError as `capture` does, and before anything runs if the decoder is of another space.
    """
    stops, arguments = check_stops(stop_after), dict(pipeline_arguments)
    wrapped, output_type = arguments.pop("return_dict", None), arguments.pop("output_type", "pil")
    if output_type not in _OUTPUTS:
        raise ValueError(f"output_type={output_type!r}: expected one of {', '.join(map(repr, _OUTPUTS))}")
    prompt = arguments.get("prompt")
    if isinstance(prompt, list):  # Z-Image writes its chat template into the list it is given
        prompt = cast("list[str]", prompt)
        arguments["prompt"] = list(prompt)

    def decoded(latent: Latent) -> Any:
        captions = decoder_prompt
        if captions is None:
            captions = prompts_for(prompt, latent.tensor.shape[0]) if decoder.model.needs_text else ""
        return _decode(pipe, decoder, latent, DecoderOptions(captions, decoder_steps, decoder_seed), output_type)

    with own_vae(pipe):
        own = shared_space(pipe, decoder, space)
        check_nothing_skipped(pipe, arguments)
        latents, output = _run(pipe, stops, own, arguments, as_image=decoder.space.is_image)
        images = latents if output_type == "latent" else [decoded(latent) for latent in latents]
    result = images if isinstance(stop_after, list | tuple) else images[0]
    if wrapped is None:
        return result
    return _with_images(output, result) if wrapped else (result,)


def shared_space(pipe: Any, decoder: PixelDecoder, named: str | None) -> LatentSpace:
    """The space of a pipeline whose latents the decoder takes, or the images of whose VAE; ValueError for any other."""
    space = space_of(pipe, named)
    if decoder.space.is_image and getattr(pipe, "vae", None) is None:
        raise ValueError(
            f"{type(pipe).__name__} has no VAE that decodes its latents of {space.name} to an image for "
            f"{decoder.model.name}; set pipe.vae to one of diffusers, a tiny one (TAE) will do"
        )
    if not (decoder.space.is_image or decoder.space.holds_latents_of(space)):
        raise ValueError(
            f"{type(pipe).__name__} makes latents of {space.name}, and {decoder.model.name} decodes "
            f"{decoder.space.name}; take a decoder of {space.name}, see `pixdec models`"
        )
    return space


def _with_images(output: Any, images: Any) -> Any:
    """A pipeline's output object with other images."""
    if not is_dataclass(output) or not hasattr(output, "images"):
        raise ValueError(f"a {type(output).__name__} has no images to replace; leave return_dict out")
    return replace(cast("Any", output), images=images)


def _run(
    pipe: Any, stops: list[Stop], space: LatentSpace, arguments: Mapping[str, Any], *, as_image: bool
) -> tuple[list[Latent], Any]:
    """One run: the latent at each stop, or its image by the pipeline's VAE; and what the pipeline returned."""
    check_one_image(pipe, arguments)
    check_scheduler(pipe.scheduler)
    if arguments.get("denoising_end") is not None and any(stop is not None for stop in stops):
        raise ValueError(
            f"denoising_end={arguments['denoising_end']} and stop_after={stops[0]} both end the run; leave one out"
        )
    loop = Loop(pipe.scheduler, space, stops, estimates=as_image)
    asked = {**arguments, "output_type": "latent"}
    if "return_dict" in inspect.signature(pipe.__call__).parameters:
        asked["return_dict"] = True
    with watched(pipe, loop, asked) as watched_arguments:
        output = pipe(**watched_arguments)
    held_at = loop.at_stops(interrupted=bool(getattr(pipe, "interrupt", False)))
    latents = [latent_at(loop, held, normalized(held.latents.detach(), space, held.size)) for held in held_at]
    if as_image:
        latents = [first_decode(latent, pipe.vae) for latent in latents]
    # SDXL's inpainting pipelines return latents before they offload; after the others this changes nothing.
    pipe.maybe_free_model_hooks()
    return latents, output


def latent_at(loop: Loop, held: Held, grid: Tensor) -> Latent:
    """What was held, unpacked to a grid (B,C,h,w) -> the latent in the frame of its space, or where that was asked for
    the clean one that the model's last prediction amounts to, at the noise level of what was held."""
    space, mixture = loop.space, mixture_after(loop.scheduler, held.entries)
    if held.estimate is not None and mixture.noise > 0:
        grid = normalized(held.estimate.detach(), space, held.size)
    else:
        grid = mixture.into(grid, space)
    # The VAE has shown that this is the space and the loop that it is normalised: statistics are not in question.
    return Latent(grid, space, mixture.sigma(space), statistics=False)


def _decode(pipe: Any, decoder: PixelDecoder, latent: Latent, options: DecoderOptions, output_type: str) -> Any:
    """The images of a latent, with the pipeline's watermark."""
    captions = "" if options.prompt is None else options.prompt
    how = {"seed": options.seed, "steps": options.steps}
    watermark = getattr(pipe, "watermark", None)
    if watermark is None:
        return decoder.decode(latent, captions, output=cast("Literal['pil']", output_type), **cast("Any", how))
    # SDXL marks its images unless the pipeline was made without; so are ours. It takes and gives [-1, 1].
    images: Tensor = decoder.decode(latent, captions, output="pt", **cast("Any", how))
    return pipe.image_processor.postprocess(watermark.apply_watermark(images * 2 - 1), output_type=output_type)


def prompts_for(prompt: str | list[str] | None, batch: int) -> str | list[str]:
    """One caption for each image: pipelines put the images of one prompt next to each other."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    if batch % len(prompt):
        raise ValueError(f"{len(prompt)} prompts for {batch} images; name the captions with decoder_prompt=[…]")
    return [caption for caption in prompt for _ in range(batch // len(prompt))]


def check_nothing_skipped(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse what a pipeline does with its VAE's image, which is never made."""
    if arguments.get("padding_mask_crop") is not None:
        raise ValueError(
            "padding_mask_crop pastes the result into the original, which is smaller than what the decoder makes; "
            "crop the image and its mask yourself, and leave it out"
        )
    if getattr(pipe, "safety_checker", None) is not None:
        raise ValueError(
            f"{type(pipe).__name__} checks its VAE's image with pipe.safety_checker, and that image is never made; "
            "check the decoded images yourself and set pipe.safety_checker = None"
        )
