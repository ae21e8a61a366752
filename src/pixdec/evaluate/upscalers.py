"""What enlarges an image that an autoencoder decoded: plain filters, Real-ESRGAN, and other people's networks.

Each is one function from a small image, a scale and a seed to a large one, with a licence, and a reason where it cannot
run. SeedVR2, TSD-SR and InvSR need environments of their own, so they are called as commands of the user's own
installation, which an environment variable names.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from pixdec.devices import has_bfloat16_units
from pixdec.io.files import files_below, first_line_of
from pixdec.io.images import READABLE, read_image, resize, to_pil, to_tensor

Enlarge = Callable[[Tensor, int, int], Tensor]
"""(image (1,3,h,w) in [-1,1], scale, seed) -> (1,3,scale·h,scale·w) in [-1,1]."""


class UnavailableError(ValueError):
    """A baseline that cannot run here: its row is shown with this reason."""


@dataclass(frozen=True)
class Upscaler:
    """A baseline. `open(argument, device)`: `argument` is what stands behind its name and a colon, and raises
    `UnavailableError`. `takes`: what the argument is; None if there is none."""

    licence: str
    open: Callable[[str, torch.device], Enlarge]
    takes: str | None = None


def fitted(image: Tensor, small: Tensor, scale: int) -> Tensor:
    """An image of a network with a scale of its own, brought to ours by Lanczos."""
    height, width = small.shape[2] * scale, small.shape[3] * scale
    return image if image.shape[2:] == (height, width) else resize(image, height, width, how="lanczos")


def _filter(how: Literal["lanczos", "bicubic"]) -> Upscaler:
    def enlarge(image: Tensor, scale: int, seed: int) -> Tensor:
        return resize(image, image.shape[2] * scale, image.shape[3] * scale, how=how)

    return Upscaler("public", lambda argument, device: enlarge)


def _real_esrgan(argument: str, device: torch.device) -> Enlarge:
    from pixdec.evaluate import real_esrgan

    dtype = torch.bfloat16 if device.type == "cpu" and has_bfloat16_units() else torch.float32
    try:
        network = real_esrgan.load_real_esrgan(argument or None).to(device, dtype)
    except (ValueError, OSError) as error:
        raise UnavailableError(str(error)) from error
    cast("Any", network).to(memory_format=torch.channels_last)
    return lambda image, scale, seed: fitted(real_esrgan.enlarge(network, image), image, scale)


def _spandrel(argument: str, device: torch.device) -> Enlarge:
    remedy = "; pip install 'pixdec[spandrel]'"
    try:
        import spandrel  # pyright: ignore[reportMissingImports]

        remedy = ""
        model: Any = cast("Any", spandrel).ModelLoader().load_from_file(argument).to(device).eval()
    except Exception as error:  # it imports torchvision, and reads files of many kinds
        raise UnavailableError(f"spandrel:{argument}: {first_line_of(error)}{remedy}") from error

    def enlarge(image: Tensor, scale: int, seed: int) -> Tensor:
        made: Tensor = model((image.to(device) + 1) / 2).float().cpu() * 2 - 1
        return fitted(made, image, scale)

    return enlarge


def _diffusers(argument: str, device: torch.device) -> Enlarge:
    from pixdec.generation.pipeline import find_pipeline, load_pipeline

    try:
        pipe = load_pipeline(find_pipeline(argument), str(device), None, offload=False)
    except ValueError as error:
        raise UnavailableError(str(error)) from error

    def enlarge(image: Tensor, scale: int, seed: int) -> Tensor:
        noise = torch.Generator().manual_seed(seed)
        try:
            made: Any = pipe(prompt="", image=to_pil(image)[0], generator=noise).images[0]
        except Exception as error:  # pipelines raise what they like
            raise ValueError(f"diffusers:{argument}: {first_line_of(error)}") from error
        return fitted(to_tensor(made), image, scale)

    return enlarge


def _command(name: str, example: str) -> Callable[[str, torch.device], Enlarge]:
    """The user's own installation: a command with {input} and {output}, folders, and if wanted {scale}, {seed},
    {width} and {height} of the output."""
    variable = f"PIXDEC_{name.upper().replace('-', '_')}"

    def opened(argument: str, device: torch.device) -> Enlarge:
        command = os.environ.get(variable)
        if not command:
            raise UnavailableError(f"{name}: set {variable} to the command of your installation, such as '{example}'")

        def enlarge(image: Tensor, scale: int, seed: int) -> Tensor:
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder) / "in", Path(folder) / "out"
                source.mkdir()
                target.mkdir()
                to_pil(image)[0].save(source / "image.png")
                size = {"width": image.shape[3] * scale, "height": image.shape[2] * scale}
                words = [
                    word.format(input=source, output=target, scale=scale, seed=seed, **size)
                    for word in shlex.split(command)
                ]
                try:
                    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
                except OSError as error:
                    raise ValueError(f"{name}: {variable} cannot be run ({error.strerror}: {words[0]})") from error
                made = files_below(target, READABLE)
                if done.returncode or not made:
                    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
                    raise ValueError(f"{name}: exit code {done.returncode}, {len(made)} images ({said[:200]})")
                return fitted(to_tensor(read_image(target / made[0])), image, scale)

        return enlarge

    return opened


def missing(reason: str) -> Callable[[str, torch.device], Any]:
    """Opens what nobody can run."""

    def opened(argument: str, device: torch.device) -> Any:
        raise UnavailableError(reason)

    return opened


UPSCALERS = {
    "lanczos": _filter("lanczos"),
    "bicubic": _filter("bicubic"),
    "real-esrgan": Upscaler("BSD-3", _real_esrgan, "an ncnn .bin file of x4plus, if its package is not installed"),
    "spandrel": Upscaler("of the weights; spandrel MIT", _spandrel, "a file of weights"),
    "diffusers": Upscaler("of the model", _diffusers, "a pipeline that enlarges, hub id or folder"),
    "seedvr2": Upscaler(
        "Apache-2.0",
        _command("seedvr2", "python projects/inference_seedvr2_3b.py --video_path {input} --output_dir {output} …"),
    ),
    "tsd-sr": Upscaler(
        "code Apache-2.0; needs SD3 medium, whose licence it has",
        _command("tsd-sr", "python test/test_tsdsr.py -i {input} -o {output} --upscale {scale} …"),
    ),
    "invsr": Upscaler(
        "S-Lab, not for commercial use",
        _command("invsr", "python inference_invsr.py -i {input} -o {output} --num_steps 1"),
    ),
    "lua": Upscaler(
        "none stated", missing("lua: it enlarges latents, and neither its code nor its weights were published")
    ),
}
