"""A latent that carries what a decoder must know about it: its space and its noise level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex, cast

import torch
from safetensors.torch import save
from torch import Tensor

from pixdec.io.arguments import seed_of
from pixdec.io.files import write_whole
from pixdec.io.tensor_files import TensorFile, open_tensors, tensors_in
from pixdec.latents.space import SPACES, LatentSpace, get_space, noise_levels
from pixdec.latents.validation import check_form, check_statistics

SUFFIXES = (".safetensors", ".latent", ".pt", ".pth", ".npy")
COMFY, _MARK = "latent_tensor", "latent_format_version_0"


@dataclass(frozen=True, eq=False, init=False)
class Latent:
    """A batch of normalised latents of one space.

    Attributes:
        tensor: (B, C, h, w), floating point, normalised: see `LatentSpace.normalize`.
        space: the latent space.
        sigma: (B,) float32 in [0, 1], the noise level of each latent, 0 = clean; on the tensor's device.
        encoder: what encoded it, where `ImageEncoder` did: its VAE's name or folder.
    """

    tensor: Tensor
    space: LatentSpace
    sigma: Tensor
    encoder: str | None

    def __init__(
        self,
        tensor: Tensor,
        space: LatentSpace | str,
        sigma: float | Sequence[float] | Tensor = 0.0,
        *,
        statistics: bool = True,
        encoder: str | None = None,
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
        object.__setattr__(self, "encoder", encoder)

    def with_sigma(self, sigma: float | Sequence[float] | Tensor) -> Latent:
        """The same latent, said to be of another noise level."""
        return Latent(self.tensor, self.space, sigma, statistics=False, encoder=self.encoder)

    def noised(self, sigma: float, seed: SupportsIndex) -> Latent:
        """This clean latent noised to the level `sigma`, which it then carries; itself for 0. Drawn on the CPU in
        float32, so that a seed gives the same noise on every device, whatever torch's defaults are."""
        if sigma == 0:
            return self
        # Not the seed itself: the decoder draws the image's noise with that, and the two must be independent. PyTorch's
        # CPU generator heeds only the lower 32 bits.
        generator = torch.Generator("cpu").manual_seed((seed_of(seed) ^ 0x6C6174) & 0xFFFFFFFF)
        noise = torch.randn(self.tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(self.tensor)
        noisy = self.space.add_noise(self.tensor, sigma, noise)
        return Latent(noisy, self.space, sigma, statistics=False, encoder=self.encoder)

    def save(self, path: str | Path, settings: Mapping[str, object] | None = None) -> None:
        """Write one safetensors file: the tensor `latent`; metadata "pixdec" = "latent", "space", "sigma" (JSON list),
        and "encoder" if it is known.

        `settings`: how the latent was made, a JSON object in the metadata, for `latent_settings`. `pixdec decode` takes
        its "prompt" and "seed". Whole or not at all (`files.replacing`).

        Raises:
            OSError: `path` cannot be written.
        """
        write_whole(path, self.to_bytes(settings))

    def to_bytes(self, settings: Mapping[str, object] | None = None) -> bytes:
        """What `save` writes."""
        sigma = json.dumps([float(level) for level in self.sigma])
        metadata = {"pixdec": "latent", "space": self.space.name, "sigma": sigma}
        if self.encoder is not None:
            metadata["encoder"] = self.encoder
        if settings is not None:
            metadata["settings"] = json.dumps(settings)
        return save({"latent": self.tensor.detach().cpu().contiguous()}, metadata)

    @classmethod
    def load(cls, path: str | Path, *, space: LatentSpace | str | None = None, statistics: bool = True) -> Latent:
        """Read a file that `save` wrote, one of ComfyUI (`.latent`), or any that holds one tensor, onto the CPU.

        space: of a file that names none, which all but ours do. ComfyUI's files hold what its VAE returns, which is
        normalized here (FLUX.2's are normalized already); other tensors are taken for normalized, clean latents.
        statistics: see `check_latent`.

        Raises:
            ValueError: the file is missing, cut short, no latent, names no space and none is given, or another one; or
                what it holds fails the checks of the constructor.
        """
        return cls._in(open_tensors(path), space, statistics=statistics)

    @classmethod
    def from_bytes(cls, data: bytes, *, space: LatentSpace | str | None = None, statistics: bool = True) -> Latent:
        """As `load`, of the bytes of a safetensors file.

        Raises:
            ValueError: as `load`.
        """
        return cls._in(tensors_in(data, "the latent"), space, statistics=statistics)

    @classmethod
    def _in(cls, file: TensorFile, space: LatentSpace | str | None, *, statistics: bool) -> Latent:
        try:
            if _is_ours(file):
                stated = get_space(file.metadata.get("space", ""))
                if space is not None and not stated.holds_latents_of(get_space(space)):
                    raise ValueError(f"a latent of {stated.name}, and space={get_space(space).name!r} was said")
                encoder = file.metadata.get("encoder")
                return cls(
                    file.tensors["latent"], stated, _sigma(file.metadata), statistics=statistics, encoder=encoder
                )
            name = _latent_of(file)
            if space is None:
                raise ValueError(
                    f"a latent of shape {tuple(file.tensors[name].shape)} whose file names no space; say which: "
                    f"Latent.load(path, space=...) or --space, one of {', '.join(SPACES)}"
                )
            space = get_space(space)
            return cls(_normalized(file, name, space), space, statistics=statistics)
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from error


def latent_settings(path: str | Path) -> dict[str, object]:
    """The settings that a latent was saved with; empty if there are none.

    Raises:
        ValueError: not a readable file of tensors, or its settings are no JSON object.
    """
    text = open_tensors(path).metadata.get("settings", "{}")
    try:
        settings: object = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: its metadata has settings {text[:60]!r}; expected a JSON object")
    return cast("dict[str, object]", settings)


def _is_ours(file: TensorFile) -> bool:
    return file.metadata.get("pixdec") == "latent" and "latent" in file.tensors


def _latent_of(file: TensorFile) -> str:
    """The name of the one tensor in a file that is not ours. Raises ValueError if it is no latent's."""
    what = file.metadata.get("pixdec")
    if what is not None:
        raise ValueError(f"no latent: its metadata say {what!r}, see `pixdec inspect`")
    if COMFY in file.tensors:
        return COMFY
    named = [name for name, tensor in file.tensors.items() if tensor.numel() > 0]
    if len(named) != 1 or file.tensors[named[0]].ndim < 3:
        raise ValueError(
            f"no latent: it holds {len(file.tensors)} tensors, {', '.join(list(file.tensors)[:3])}; expected a "
            "file of Latent.save, ComfyUI's .latent, or one tensor (B, C, h, w)"
        )
    return named[0]


def _normalized(file: TensorFile, name: str, space: LatentSpace) -> Tensor:
    tensor = file.tensors[name]
    raw_is_other = space.channels != space.raw_channels and tensor.ndim == 4 and tensor.shape[1] == space.channels
    if name != COMFY or raw_is_other:
        return tensor
    # Before it marked its files, ComfyUI wrote latents multiplied by the scale of Stable Diffusion 1.
    return space.normalize(tensor.float() / (1 if _MARK in file.tensors else 0.18215))


def _sigma(metadata: Mapping[str, str]) -> Tensor:
    text = metadata.get("sigma", "")
    try:
        return torch.tensor(json.loads(text), dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its metadata has sigma {text[:60]!r}; expected a JSON list of noise levels") from error
