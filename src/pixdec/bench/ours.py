"""What is measured of ours: the plain path, `PixelDecoder.decode` as it comes, and compiled.

The plain path is the exact one written as the original runs it: float32 weights, which stay as they are made, wanting
gradients, so that autocast keeps its bfloat16 copies for the decode; `torch.autocast` to bfloat16 where the bench
computes in bfloat16; the adapter, and all else, in every step; nothing in chunks or tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pixdec.bench.measure import Method
from pixdec.bench.names import RANDOM, Ours
from pixdec.bench.plain import plain_velocity
from pixdec.bench.settings import Job
from pixdec.decoder import PixelDecoder
from pixdec.devices import computes_in_bfloat16
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.sampling.flow import STUDENT_TIMES, student_times
from pixdec.sampling.samplers import NoiseSource, Step, student
from pixdec.weights.catalog import TWO_TO_FOUR_K
from pixdec.weights.load import LoadedDecoder

SEED = 0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, None: None}


@dataclass(frozen=True)
class Opened:
    """A decoder whose captions are all the random embeddings `text` (1,T,E), None for a network without text."""

    decoder: PixelDecoder
    text: Tensor | None


def open_decoder(model: str, device: torch.device, dtype: torch.dtype | None) -> Opened:
    """A decoder by name, or of the released size with random weights; no caption encoder is loaded. `dtype` None as in
    `PixelDecoder.from_pretrained`.

    Raises:
        ValueError, OSError: as `PixelDecoder.from_pretrained`.
    """
    if model in RANDOM:
        usual = torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
        loaded = random_decoder(model, device, dtype or usual)
    else:
        loaded = PixelDecoder.from_pretrained(model, device, dtype).model
    width, length = loaded.network.settings.backbone.text_width, loaded.network.settings.backbone.text_length
    if width is None:
        return Opened(PixelDecoder(loaded), None)
    text = torch.randn(1, length, width, generator=torch.Generator().manual_seed(SEED))
    text = text.to(device, loaded.network.backbone.patch_embed.weight.dtype)

    def captions(texts: Sequence[str], device: torch.device, dtype: torch.dtype) -> Tensor:
        return text.to(device, dtype).expand(len(texts), -1, -1)

    return Opened(PixelDecoder(loaded, captions), text)


def random_decoder(model: str, device: torch.device, dtype: torch.dtype) -> LoadedDecoder:
    """A released FLUX.1 student without its weights: N(0, 1/fan-in) matrices, biases 0, all else 1."""
    settings = released(model)
    with torch.device("meta"):
        network = PiD(settings).to(dtype)
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
        network=network,
        name=model,
        spaces=("flux1", "z-image"),
        scale=4,
        kind="student",
        times=STUDENT_TIMES,
        version=model.removeprefix("random:"),
        needs_text=True,
        licence="none: random weights",
        sizes=TWO_TO_FOUR_K,
    )


def released(model: str) -> PiDSettings:
    """Settings of a released FLUX.1 decoder, "random:v1" or "random:v1.5" (specification §2 and §3)."""
    if model == "random:v1":
        return PiDSettings()
    return PiDSettings(
        PixDiTSettings(reference=(2048, 2048)),
        AdapterSettings(width=1024, padding="replicate", gate="token", pixel_head=True, aux_rgb=True),
    )


def prepare_ours(name: Ours, job: Job, device: torch.device) -> tuple[Method, PixelDecoder]:
    """A method of ours, loaded, and its decoder.

    Raises:
        ValueError: the side or the steps do not fit the model, or it cannot run in this way.
    """
    dtype = DTYPES[job.dtype]
    opened = open_decoder(job.model, device, torch.float32 if name == "plain" else dtype)
    decoder, latent = opened.decoder, _latent(opened.decoder, job, device)
    if name == "plain":
        low = dtype == torch.bfloat16
        text = None if opened.text is None else opened.text.expand(job.batch, -1, -1)
        call = partial(plain_decode, decoder, latent, text, job.steps, low=low)
        decoder.network.requires_grad_(True)
    else:
        call = partial(decoder.decode, latent, seed=SEED, steps=job.steps, output="pt")
        if name != "eager":
            _compile(decoder, name)
    return Method(call, [decoder.network], [latent], opened.text), decoder


def _latent(decoder: PixelDecoder, job: Job, device: torch.device) -> Tensor:
    """Random, the same for all of ours."""
    cell = decoder.space.factor * decoder.scale
    if job.side % cell:
        raise ValueError(f"--sides {job.side}: {decoder.model.name} gives multiples of {cell} pixels")
    cells = job.side // cell
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(job.batch, decoder.space.channels, cells, cells, generator=generator).to(device)


def _compile(decoder: PixelDecoder, name: Ours) -> None:
    """`compiled` and `graphs`, with the fastest attention that is exact on this device."""
    decoder.runner.attention = "auto"
    decoder.runner.compile("graphs" if name == "graphs" else "default")


@torch.no_grad()  # under inference_mode autocast would keep no copies, and cast all weights in every step
def plain_decode(decoder: PixelDecoder, latent: Tensor, text: Tensor | None, steps: int | None, *, low: bool) -> Tensor:
    """The plain path: latent (B,C,h,w) -> images (B,3,H,W), float32 in [0,1]. The same image as
    `decoder.decode(latent, seed=0, steps=steps, output="pt")`, but for rounding.

    `low`: in bfloat16, by autocast. Raises ValueError for a teacher, which the original runs otherwise.
    """
    if decoder.model.kind != "student":
        raise ValueError(f"plain: {decoder.model.name} is a {decoder.model.kind}, it is for students; leave it out")
    batch, cell = latent.shape[0], decoder.space.factor * decoder.scale
    shape = (batch, 3, latent.shape[2] * cell, latent.shape[3] * cell)
    trained = decoder.model.times
    count = len(trained) - 1 if steps is None else steps
    times = student_times(trained, count, distilled=decoder.is_distilled)
    sigma = torch.zeros(batch, device=latent.device)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return plain_velocity(decoder.network, x_t, t, text, latent, sigma)

    noise = NoiseSource([SEED + i for i in range(batch)], latent.device, count)
    final: Step | None = None
    with torch.autocast(latent.device.type, torch.bfloat16) if low else nullcontext():
        for step in student(velocity, noise, shape, times):
            final = step
    assert final is not None
    return (final.x0 + 1) / 2
