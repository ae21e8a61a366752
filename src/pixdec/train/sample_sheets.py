"""Sample sheets: what the network makes of a few fixed inputs as it learns.

One row for each input: the low-resolution image enlarged, the network's image, the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixdec.io.files import replacing
from pixdec.io.images import to_pil
from pixdec.models.pid import PiD
from pixdec.sampling.flow import resolution_shift, shifted_times, student_times
from pixdec.sampling.samplers import NoiseSource, dpm_solver, student

PRIOR_START = 0.999


@dataclass(frozen=True, eq=False)
class Sheets:
    """Fixed inputs, and how they are decoded.

    Attributes:
        images: (B,3,H,W) in [-1,1].
        low, latent: for a decoder, the low-resolution images and clean latents (B,C,h,w).
        text: (B,T,E), for a network that reads it.
        steps: of the decode: by the list `times` if there is one, else by the solver with the shift of `version`.
    """

    images: Tensor
    low: Tensor | None
    latent: Tensor | None
    text: Tensor | None
    steps: int
    times: Sequence[float]
    version: str

    @torch.no_grad()
    def draw(self, network: PiD) -> Tensor:
        """The images (B,3,H,W) in [-1,1]; all processes call it together."""
        shape, device = self.images.shape, self.images.device
        condition = None if self.latent is None else network.condition(self.latent)
        sigma = None if self.latent is None else torch.zeros(shape[0], device=device)
        noise = NoiseSource(range(shape[0]), device)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return network.velocity(x_t, t, self.text, condition, sigma)

        x0 = self.images
        if self.times:
            steps = min(self.steps, len(self.times) - 1)
            for step in student(denoise, noise, shape, student_times(self.times, steps)):
                x0 = step.x0
        else:
            shift = resolution_shift(shape[2], shape[3], self.version)
            for step in dpm_solver(denoise, noise(shape), shifted_times(self.steps, shift, PRIOR_START)):
                x0 = step.x0
        return x0.clamp(-1, 1)

    def save(self, made: Tensor, folder: Path, step: int) -> Path:
        """Writes the sheet of a step as WebP."""
        columns = [made, self.images]
        if self.low is not None:
            columns.insert(0, F.interpolate(self.low, made.shape[2:], mode="bicubic").clamp(-1, 1))
        rows = torch.cat([torch.cat(list(column.cpu()), 1) for column in columns], 2)
        folder.mkdir(exist_ok=True)
        path = folder / f"{step:08d}.webp"
        picture: Image.Image = to_pil(rows[None])[0]
        with replacing(path) as temporary:
            picture.save(temporary, quality=90)
        return path
