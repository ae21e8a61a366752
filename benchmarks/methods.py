"""The methods of a table, by name, loaded and ready to be called on random latents.

plain                     the exact computation as the original runs it, see `plain_decode`
eager, compiled, graphs   `PixelDecoder.decode` as it comes, compiled, and with CUDA graphs
int8, int8-compiled       the same with weights and activations in eight bits
vae:flux1[:tiled]         diffusers' VAE decode of a latent of the output's size; likewise flux2 and sdxl
tiny, taef2               the bundled tiny decoder, or TAEF2, likewise
vae:flux2+lanczos         a decode at a quarter of the output's side, enlarged by Pillow; likewise tiny+lanczos
vae:flux2+real-esrgan     the same, enlarged by Real-ESRGAN x4plus

VAEs and upscalers have the released architecture and random weights: speed does not depend on values.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.plain import plain_velocity
from pixdec.decoder import InferenceConfig, PixelDecoder
from pixdec.devices import computes_in_bfloat16
from pixdec.evaluate.real_esrgan import RealESRGAN
from pixdec.io.images import to_pil, to_tensor
from pixdec.models.nano import Nano
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.taef2 import TAEF2
from pixdec.sampling.flow import STUDENT_TIMES, student_times
from pixdec.sampling.samplers import NoiseSource, Step, student
from pixdec.weights.catalog import TWO_TO_FOUR_K
from pixdec.weights.load import LoadedDecoder, load_autoencoder

OURS = ("plain", "eager", "compiled", "graphs", "int8", "int8-compiled")
RANDOM = "random:v1"
SEED = 0
FACTOR = 8  # image side / side of a VAE's raw latent
ENLARGED = 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, None: None}
_BASELINE = re.compile(
    r"(?:vae:(?P<vae>flux1|flux2|sdxl)(?P<tiled>:tiled)?|(?P<tiny>tiny|taef2))(?:\+(?P<enlarger>lanczos|real-esrgan))?"
)

# Of the released VAEs' config.json; what is not named is diffusers' default for the class.
_KL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
_VAES: dict[str, dict[str, Any]] = {
    "flux1": {**_KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "sdxl": {**_KL, "latent_channels": 4},
    "flux2": {},
}
_CHANNELS = {"flux1": 16, "sdxl": 4, "flux2": 32, None: 32}


@dataclass(frozen=True)
class Method:
    """`call()` gives images (1,3,H,W), float32 in [0,1] on the device; `networks`: whose weights are held."""

    call: Callable[[], Tensor]
    networks: Sequence[nn.Module]


def check_name(name: str) -> None:
    """Raises ValueError unless there is such a method."""
    if name not in OURS and _BASELINE.fullmatch(name) is None:
        raise ValueError(
            f"--methods {name}: expected {', '.join(OURS)}, vae:flux1, vae:flux2 or vae:sdxl (or one with :tiled) or "
            "tiny or taef2, or one of these with +lanczos or +real-esrgan"
        )


def load_libraries(name: str) -> None:
    """Import what a baseline needs, before memory is measured; what is missing is for `prepare` to explain."""
    with contextlib.suppress(ImportError, RuntimeError):
        if name.startswith("vae:"):
            library: Any = importlib.import_module("diffusers")
            _ = library.AutoencoderKL, library.AutoencoderKLFlux2  # they are imported when they are named


def prepare(
    name: str, model: str, side: int, steps: int | None, dtype: torch.dtype | None, device: torch.device
) -> Method:
    """A method for outputs of side x side pixels, loaded; arguments as in `speed.Settings`.

    Raises:
        ValueError: the side or the steps do not fit, a package is missing, or the device cannot do it.
    """
    if name not in OURS:
        return _baseline(name, side, dtype, device)
    decoder, text = open_decoder(model, torch.float32 if name == "plain" else dtype, device)
    cell = decoder.space.factor * decoder.scale
    if side % cell:
        raise ValueError(f"--sides {side}: {decoder.model.name} gives multiples of {cell} pixels")
    generator = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, decoder.space.channels, side // cell, side // cell, generator=generator).to(device)
    if decoder.space.is_image:
        latent = latent.mul(0.5).clamp(-1, 1)
    if name == "plain":
        if decoder.space.is_image:
            raise ValueError(f"plain: {decoder.model.name} has no plain form, it is one; leave the method out")
        low = (dtype or _usual(device)) == torch.bfloat16
        decoder.network.requires_grad_(True)
        return Method(partial(plain_decode, decoder, latent, text, steps, low=low), [decoder.network])
    compiled = name in ("compiled", "graphs", "int8-compiled")
    config = InferenceConfig(
        attention="auto" if compiled else "torch",
        compile=("graphs" if name == "graphs" else "default") if compiled else None,
        quantize="int8" if "int8" in name else None,
    )
    decode = partial(decoder.decode, latent, seed=SEED, steps=steps, output="pt", config=config)
    return Method(decode, [decoder.prepare(config)])


def open_decoder(model: str, dtype: torch.dtype | None, device: torch.device) -> tuple[PixelDecoder, Tensor | None]:
    """A decoder by name, file or folder, or RANDOM; and the embeddings (1,T,E) of every caption, None without text."""
    if model == RANDOM:
        loaded = random_decoder(dtype or _usual(device), device)
    else:
        loaded = PixelDecoder.from_pretrained(model, device, dtype).model
    network = loaded.network
    if isinstance(network, Nano) or (backbone := network.settings.backbone).text_width is None:
        return PixelDecoder(loaded), None
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randn(1, backbone.text_length, backbone.text_width, generator=generator).to(device)

    def captions(texts: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        return text.to(device, dtype).expand(len(texts), -1, -1)

    return PixelDecoder(loaded, captions), text


def _usual(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32


def random_decoder(dtype: torch.dtype, device: torch.device) -> LoadedDecoder:
    """The released FLUX.1 student without its weights: N(0, 1/fan-in) matrices, biases 0, all else 1."""
    with torch.device("meta"):
        network = PiD(PiDSettings()).to(dtype)
    assert not list(network.buffers()), "a buffer would keep what to_empty leaves in it"
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return LoadedDecoder(
        settings=network.settings,
        name=RANDOM,
        space="flux1",
        kind="student",
        version="v1",
        times=STUDENT_TIMES,
        sizes=TWO_TO_FOUR_K,
        licence="none",
        network=network,
    )


@torch.no_grad()  # under inference_mode autocast would keep no copies, and cast all weights in every step
def plain_decode(decoder: PixelDecoder, latent: Tensor, text: Tensor | None, steps: int | None, *, low: bool) -> Tensor:
    """A decode written plainly, as the original runs it.

    Float32 weights that want gradients, so that autocast keeps its bfloat16 copies for the decode (`low`: it computes
    in bfloat16); the adapter, and all else, in every step; nothing in chunks or tiles. latent (1,C,h,w), text (1,T,E).

    Returns:
        The image (1,3,H,W) of `decoder.decode(latent, seed=0, steps=steps, output="pt")`, but for rounding.
    """
    if decoder.model.kind != "student":
        raise ValueError(f"plain: {decoder.model.name} is a {decoder.model.kind}; expected a student: leave plain out")
    cell, trained = decoder.space.factor * decoder.scale, decoder.model.times
    count = len(trained) - 1 if steps is None else steps
    sigma = torch.zeros(1, device=latent.device)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return plain_velocity(decoder.network, x_t, t, text, latent, sigma)

    shape = (1, 3, latent.shape[2] * cell, latent.shape[3] * cell)
    times = student_times(trained, count)
    final: Step | None = None
    with torch.autocast(latent.device.type, torch.bfloat16) if low else nullcontext():
        for step in student(velocity, NoiseSource([SEED], latent.device, count), shape, times):
            final = step
    assert final is not None
    return (final.x0 + 1) / 2


def _baseline(name: str, side: int, dtype: torch.dtype | None, device: torch.device) -> Method:
    parts = _BASELINE.fullmatch(name)
    assert parts is not None, "checked with the settings"
    small = side // (ENLARGED if parts["enlarger"] else 1) // FACTOR
    generator = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, _CHANNELS[parts["vae"]], small, small, generator=generator)
    latent = latent.to(device, dtype := dtype or _usual(device))
    networks, stages = list[nn.Module](), list[Callable[[Tensor], Tensor]]()
    if parts["vae"]:
        vae = _vae(parts["vae"], device, dtype, tiled=bool(parts["tiled"]))
        networks.append(vae)
        stages.append(lambda x: vae.decode(x, return_dict=False)[0])
    elif parts["tiny"] == "taef2":
        torch.manual_seed(SEED)
        taef2 = TAEF2().to(device, dtype).eval().requires_grad_(False)
        networks.append(taef2.decoder_layers)
        stages.append(taef2.decode)
    else:
        tiny = load_autoencoder(device=device, dtype=dtype).decoder
        networks.append(tiny)
        stages.append(tiny)
    if parts["enlarger"] == "lanczos":
        stages.append(_lanczos)
    elif parts["enlarger"]:
        upscaler = _real_esrgan(device, dtype)
        networks.append(upscaler)
        stages.append(lambda x: upscaler((x + 1) / 2) * 2 - 1)

    @torch.inference_mode()
    def call() -> Tensor:
        x = latent
        for stage in stages:
            x = stage(x)
        return ((x.float() + 1) / 2).clamp_(0, 1)

    return Method(call, networks)


def _vae(name: str, device: torch.device, dtype: torch.dtype, *, tiled: bool) -> Any:
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError as error:
        raise ValueError(f"vae:{name} needs diffusers: pip install 'pixdec[pipelines]'") from error
    kind: Any = diffusers.AutoencoderKLFlux2 if name == "flux2" else diffusers.AutoencoderKL
    torch.manual_seed(SEED)
    vae: Any = kind(**_VAES[name])
    vae.encoder = nn.Identity()  # a decode does not need it
    if tiled:
        vae.enable_tiling()
    return vae.to(device, dtype).eval().requires_grad_(False)


def _real_esrgan(device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(SEED)
    return RealESRGAN().to(device, dtype).eval().requires_grad_(False)


def _lanczos(images: Tensor) -> Tensor:
    """On the CPU, as Pillow does it: the copies are part of it."""
    size = images.shape[3] * ENLARGED, images.shape[2] * ENLARGED
    return to_tensor([each.resize(size, Image.Resampling.LANCZOS) for each in to_pil(images)]).to(images.device)
