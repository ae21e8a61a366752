"""A decoder in the place of a pipeline's VAE: `pipe.vae = decoder.as_vae()`.

To a pipeline it is a VAE that normalises nothing (scale 1, shift 0, mean 0, deviation 1): what it is given to decode is
the normalised latent as the loop held it, to the bit, and what it encodes to is normalised already.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixdec.encoder import first_decode
from pixdec.integrations.diffusers.denoising import replaced
from pixdec.integrations.diffusers.spaces import space_of_vae
from pixdec.latents import Latent, LatentSpace, Statistics

if TYPE_CHECKING:
    from pixdec.decoder import PixelDecoder

_LEVELS = 4  # of a VAE that makes latents at 1/8: pipelines count its widths


@dataclass(frozen=True)
class DecoderOptions:
    """How a decoder is called; see `PixelDecoder.decode`."""

    prompt: str | Sequence[str] | None = None  # None: the pipeline's own, where it is known
    steps: int | None = None
    seed: int | Sequence[int] = 0


class DecoderVAE(nn.Module):
    """What pipelines ask of a VAE: `decode`, `encode`, `config`, `dtype`, `bn`.

    Attributes: `decoder`; `space`, that of the latents it is given.
    """

    def __init__(
        self,
        decoder: PixelDecoder,
        vae: nn.Module | None = None,
        options: DecoderOptions | None = None,
        space: LatentSpace | None = None,
    ):
        """vae: that of the pipeline, for pipelines that encode images too, and for decoders of `rgb`, which enlarge
        what it decodes. space: None is the decoder's, or that of `vae`.

        Raises:
            ValueError: a decoder of `rgb` without a VAE, or a VAE of another space.
        """
        super().__init__()
        if decoder.space.is_image and vae is None:
            raise ValueError(
                f"{decoder.model.name} enlarges the image that the pipeline's own VAE decodes; give it: "
                "decoder.as_vae(pipe.vae)"
            )
        own = space or (decoder.space if vae is None else space_of_vae(vae))
        if not (decoder.space.is_image or decoder.space.holds_latents_of(own)):
            raise ValueError(
                f"a VAE of {own.name}, and {decoder.model.name} decodes {decoder.space.name}; take a decoder of "
                f"{own.name}, see `pixdec models`"
            )
        self.decoder, self.space, self.options = decoder, own, options or DecoderOptions()
        self.latent_of: Callable[[Tensor], Latent] = self._clean
        self.captions: Callable[[int], str | Sequence[str]] = lambda _batch: self.options.prompt or ""
        self.is_idle = False  # a pipeline that runs as if it were not here
        self._vae = (vae,)  # in a tuple, so that it is no part of this module: it is the pipeline's to move and cast
        self.config = _identity(own, vae)
        channels = torch.zeros(own.channels, device="cpu")
        self.bn = SimpleNamespace(running_mean=channels, running_var=channels + 1, eps=0.0)

    def __getattr__(self, name: str) -> Any:
        """What else a pipeline asks of its VAE is its own VAE's."""
        vae = self.__dict__.get("_vae", (None,))[0]
        return super().__getattr__(name) if vae is None else getattr(vae, name)

    @property
    def vae(self) -> nn.Module | None:
        """The pipeline's own."""
        return self._vae[0]

    @property
    def dtype(self) -> torch.dtype:
        """What latents are cast to before they are decoded."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where latents are taken to before they are decoded."""
        return self.decoder.device

    def decode(self, z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Normalised latents as the pipeline's VAE takes raw ones, (B,c,h,w) or (B,c,1,h,w) -> images (B,3,H,W) or
        (B,3,1,H,W) in [-1,1] at the decoder's size: a `DecoderOutput` with `sample`, or a tuple of one."""
        from diffusers.models.autoencoders.vae import DecoderOutput

        grid = self.space.squeeze_time(z) if z.ndim == 5 else self.space.patchify(z)
        latent = self.latent_of(grid)
        if self.decoder.space.is_image:
            latent = first_decode(latent, self.vae)
        captions = self.captions(latent.tensor.shape[0]) if self.decoder.model.needs_text else ""
        seed, steps = self.options.seed, self.options.steps
        images = self.decoder.decode(latent, captions, seed=seed, steps=steps, output="pt").mul_(2).sub_(1)
        images = images.unsqueeze(2) if z.ndim == 5 else images
        return DecoderOutput(sample=images) if return_dict else (images,)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """By the pipeline's own VAE; its distribution gives normalised latents.

        Raises:
            ValueError: there is none.
        """
        vae: Any = self.vae
        if vae is None:
            raise ValueError("this stands for a VAE that only decodes; to encode too it needs one: as_vae(pipe.vae)")
        found = vae.encode(x.to(next(vae.parameters())), return_dict=False)[0]
        made = _Normalized(found, lambda raw: self._normalized(raw.to(x.dtype)))
        return SimpleNamespace(latent_dist=made) if return_dict else (made,)

    def enable_tiling(self, *_: Any, **__: Any) -> None:
        """Nothing: the decoder's config says when it decodes in tiles."""

    disable_tiling = enable_slicing = disable_slicing = enable_tiling

    def _clean(self, grid: Tensor) -> Latent:
        # It is a pipeline's own: its statistics are not in question.
        return Latent(grid, self.space, statistics=False)

    def _normalized(self, raw: Tensor) -> Tensor:
        """A raw latent, and the normalised one in its shape."""
        assert self.vae is not None
        statistics = None if self.space.constants is not None else Statistics.from_vae(self.vae)
        latent = self.space.unpatchify(self.space.normalize(raw, statistics))
        return latent.unsqueeze(2) if raw.ndim == 5 else latent


@contextmanager
def own_vae(pipe: Any) -> Generator[None]:
    """While it lasts, a pipeline with a decoder in the place of its VAE has its own VAE, and runs as without."""
    stand_in = vars(pipe).get("vae")
    if not isinstance(stand_in, DecoderVAE):
        yield
        return
    stand_in.is_idle = True
    try:
        with replaced(pipe, "vae", stand_in.vae):
            yield
    finally:
        stand_in.is_idle = False


@dataclass(frozen=True)
class _Normalized:
    """A VAE's distribution, of normalised latents."""

    distribution: Any
    normalize: Callable[[Tensor], Tensor]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.normalize(self.distribution.sample(generator))

    def mode(self) -> Tensor:
        return self.normalize(self.distribution.mode())


def _identity(space: LatentSpace, vae: Any) -> Any:
    """The configuration of a VAE of the space that normalises nothing."""
    from diffusers.configuration_utils import FrozenDict

    shape = {"latent_channels": space.raw_channels, "z_dim": space.raw_channels, "block_out_channels": (1,) * _LEVELS}
    means, deviations = ([value] * space.channels if space.video else None for value in (0.0, 1.0))
    nothing = {"scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": means, "latents_std": deviations}
    own = shape if vae is None else dict(vae.config)
    return FrozenDict({**own, **nothing, "batch_norm_eps": 0.0, "force_upcast": False})
