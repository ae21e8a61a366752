"""A latent that carries what a decoder must know about it: its space and its noise level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pixdec.io.arguments import seed_of
from pixdec.io.files import first_line_of, replacing
from pixdec.latents.space import LatentSpace, get_space, noise_levels
from pixdec.latents.validation import check_form, check_statistics


@dataclass(frozen=True, eq=False, init=False)
class Latent:
    """A batch of normalised latents of one space.

    Attributes:
        tensor: (B, C, h, w), floating point, normalised: see `LatentSpace.normalize`.
        space: the latent space.
        sigma: (B,) float32 in [0, 1], the noise level of each latent, 0 = clean; on the tensor's device.
    """

    tensor: Tensor
    space: LatentSpace
    sigma: Tensor

    def __init__(
        self,
        tensor: Tensor,
        space: LatentSpace | str,
        sigma: float | Sequence[float] | Tensor = 0.0,
        *,
        statistics: bool = True,
    ) -> None:
        """Check and hold. space: or its name; sigma: one number, or one for each; statistics: see `check_latent`.

        Raises:
            ValueError: not a normalised latent of `space` (`check_latent`); sigma outside [0, 1] or of another count.
        """
        space = get_space(space)
        check_form(tensor, space)
        levels = noise_levels(sigma, tensor.shape[0], tensor.device)
        if statistics:
            check_statistics(tensor, space, levels)
        object.__setattr__(self, "tensor", tensor)
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "sigma", levels)

    def with_sigma(self, sigma: float | Sequence[float] | Tensor) -> Latent:
        """The same latent, said to be of another noise level."""
        return Latent(self.tensor, self.space, sigma, statistics=False)

    def noised(self, sigma: float, seed: SupportsIndex) -> Latent:
        """This clean latent noised to the level `sigma`, which it then carries; itself for 0. Drawn on the CPU in
        float32, so that a seed gives the same noise on every device, whatever torch's defaults are."""
        if sigma == 0:
            return self
        # Not the seed itself: the decoder draws the image's noise with that, and the two must be independent. PyTorch's
        # CPU generator heeds only the lower 32 bits.
        generator = torch.Generator("cpu").manual_seed((seed_of(seed) ^ 0x6C6174) & 0xFFFFFFFF)
        noise = torch.randn(self.tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(self.tensor)
        return Latent(self.space.add_noise(self.tensor, sigma, noise), self.space, sigma, statistics=False)

    def save(self, path: str | Path, settings: Mapping[str, object] | None = None) -> None:
        """Write one safetensors file: the tensor `latent`; metadata "pixdec" = "latent", "space", "sigma" (JSON list).

        `settings`: how the latent was made, a JSON object in the metadata, for `latent_settings`. `pixdec decode` takes
        its "prompt" and "seed". Whole or not at all (`files.replacing`).

        Raises:
            OSError: `path` cannot be written.
        """
        sigma = json.dumps([float(level) for level in self.sigma])
        metadata = {"pixdec": "latent", "space": self.space.name, "sigma": sigma}
        if settings is not None:
            metadata["settings"] = json.dumps(settings)
        data = save({"latent": self.tensor.detach().cpu().contiguous()}, metadata)
        with replacing(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | Path, *, statistics: bool = True) -> Latent:
        """Read a file that `save` wrote, onto the CPU. statistics: see `check_latent`.

        Raises:
            ValueError: the file is missing, truncated, no safetensors file or not a latent of ours, or what it holds
                fails the checks of the constructor.
        """
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"{path}: there is no such file")
        try:
            # safetensors has no types of its own for what it opens.
            with cast("Any", safe_open(file, framework="pt", device="cpu")) as opened:
                metadata: dict[str, str] = opened.metadata() or {}
                tensor: Tensor | None = opened.get_tensor("latent") if "latent" in list(opened.keys()) else None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file, it may be truncated ({error})") from error
        if metadata.get("pixdec") != "latent" or tensor is None:
            raise ValueError(
                f"{path}: a safetensors file, but not a latent saved by pixdec; load its tensor and save it again with "
                "Latent(tensor, space, sigma).save(path)"
            )
        try:
            return cls(tensor, get_space(metadata.get("space", "")), _sigma(metadata), statistics=statistics)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def latent_settings(path: str | Path) -> dict[str, object]:
    """The settings that a latent was saved with; empty if there are none.

    Raises:
        ValueError: not a readable safetensors file, or its settings are no JSON object.
    """
    try:
        with cast("Any", safe_open(path, framework="pt")) as opened:  # as above
            text: str = (opened.metadata() or {}).get("settings", "{}")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable latent file ({first_line_of(error)})") from error
    try:
        settings: object = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: its metadata has settings {text[:60]!r}; expected a JSON object")
    return cast("dict[str, object]", settings)


def _sigma(metadata: dict[str, str]) -> Tensor:
    text = metadata.get("sigma", "")
    try:
        return torch.tensor(json.loads(text), dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"its metadata has sigma {text!r}; expected a JSON list of noise levels") from error
