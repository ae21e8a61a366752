"""`PixelDecoder`: a latent becomes an image.

decoder = PixelDecoder.from_pretrained("pixdec-nano")
image = decoder.decode(latent)[0]
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import torch
from torch import Tensor

from pixdec.devices import best_device, has_bfloat16_units
from pixdec.flow import resolution_shift, shifted_times, student_times
from pixdec.latents import Latent, LatentSpace, get_space
from pixdec.models.pid import Condition
from pixdec.sampling import NoiseSource, Step, dpm_solver, guided, student
from pixdec.tiling import Tiling, tiled_velocity
from pixdec.weights.load import LoadedDecoder, load_decoder
from pixdec.weights.lora import Lora, MergedLora, check_strength, read_lora

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from pixdec.integrations.diffusers import Attachment, Stop

DEFAULT = "pixdec-nano"
TEACHER_STEPS = 25
TEACHER_GUIDANCE = 5.0
TEACHER_START = 0.999  # the first noise level before the shift
TILE = 2048  # output pixels a side: all released models were trained on squares of this size
PIXEL_CHUNK = 1024  # patches that the pixel blocks work on at a time: bounds memory at any image size

Captions = Callable[[Sequence[str], torch.device, torch.dtype], Tensor]


class PixelDecoder:
    """A loaded network with everything it needs to decode latents of its space.

    Attributes: `model`, what was loaded (its name, kind, times, licence); `space`, its latent space; `device`; `dtype`;
    `tile`, the side in pixels of the tiles that network calls run in (see `pixdec.tiling`), a multiple of the patch
    side: None decodes images as a whole within the trained sizes and in tiles of 2048 beyond them.
    """

    def __init__(self, model: LoadedDecoder, captions: Captions | None = None):
        if model.kind == "prior":
            raise ValueError(
                f"{model.name} is a text-to-image prior and takes no latent; load a decoder, see `pixdec models`"
            )
        self.model = model
        self.network = model.network.eval()
        self.space: LatentSpace = get_space(model.spaces[0])
        self.tile: int | None = None
        self._captions = captions
        self._merged: MergedLora | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: "str | Path" = DEFAULT,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        space: str | None = None,
    ) -> Self:
        """A decoder by name (`pixdec models` lists them), or from a file or folder.

        `device` None takes CUDA, else MPS, else the CPU. `dtype` None keeps the file's, bfloat16 for the released
        models, but float32 on a CPU without bfloat16 matrix units, where bfloat16 is many times slower. `space` names
        the latent space where a file alone does not tell (16-channel checkpoints outside their released folder).

        Raises ValueError for an unknown name, a damaged or foreign file, or an ambiguous space; OSError if a download
        fails.
        """
        place = torch.device(device) if device is not None else best_device()
        model = load_decoder(name_or_path, space=space, device=place, dtype=dtype or _quick_dtype(place))
        return cls(model, _caption_embeddings() if model.needs_text else None)

    @property
    def device(self) -> torch.device:
        """Where the network is, and where decoded tensors come from."""
        return self.network.backbone.patch_embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights. Noise levels, gates and the image itself are float32 always."""
        return self.network.backbone.patch_embed.weight.dtype

    @property
    def scale(self) -> int:
        """Output side / nominal image side."""
        return self.model.scale

    @property
    def is_distilled(self) -> bool:
        """Whether the network knows the noise levels of its own list only; ours has learnt all alike."""
        return self.model.kind == "student" and self.network.settings.prediction != "residual"

    def load_lora(self, path: "str | Path", strength: float = 1.0) -> None:
        """Adds a LoRA of `pixdec train` to the weights, in the place of one that was there: see `pixdec.weights.lora`.

        Raises ValueError, and leaves all as it is, for a file that is no LoRA or one for another network or latent
        space, or a strength that is not finite.
        """
        check_strength(strength)
        lora = read_lora(path)
        lora.check(self.network, self.model.name, self.model.spaces)
        self.unload_lora()
        self._merged = MergedLora(self.network, lora)
        self._merged.strength = strength

    def unload_lora(self) -> None:
        """The network as it was, bit for bit; nothing without a LoRA."""
        if self._merged is not None:
            self._merged.strength = 0.0
        self._merged = None

    @property
    def lora(self) -> Lora | None:
        """The LoRA that is loaded."""
        return None if self._merged is None else self._merged.lora

    @property
    def lora_strength(self) -> float:
        """How much of the LoRA is in the weights: 1 as it was trained, 0 none, bit for bit; any number may be set at
        any time between decodes. 0 without one."""
        return 0.0 if self._merged is None else self._merged.strength

    @lora_strength.setter
    def lora_strength(self, strength: float) -> None:
        if self._merged is None:
            raise ValueError(f"lora_strength={strength}: no LoRA is loaded; load_lora comes first")
        self._merged.strength = strength

    @overload
    def decode(
        self,
        latent: Latent | Tensor,
        prompt: str | Sequence[str] = "",
        sigma: float | Sequence[float] | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        output: Literal["pil"] = "pil",
    ) -> "list[Image]": ...

    @overload
    def decode(
        self,
        latent: Latent | Tensor,
        prompt: str | Sequence[str] = "",
        sigma: float | Sequence[float] | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        *,
        output: Literal["pt"],
    ) -> Tensor: ...

    @overload
    def decode(
        self,
        latent: Latent | Tensor,
        prompt: str | Sequence[str] = "",
        sigma: float | Sequence[float] | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        *,
        output: Literal["np"],
    ) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]": ...

    def decode(
        self,
        latent: Latent | Tensor,
        prompt: str | Sequence[str] = "",
        sigma: float | Sequence[float] | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        output: Literal["pil", "pt", "np"] = "pil",
    ) -> "list[Image] | Tensor | np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        """Decodes a batch of latents.

        latent: a `Latent`, or a normalised tensor (B,C,h,w) of the decoder's own space.
        prompt: the caption, or one for each image; decoders without text ignore nothing: they refuse a caption.
        sigma: noise level of the latents, one or one for each; None takes the `Latent`'s (0 for a tensor).
        seed: of the noise, one for each image, or one s for all (image i draws from s + i). The same seed gives the
            same image on every device, alone or in a batch.
        steps: 1 to 4 for the released students, any number for teachers and `pixdec-nano`; None is the model's own.
        size: (height, width) of the output to expect; a check, for nothing is resized: it must be what the latent
            gives.
        output: "pil", a list of B images; "pt", (B,3,H,W) float32 in [0,1] on the decoder's device; "np", (B,H,W,3)
            float32 in [0,1]. H = h·factor·scale, W = w·factor·scale.

        Raises ValueError for a raw, packed, foreign or non-finite latent, and for any argument that does not fit.
        """
        if output not in ("pil", "pt", "np"):
            raise ValueError(f"output={output!r}: expected 'pil', 'pt' or 'np'")
        final: Step | None = None
        for step in self.stream(latent, prompt, sigma, seed, steps, size):
            final = step
        assert final is not None
        images = (final.x0 + 1) / 2
        if output == "pt":
            return images
        array = images.permute(0, 2, 3, 1).cpu().numpy()
        if output == "np":
            return array
        from PIL import Image

        return [Image.fromarray(np.round(each * 255).astype(np.uint8)) for each in array]

    @torch.inference_mode()
    def stream(
        self,
        latent: Latent | Tensor,
        prompt: str | Sequence[str] = "",
        sigma: float | Sequence[float] | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Step]:
        """As `decode`, but yields every step's estimate of the image: `Step.x0` (B,3,H,W) float32 in [-1,1]."""
        latent = self._accept(latent, sigma)
        batch, (height, width) = latent.tensor.shape[0], self._image_size(latent, size)
        captions, seeds = _captions_for(prompt, batch), _seeds_for(seed, batch)
        times = self._times(steps, height, width)
        tiling = self._tiling(height, width)
        if tiling is None and (warning := self.model.size_warning(height, width)):
            warnings.warn(warning, stacklevel=2)

        # What all steps share; the samplers know of x_t and t only.
        text = self._embed(captions)
        condition = self.network.condition(latent.tensor.to(self.device), tokens=tiling is None)
        velocity = partial(self._velocity, condition=condition, sigma=latent.sigma.to(self.device), tiling=tiling)
        noise, shape = NoiseSource(seeds, self.device), (batch, 3, height, width)
        if self.model.kind == "student":
            yield from student(partial(velocity, text=text), noise, shape, times)
            return
        negative = self._embed([_negative_prompt()] * batch)
        denoise = guided(partial(velocity, text=text), partial(velocity, text=negative), TEACHER_GUIDANCE)
        for step in dpm_solver(denoise, noise(shape), times):
            yield replace(step, x0=step.x0.clamp(-1, 1))

    def attach(
        self,
        pipe: Any,
        *,
        stop_after: "Stop" = None,
        space: str | None = None,
        prompt: str | Sequence[str] | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> "Attachment":
        """From now on `pipe(...).images`, of a diffusers pipeline, are decoded by this decoder: see
        `pixdec.integrations.diffusers.attach`. `detach()` of what it returns gives the pipeline back as it was."""
        from pixdec.integrations.diffusers import attach

        return attach(
            pipe,
            self,
            stop_after=stop_after,
            space=space,
            decoder_prompt=prompt,
            decoder_steps=steps,
            decoder_seed=seed,
        )

    def _accept(self, latent: Latent | Tensor, sigma: float | Sequence[float] | Tensor | None) -> Latent:
        """A checked latent of this decoder's space, at the noise level that was asked for."""
        if isinstance(latent, Tensor):
            return Latent(latent, self.space, 0.0 if sigma is None else sigma)
        if not self.space.holds_latents_of(latent.space):
            raise ValueError(
                f"a latent of {latent.space.name} for {self.model.name}, which decodes "
                f"{' and '.join(self.model.spaces)}; take a decoder of {latent.space.name}, see `pixdec models`"
            )
        return latent if sigma is None else Latent(latent.tensor, latent.space, sigma)

    def _image_size(self, latent: Latent, expected: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of the output in pixels; ValueError if another is expected."""
        side = self.space.factor * self.scale
        height, width = latent.tensor.shape[2] * side, latent.tensor.shape[3] * side
        if expected is not None and tuple(expected) != (height, width):
            raise ValueError(
                f"size={tuple(expected)}: this latent decodes to (height, width) = ({height}, {width}); "
                "resize the image afterwards"
            )
        return height, width

    def _times(self, steps: int | None, height: int, width: int) -> list[float]:
        """The noise level of the image at each step, and 0 at the end."""
        if self.model.kind == "student":
            trained = self.model.times
            return student_times(trained, len(trained) - 1 if steps is None else steps, distilled=self.is_distilled)
        shift = resolution_shift(height, width, self.model.version)
        return shifted_times(TEACHER_STEPS if steps is None else steps, shift, TEACHER_START)

    def _tiling(self, height: int, width: int) -> Tiling | None:
        """The tiles of an output of height x width pixels; None to decode it as a whole."""
        side, sizes = self.tile, self.model.sizes
        if side is None and (sizes is None or height * width <= sizes.largest):
            return None
        side = side or TILE
        if max(height, width) <= side:
            return None
        patch = self.network.settings.backbone.patch
        return Tiling(height, width, side, overlap=max(1, round(side / 8 / patch)) * patch, patch=patch)

    def _velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        text: Tensor | None,
        condition: Condition,
        sigma: Tensor,
        tiling: Tiling | None,
    ) -> Tensor:
        """The network's velocity (B,3,H,W), in tiles if there are any. All but x_t and t stay as they are for a whole
        decode."""
        if tiling is None:
            return self.network.velocity(x_t, t, text, condition, sigma, PIXEL_CHUNK)
        return tiled_velocity(
            lambda tile, cropped: self.network.velocity(tile, t, text, cropped, sigma, PIXEL_CHUNK),
            x_t,
            condition,
            tiling,
        )

    def _embed(self, captions: list[str]) -> Tensor | None:
        if self._captions is not None:
            return self._captions(captions, self.device, self.dtype)
        if any(captions):
            raise ValueError(f"{self.model.name} takes no caption, got {captions[0]!r}; leave the prompt empty")
        return None


def _captions_for(prompt: str | Sequence[str], batch: int) -> list[str]:
    captions = [prompt] * batch if isinstance(prompt, str) else list(prompt)
    if len(captions) != batch:
        raise ValueError(f"{len(captions)} captions for {batch} latents; give one, or one for each")
    return captions


def _seeds_for(seed: int | Sequence[int], batch: int) -> list[int]:
    seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} latents; give one, or one for each")
    return seeds


def _quick_dtype(device: torch.device) -> torch.dtype | None:
    """None (keep the file's), but float32 on a processor that would have to emulate bfloat16."""
    return torch.float32 if device.type == "cpu" and not has_bfloat16_units() else None


def _caption_embeddings() -> Captions:
    from pixdec.text import CaptionEmbeddings

    return CaptionEmbeddings()


def _negative_prompt() -> str:
    from pixdec.text import NEGATIVE_PROMPT

    return NEGATIVE_PROMPT
