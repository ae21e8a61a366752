"""Every pipeline under proof: the real class on small components, and the arguments of one run.

A case knows nothing about how latents are captured; what its pipeline holds is stated in the table of docs/latents.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import tiny
import torch
from PIL import Image
from tiny import HEIGHT, TEXT, WIDTH

STEPS, STOP = 6, 4
PROMPT = "a red fox in the snow"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    y, x = np.mgrid[:height, :width] / height
    return Image.fromarray(np.stack([x * 150, y * 255, 128 + 100 * np.sin(9 * x * y)], -1).astype(np.uint8))


def half_mask() -> Image.Image:
    """White, to be painted anew, on the right half."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :] = 255
    return Image.fromarray(mask)


@dataclass(frozen=True)
class Case:
    name: str
    space: str
    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]] = field(default=dict)
    start: int = 0  # the step that the run begins after: image-to-image with strength < 1

    def run_arguments(self, **changes: Any) -> dict[str, Any]:
        """Fresh each time: some pipelines write into what they are given."""
        common: dict[str, Any] = {
            "height": HEIGHT,
            "width": WIDTH,
            "num_inference_steps": STEPS,
            "generator": torch.Generator().manual_seed(1),
        }
        return {**common, **self.arguments(), **changes}

    def __str__(self) -> str:
        return self.name


def denoiser(pipe: Any) -> torch.nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def _text(width: int = TEXT) -> dict[str, Any]:
    return {"prompt_embeds": noise(1, 6, width, seed=2)}


def _pooled() -> dict[str, Any]:
    return {**_text(), "pooled_prompt_embeds": noise(1, TEXT, seed=3)}


# --- FLUX.1 ---------------------------------------------------------------------------------------------------------


def _flux1(kind: Any, transformer: Any = None, *, text: bool = False, **extra: Any) -> Callable[[], Any]:
    def build() -> Any:
        return kind(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=tiny.vae_flux1(),
            text_encoder=tiny.clip() if text else None,
            tokenizer=tiny.tokenizer(77) if text else None,
            text_encoder_2=tiny.t5() if text else None,
            tokenizer_2=tiny.tokenizer(16) if text else None,
            transformer=transformer() if transformer else tiny.flux1(),
            **{name: make() for name, make in extra.items()},
        )

    return build


def _image(**more: Any) -> dict[str, Any]:
    return {"image": picture(), "strength": 0.7, **more}


FLUX1 = [
    Case(
        "flux",
        "flux1",
        _flux1(diffusers.FluxPipeline, text=True),
        lambda: {"prompt": PROMPT, "max_sequence_length": 16},
    ),
    Case("flux-img2img", "flux1", _flux1(diffusers.FluxImg2ImgPipeline), lambda: {**_pooled(), **_image()}, start=1),
    Case(
        "flux-inpaint",
        "flux1",
        _flux1(diffusers.FluxInpaintPipeline),
        lambda: {**_pooled(), **_image(mask_image=half_mask())},
        start=1,
    ),
    Case(
        "flux-fill",
        "flux1",
        _flux1(diffusers.FluxFillPipeline, lambda: tiny.flux1(384)),
        lambda: {**_pooled(), "image": picture(), "mask_image": half_mask()},
    ),
    Case(
        "flux-kontext",
        "flux1",
        _flux1(diffusers.FluxKontextPipeline),
        lambda: {**_pooled(), "image": picture(), "max_area": HEIGHT * WIDTH, "_auto_resize": False},
    ),
    Case(
        "flux-controlnet",
        "flux1",
        _flux1(diffusers.FluxControlNetPipeline, controlnet=tiny.flux1_controlnet),
        lambda: {**_pooled(), "control_image": picture(), "control_guidance_end": 0.5},
    ),
    Case(
        "flux-controlnet-inpaint",
        "flux1",
        _flux1(diffusers.FluxControlNetInpaintPipeline, controlnet=tiny.flux1_controlnet),
        lambda: {**_pooled(), **_image(mask_image=half_mask(), control_image=picture())},
        start=1,
    ),
    Case(
        "flux-control",
        "flux1",
        _flux1(diffusers.FluxControlPipeline, lambda: tiny.flux1(128)),
        lambda: {**_pooled(), "control_image": picture()},
    ),
    Case(
        "flux-kontext-inpaint",
        "flux1",
        _flux1(diffusers.FluxKontextInpaintPipeline),
        lambda: {
            **_pooled(),
            **_image(mask_image=half_mask(), max_area=HEIGHT * WIDTH, _auto_resize=False),
        },
        start=1,
    ),
]

# --- FLUX.2 ---------------------------------------------------------------------------------------------------------


def _flux2() -> Any:
    return diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=tiny.vae_flux2(),
        text_encoder=None,
        tokenizer=None,
        transformer=tiny.flux2(True),
    )


def _klein(kind: Any = diffusers.Flux2KleinPipeline) -> Callable[[], Any]:
    return lambda: kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=tiny.vae_flux2(),
        text_encoder=tiny.qwen3(True),
        tokenizer=tiny.tokenizer(16),
        transformer=tiny.flux2(False),
    )


def _klein_text() -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "guidance_scale": 1.0,
        "max_sequence_length": 16,
        "text_encoder_out_layers": (1, 2, 3),
    }


FLUX2 = [
    Case("flux2", "flux2", _flux2, lambda: _text(3 * TEXT)),
    Case("flux2-edit", "flux2", _flux2, lambda: {**_text(3 * TEXT), "image": picture(64, 64)}),
    Case("flux2-klein", "flux2", _klein(), _klein_text),
    Case(
        "flux2-klein-inpaint",
        "flux2",
        _klein(diffusers.Flux2KleinInpaintPipeline),
        lambda: {**_klein_text(), **_image(mask_image=half_mask())},
        start=1,
    ),
    Case(
        "flux2-klein-kv",
        "flux2",
        _klein(diffusers.Flux2KleinKVPipeline),
        lambda: {**{k: v for k, v in _klein_text().items() if k != "guidance_scale"}, "image": picture(64, 64)},
    ),
]

# --- SD3 ------------------------------------------------------------------------------------------------------------


def _sd3(kind: Any, **extra: Any) -> Callable[[], Any]:
    return lambda: kind(
        transformer=tiny.sd3(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae_sd3(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        **{name: make() for name, make in extra.items()},
    )


def _sd3_text() -> dict[str, Any]:
    return {**_pooled(), "guidance_scale": 1.0}


SD3 = [
    Case("sd3", "sd3", _sd3(diffusers.StableDiffusion3Pipeline), _sd3_text),
    Case(
        "sd3-img2img",
        "sd3",
        _sd3(diffusers.StableDiffusion3Img2ImgPipeline),
        lambda: {**_sd3_text(), **_image()},
        start=1,
    ),
    Case(
        "sd3-inpaint",
        "sd3",
        _sd3(diffusers.StableDiffusion3InpaintPipeline),
        lambda: {**_sd3_text(), **_image(mask_image=half_mask())},
        start=1,
    ),
    Case(
        "sd3-controlnet",
        "sd3",
        _sd3(diffusers.StableDiffusion3ControlNetPipeline, controlnet=tiny.sd3_controlnet),
        lambda: {**_sd3_text(), "control_image": picture(), "control_guidance_end": 0.5},
    ),
]

# --- SDXL -----------------------------------------------------------------------------------------------------------

SDXL_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def _sdxl(kind: Any, unet: Any = None, **extra: Any) -> Callable[[], Any]:
    def build() -> Any:
        return kind(
            vae=tiny.vae_sdxl(),
            text_encoder=tiny.clip(),
            text_encoder_2=tiny.clip_projected(),
            tokenizer=tiny.tokenizer(77),
            tokenizer_2=tiny.tokenizer(77),
            unet=unet() if unet else tiny.unet(),
            scheduler=diffusers.EulerDiscreteScheduler(**SDXL_NOISE),
            add_watermarker=False,
            **{name: make() for name, make in extra.items()},
        )

    return build


def _sdxl_text() -> dict[str, Any]:
    return {"prompt": PROMPT, "guidance_scale": 1.0}


SDXL = [
    Case("sdxl", "sdxl", _sdxl(diffusers.StableDiffusionXLPipeline), _sdxl_text),
    Case(
        "sdxl-img2img",
        "sdxl",
        _sdxl(diffusers.StableDiffusionXLImg2ImgPipeline),
        lambda: {"height": None, "width": None, **_sdxl_text(), **_image()},
        start=2,
    ),
    Case(
        "sdxl-inpaint",
        "sdxl",
        _sdxl(diffusers.StableDiffusionXLInpaintPipeline),
        lambda: {**_sdxl_text(), **_image(mask_image=half_mask())},
        start=2,
    ),
    Case(
        "sdxl-inpaint-9",
        "sdxl",
        _sdxl(diffusers.StableDiffusionXLInpaintPipeline, lambda: tiny.unet(9)),
        lambda: {**_sdxl_text(), **_image(mask_image=half_mask())},
        start=2,
    ),
    Case(
        "sdxl-controlnet",
        "sdxl",
        _sdxl(diffusers.StableDiffusionXLControlNetPipeline, controlnet=tiny.sdxl_controlnet),
        lambda: {**_sdxl_text(), "image": picture(), "control_guidance_end": 0.5},
    ),
    Case(
        "sdxl-controlnet-inpaint",
        "sdxl",
        _sdxl(diffusers.StableDiffusionXLControlNetInpaintPipeline, controlnet=tiny.sdxl_controlnet),
        lambda: {**_sdxl_text(), **_image(mask_image=half_mask(), control_image=picture())},
        start=2,
    ),
    # It changes the attention of its U-Net while it runs, so it has one of its own.
    Case(
        "sdxl-pag",
        "sdxl",
        _sdxl(diffusers.StableDiffusionXLPAGPipeline, lambda: copy.deepcopy(tiny.unet())),
        _sdxl_text,
    ),
]

# --- Qwen-Image -----------------------------------------------------------------------------------------------------


def _qwen(kind: Any, **extra: Any) -> Callable[[], Any]:
    return lambda: kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=tiny.vae_qwen(),
        text_encoder=None,
        tokenizer=None,
        transformer=tiny.qwen_image(),
        **{name: make() for name, make in extra.items()},
    )


def _none() -> None:
    return None


def _qwen_text() -> dict[str, Any]:
    return {**_text(), "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long), "true_cfg_scale": 1.0}


QWEN = [
    Case("qwen-image", "qwen-image", _qwen(diffusers.QwenImagePipeline), _qwen_text),
    Case(
        "qwen-image-img2img",
        "qwen-image",
        _qwen(diffusers.QwenImageImg2ImgPipeline),
        lambda: {**_qwen_text(), **_image()},
        start=1,
    ),
    Case(
        "qwen-image-inpaint",
        "qwen-image",
        _qwen(diffusers.QwenImageInpaintPipeline),
        lambda: {**_qwen_text(), **_image(mask_image=half_mask())},
        start=1,
    ),
    Case(
        "qwen-image-edit",
        "qwen-image",
        _qwen(diffusers.QwenImageEditPipeline, processor=_none),
        lambda: {**_qwen_text(), "image": picture()},
    ),
    Case(
        "qwen-image-edit-plus",
        "qwen-image",
        _qwen(diffusers.QwenImageEditPlusPipeline, processor=_none),
        lambda: {**_qwen_text(), "image": [picture(), picture(64, 64)]},
    ),
    Case(
        "qwen-image-controlnet",
        "qwen-image",
        _qwen(diffusers.QwenImageControlNetPipeline, controlnet=tiny.qwen_controlnet),
        lambda: {**_qwen_text(), "control_image": picture(), "control_guidance_end": 0.5},
    ),
]

# --- Z-Image --------------------------------------------------------------------------------------------------------


def _z_image(kind: Any) -> Callable[[], Any]:
    return lambda: kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae_flux1(),
        text_encoder=tiny.qwen3(False),
        tokenizer=tiny.tokenizer(16),
        transformer=tiny.z_image(),
    )


def _z_image_text() -> dict[str, Any]:
    return {"prompt": [PROMPT], "guidance_scale": 0.0, "max_sequence_length": 16}


Z_IMAGE = [
    Case("z-image", "z-image", _z_image(diffusers.ZImagePipeline), _z_image_text),
    Case(
        "z-image-img2img",
        "z-image",
        _z_image(diffusers.ZImageImg2ImgPipeline),
        lambda: {**_z_image_text(), **_image()},
        start=1,
    ),
    Case(
        "z-image-inpaint",
        "z-image",
        _z_image(diffusers.ZImageInpaintPipeline),
        lambda: {**_z_image_text(), **_image(mask_image=half_mask())},
        start=1,
    ),
]

# --- a pipeline without callback_on_step_end -------------------------------------------------------------------------


def _pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny.vae_sdxl(),
        transformer=tiny.pixart(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


PIXART = Case(
    "pixart-sigma",
    "sdxl",
    _pixart,
    lambda: {
        **_text(),
        "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long),
        "guidance_scale": 1.0,
        "use_resolution_binning": False,
    },
)

FAMILIES = [FLUX1[0], FLUX2[0], FLUX2[2], SD3[0], SDXL[0], QWEN[0], Z_IMAGE[0]]
ALL = [*FLUX1, *FLUX2, *SD3, *SDXL, *QWEN, *Z_IMAGE]
BY_NAME = {case.name: case for case in [*ALL, PIXART]}
