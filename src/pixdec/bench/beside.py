"""What a user would take instead: a VAE's decode, and enlarging; real architectures with random weights, no downloads.

Without an enlarger a VAE decodes a latent of the output's size; with one, a latent of output/scale, and the image is
enlarged to the output. Everything begins and ends on the device, as for a decoder: Pillow's filter runs on the CPU, so
that the copies there and back are part of it. Batches that an enlarger cannot take go through one by one.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pixdec.bench.measure import Method
from pixdec.bench.names import Beside, Vae, Way
from pixdec.bench.settings import Job
from pixdec.io.files import first_line_of
from pixdec.io.images import to_pil, to_tensor
from pixdec.weights.load import load_autoencoder

SEED = 0
FACTOR = 8  # image side / side of a VAE's raw latent, for all of them

# Of the released VAEs' config.json; what is not named is diffusers' default for the class.
_KL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
_CONFIGS: dict[Vae, dict[str, Any]] = {
    "flux1": {**_KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "sdxl": {**_KL, "latent_channels": 4},
    "flux2": {},
}

# diffusers' upscaling pipelines: by how much they enlarge.
_PIPELINES = {"StableDiffusionUpscalePipeline": 4, "StableDiffusionLatentUpscalePipeline": 2}


def load_libraries(asked: Beside) -> None:
    """Import what `prepare_beside` will need, so that a process can be measured without it. What is missing is that
    function's to explain."""
    with contextlib.suppress(ImportError, RuntimeError):
        if asked.enlarge == "upscaler" or asked.decode not in (None, "tiny"):
            library: Any = importlib.import_module("diffusers")
            _ = library.AutoencoderKL, library.AutoencoderKLFlux2  # they are imported when they are named
    with contextlib.suppress(ImportError, RuntimeError):
        if asked.enlarge in ("real-esrgan", "spandrel"):
            importlib.import_module("spandrel")


@dataclass(frozen=True)
class Stage:
    """A step on the way: `run` goes from a tensor to images (B,3,H,W) in [-1,1]; `scale` is by how much it enlarges."""

    run: Callable[[Tensor], Tensor]
    networks: tuple[nn.Module, ...]
    scale: int = 1


def prepare_beside(asked: Beside, job: Job, device: torch.device) -> Method:
    """A baseline, loaded.

    Raises:
        ValueError: a package is missing, a file or folder cannot be used, or the side does not fit.
    """
    dtype = torch.bfloat16 if job.dtype == "bfloat16" else torch.float32
    enlarge = None if asked.enlarge is None else _enlarger(asked, job, device, dtype)
    small, rest = divmod(job.side, 1 if enlarge is None else enlarge.scale)
    if rest or (asked.decode is not None and small % FACTOR):
        raise ValueError(f"--sides {job.side}: no multiple of what this method gives")
    generator = torch.Generator().manual_seed(SEED)
    if asked.decode is None:
        decode = None
        given = torch.rand(job.batch, 3, small, small, generator=generator) * 2 - 1
    else:
        decode = _tiny(device, dtype) if asked.decode == "tiny" else _vae(asked.decode, asked.way, device, dtype)
        channels = {"flux1": 16, "sdxl": 4, "flux2": 32, "tiny": 32}[asked.decode]
        given = torch.randn(job.batch, channels, small // FACTOR, small // FACTOR, generator=generator)
    given = given.to(device, dtype)
    stages = [stage for stage in (decode, enlarge) if stage is not None]
    networks = [network for stage in stages for network in stage.networks]
    return Method(partial(_through, stages, given), networks, [given])


@torch.inference_mode()
def _through(stages: list[Stage], x: Tensor) -> Tensor:
    for stage in stages:
        x = stage.run(x)
    return ((x.float() + 1) / 2).clamp_(0, 1)


def _vae(name: Vae, way: Way, device: torch.device, dtype: torch.dtype) -> Stage:
    diffusers = _diffusers(f"vae:{name}")
    kind: Any = diffusers.AutoencoderKLFlux2 if name == "flux2" else diffusers.AutoencoderKL
    torch.manual_seed(SEED)
    vae: Any = kind(**_CONFIGS[name])
    vae.encoder = nn.Identity()  # a decode does not need it
    vae.to(device, dtype).eval().requires_grad_(False)
    if way == "tiled":
        vae.enable_tiling()
    elif way == "sliced":
        vae.enable_slicing()
    return Stage(lambda latent: vae.decode(latent, return_dict=False)[0], (vae,))


def _diffusers(what: str) -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ValueError(f"{what} needs diffusers: pip install 'pixdec[bench]'") from error


def _tiny(device: torch.device, dtype: torch.dtype) -> Stage:
    network = load_autoencoder(device=device, dtype=dtype).decoder
    return Stage(network, (network,))


def _enlarger(asked: Beside, job: Job, device: torch.device, dtype: torch.dtype) -> Stage:
    if asked.enlarge == "lanczos":
        return Stage(partial(_lanczos, scale=job.scale), (), job.scale)
    if asked.enlarge == "upscaler":
        return _pipeline(asked.place or "", device, dtype)
    try:
        spandrel: Any = importlib.import_module("spandrel")
    except ImportError as error:
        missing = f" ({error.name} is missing)" if error.name and error.name != "spandrel" else ""
        raise ValueError(f"{asked.enlarge} needs spandrel: pip install 'pixdec[spandrel]'{missing}") from error
    except RuntimeError as error:  # torchvision of another build than torch
        raise ValueError(f"{asked.enlarge}: spandrel cannot be imported ({first_line_of(error)})") from error
    if asked.enlarge == "spandrel":
        try:
            described: Any = spandrel.ModelLoader().load_from_file(asked.place or "")
        except Exception as error:  # of whatever a foreign file makes torch, pickle and spandrel raise
            raise ValueError(f"{asked.place}: spandrel cannot load it ({first_line_of(error)})") from error
        network: nn.Module = described.model
        network.to(device, dtype).eval().requires_grad_(False)
        return Stage(partial(_one_by_one, described), (network,), int(described.scale))  # it pads what it must
    architecture: Any = importlib.import_module("spandrel.architectures.ESRGAN")
    torch.manual_seed(SEED)
    network = architecture.ESRGAN(num_filters=64, num_blocks=23, scale=4).to(device, dtype).eval()  # x4plus
    return Stage(partial(_one_by_one, network.requires_grad_(False)), (network,), 4)


def _one_by_one(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([network((each[None] + 1) / 2) for each in images]) * 2 - 1


def _lanczos(images: Tensor, *, scale: int) -> Tensor:
    large = [
        each.resize((each.width * scale, each.height * scale), Image.Resampling.LANCZOS) for each in to_pil(images)
    ]
    return to_tensor(large).to(images.device)


def _pipeline(place: str, device: torch.device, dtype: torch.dtype) -> Stage:
    try:
        pipe: Any = _diffusers(f"upscaler:{place}").DiffusionPipeline.from_pretrained(place, torch_dtype=dtype)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{place}: diffusers cannot load it ({first_line_of(error)})") from error
    kind = type(pipe).__name__
    if kind not in _PIPELINES:
        raise ValueError(f"{place}: a {kind}; expected one of {', '.join(_PIPELINES)}")
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)

    def run(images: Tensor) -> Tensor:
        made: Tensor = pipe(prompt=[""] * len(images), image=(images + 1) / 2, output_type="pt").images
        return made * 2 - 1

    networks = tuple(each for each in pipe.components.values() if isinstance(each, nn.Module))
    return Stage(run, networks, _PIPELINES[kind])
