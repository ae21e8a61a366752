"""`PixelDecoder`: a latent becomes an image.

decoder = PixelDecoder.from_pretrained("pixdec-nano")
image = decoder.decode(latent)[0]
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import torch
from torch import Tensor

from pixdec.devices import best_device, computes_in_bfloat16
from pixdec.inference.batches import (
    OutputSize,
    Prompt,
    Seed,
    Sigma,
    batches,
    captions_for,
    in_form,
    joined,
    levels_for,
    requests_of,
    seeds_for,
    sizes_for,
    stacked,
)
from pixdec.inference.denoise import TEACHER_GUIDANCE, TEACHER_STEPS, denoised, is_distilled, times_for
from pixdec.inference.kernels import KernelName
from pixdec.inference.memory import DecodePlan
from pixdec.inference.quantised import Kind as Quantised
from pixdec.inference.runner import CompileMode, Runner
from pixdec.inference.sizes import Frame, Size, check_size, fit
from pixdec.io.arguments import whole
from pixdec.latents import Latent, LatentSpace, get_space
from pixdec.latents.validation import check_form
from pixdec.sampling.samplers import Step
from pixdec.weights.load import LoadedDecoder, load_decoder
from pixdec.weights.lora import Lora, MergedLora, check_strength, read_lora

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from pixdec.integrations.diffusers import Attachment, Stop

__all__ = ["DEFAULT", "TEACHER_STEPS", "Captions", "PixelDecoder"]

DEFAULT = "pixdec-nano"

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Captions = Callable[[Sequence[str], torch.device, torch.dtype], Tensor]


class PixelDecoder:
    """A loaded network with everything it needs to decode latents of its space.

    Attributes: `model`, what was loaded (its name, kind, times, licence); `space`, its latent space; `device`; `dtype`;
    `tile`, the side in pixels of the tiles that network calls run in (`pixdec.sampling.tiling`), a multiple of the
    patch side: None decodes images as a whole within the trained sizes, and in such tiles beyond (`sizes.tile_side`);
    `runner`, how the network is called: its `attention` kernel, its limit of `memory`, `compile`, `quantise`.
    """

    def __init__(
        self, model: LoadedDecoder, captions: Captions | None = None, device: str | torch.device | None = None
    ):
        if model.kind == "prior":
            raise ValueError(
                f"{model.name} is a text-to-image prior and takes no latent; load a decoder, see `pixdec models`"
            )
        self.model = model
        self.network = model.network.eval()
        self.space: LatentSpace = get_space(model.spaces[0])
        weights = self.network.backbone.patch_embed.weight
        self.runner = Runner(model, weights.device if device is None else torch.device(device))
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
        memory: str | int | None = None,
        attention: KernelName = "torch",
        quantise: Quantised | None = None,
        compile: CompileMode | None = None,
    ) -> Self:
        """A decoder by name (`pixdec models` lists them), or from a file or folder.

        device: None takes CUDA, else MPS, else the CPU.
        dtype: None keeps the file's, bfloat16 for the released models and for the bundled one, whose float16 is for the
            disk; but float32 on a CPU without bfloat16 matrix units, where bfloat16 is many times slower.
        space: the latent space where a file alone does not tell (16-channel checkpoints outside their released folder).
        memory: what a decode may take, weights included, such as "8GB", a number of bytes, or "auto", what the device
            has: chunks, tiles, precision and where the weights are follow from it, see `plan`. None does not ask.
        attention: the kernel that computes it, see `pixdec.inference.kernels.choose`; "auto" the fastest trusted one.
        quantise: "int8", "int8-weights" or "fp8": quicker or smaller, but not the same image, see
            `pixdec.inference.quantised`.
        compile: "default", or "graphs" for CUDA graphs too, see `pixdec.inference.compiled`.

        Raises ValueError for an unknown name, a damaged or foreign file, an ambiguous space, or anything that this
        device cannot; OSError if a download fails.
        """
        place = torch.device(device) if device is not None else best_device()
        model = load_decoder(
            name_or_path,
            space=space,
            device=place if memory is None else "cpu",  # it may not fit
            dtype=dtype if dtype is not None or computes_in_bfloat16(place) else torch.float32,
            half=torch.bfloat16,
        )
        decoder = cls(model, _caption_embeddings() if model.needs_text else None, place)
        decoder.runner.memory, decoder.runner.attention = memory, attention
        if quantise is not None:
            decoder.runner.quantise(quantise)
        if compile is not None:
            decoder.runner.compile(compile)
        return decoder

    @property
    def device(self) -> torch.device:
        """Where the network computes, and where decoded tensors come from."""
        return self.runner.device

    @property
    def tile(self) -> int | None:
        """The side in pixels of the tiles that network calls run in."""
        return self.runner.tile

    @tile.setter
    def tile(self, side: int | None) -> None:
        self.runner.tile = side

    def plan(self, height: int, width: int, batch: int = 1) -> DecodePlan:
        """How a batch of outputs of height x width pixels fits in the memory that was allowed, or in what the device
        has: `plan(2048, 2048).lines()` tells in words. ValueError if it does not fit."""
        return self.runner.plan(height, width, batch)

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
        return is_distilled(self.model)

    def load_lora(self, path: "str | Path", strength: float = 1.0) -> None:
        """Adds a LoRA of `pixdec train` to the weights, in the place of one that was there: see `pixdec.weights.lora`.

        Raises ValueError, and leaves all as it is, for a file that is no LoRA or one for another network or latent
        space, or a strength that is not finite.
        """
        check_strength(strength)
        self.runner.check_weights_can_change()
        lora = read_lora(path)
        lora.check(self.network, self.model.name, self.model.spaces)
        self.unload_lora()
        self._merged = MergedLora(self.network, lora)
        self._merged.strength, self.runner.is_changed = strength, True

    def unload_lora(self) -> None:
        """The network as it was, bit for bit; nothing without a LoRA."""
        if self._merged is not None:
            self.runner.check_weights_can_change()
            self._merged.strength = 0.0
        self._merged, self.runner.is_changed = None, False

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
        self.runner.check_weights_can_change()
        self._merged.strength = strength

    @overload
    def decode(
        self,
        latent: Latent | Tensor | Sequence[Latent | Tensor],
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: OutputSize = None,
        output: Literal["pil"] = "pil",
        *,
        batch_size: int | None = None,
    ) -> "list[Image]": ...

    @overload
    def decode(
        self,
        latent: Latent | Tensor,
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: OutputSize = None,
        *,
        output: Literal["pt"],
        batch_size: int | None = None,
    ) -> Tensor: ...

    @overload
    def decode(
        self,
        latent: Sequence[Latent | Tensor],
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: OutputSize = None,
        *,
        output: Literal["pt"],
        batch_size: int | None = None,
    ) -> list[Tensor]: ...

    @overload
    def decode(
        self,
        latent: Latent | Tensor,
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: OutputSize = None,
        *,
        output: Literal["np"],
        batch_size: int | None = None,
    ) -> Array: ...

    @overload
    def decode(
        self,
        latent: Sequence[Latent | Tensor],
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: OutputSize = None,
        *,
        output: Literal["np"],
        batch_size: int | None = None,
    ) -> list[Array]: ...

    def decode(
        self,
        latent: Latent | Tensor | Sequence[Latent | Tensor],
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: OutputSize = None,
        output: Literal["pil", "pt", "np"] = "pil",
        *,
        batch_size: int | None = None,
    ) -> "list[Image] | Tensor | list[Tensor] | Array | list[Array]":
        """Decodes a batch of latents, or a list of batches of any sizes, in order.

        latent: a `Latent`, or a normalised tensor (B,C,h,w) of the decoder's own space; or a list of these.
        prompt: the caption, or one for each image; decoders without text ignore nothing: they refuse a caption.
        sigma: noise level of the latents, one or one for each image; None takes the `Latent`'s (0 for a tensor).
        seed: of the noise, one for each image, or one s for all (image i draws from s + i). The same seed gives the
            same image on every device, alone or in a batch.
        steps: 1 to 4 for the released students, any number for teachers and `pixdec-nano`; None is the model's own.
        size: (height, width) of the images, or one for each latent of a list. The decoder decodes at its own scale,
            H = h·factor·scale, W = w·factor·scale, and the image is resampled, see `inference.sizes.fit`. Its shape is
            kept: a size that both sides do not reach by one factor, to a pixel, is refused. None: H x W.
        output: "pil", a list of all images; "pt", (B,3,H,W) float32 in [0,1] on the decoder's device; "np", (B,H,W,3)
            float32 in [0,1]. For a list of latents, a list of these, one for each.
        batch_size: how many images of one size are decoded at once; None as many as have the pixels of one of
            4096 x 4096. It changes time and memory, and the images by rounding only.

        Raises ValueError for a raw, packed, foreign or non-finite latent, and for any argument that does not fit.
        """
        if output not in ("pil", "pt", "np"):
            raise ValueError(f"output={output!r}: expected 'pil', 'pt' or 'np'")
        batch_size = None if batch_size is None else whole("batch_size", batch_size)
        given = list(latent) if isinstance(latent, Sequence) else [latent]
        if not given:
            raise ValueError("latent=[]: expected one or more latents")
        for each in given:
            if not isinstance(each, Latent):
                check_form(each, self.space)
        latents = [self._accept(*each) for each in zip(given, levels_for(sigma, given), strict=True)]
        requests = requests_of(latents, prompt, seed, size)
        for request in requests:  # all are judged before any is decoded
            self._frame(request.latent, request.size)

        images: list[Any] = [None] * len(requests)
        for batch in batches(requests, lambda request: batch_size or self._at_once(request.latent)):
            captions, seeds = [each.caption for each in batch], [each.seed for each in batch]
            last = deque(self.stream(joined(batch), captions, None, seeds, steps, batch[0].size), maxlen=1).pop()
            for request, image in zip(batch, in_form(last.x0, output), strict=True):
                images[request.place] = image
        if output == "pil":
            return images
        parts = stacked(images, [each.tensor.shape[0] for each in latents])
        return parts[0] if isinstance(latent, Latent | Tensor) else parts

    @torch.inference_mode()
    def stream(
        self,
        latent: Latent | Tensor,
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: Size | None = None,
    ) -> Iterator[Step]:
        """As `decode` of one batch, all of it at once, but yields every step's estimate of the image: `Step.x0`
        (B,3,H,W) float32 in [-1,1], at the model's own size; only that of the last step, the result, has `size`."""
        latent, (size,) = self._accept(latent, sigma), sizes_for(size, 1)
        steps = None if steps is None else whole("steps", steps)
        batch, frame = latent.tensor.shape[0], self._frame(latent, size)
        captions, seeds = captions_for(prompt, batch), seeds_for(seed, batch)
        arranged = self.runner.arrange(*frame.whole, batch)
        tile = None if arranged.tiling is None else next(iter(arranged.tiling))
        seen = frame.whole if tile is None else (tile.height, tile.width)  # what the network sees at a time
        if warning := self.model.size_warning(*seen):
            warnings.warn(warning if tile is None else f"in tiles: {warning}", stacklevel=2)
        times = times_for(self.model, steps, *seen)

        is_teacher = self.model.kind == "teacher"
        for step in denoised(
            self.network,
            latent=frame.pad(latent.tensor.to(self.device)),
            sigma=latent.sigma.to(self.device),
            text=self._embed(captions),
            negative=self._embed([_negative_prompt()] * batch) if is_teacher and self.model.needs_text else None,
            guidance=TEACHER_GUIDANCE if is_teacher else None,
            seeds=seeds,
            times=times,
            size=frame.whole,
            arranged=arranged,
        ):
            image, is_last = frame.crop(step.x0), step.index + 1 == step.total
            yield replace(step, x0=fit(image, size) if is_last and size is not None else image)

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

    def _accept(self, latent: Latent | Tensor, sigma: Sigma) -> Latent:
        """A checked latent of this decoder's space, at the noise level that was asked for."""
        if not isinstance(latent, Latent):
            return Latent(latent, self.space, 0.0 if sigma is None else sigma)
        if not self.space.holds_latents_of(latent.space):
            raise ValueError(
                f"a latent of {latent.space.name} for {self.model.name}, which decodes "
                f"{' and '.join(self.model.spaces)}; take a decoder of {latent.space.name}, see `pixdec models`"
            )
        return latent if sigma is None else latent.with_sigma(sigma)

    def _frame(self, latent: Latent, size: Size | None) -> Frame:
        """What the latent decodes to; ValueError for a size that this cannot be resampled to."""
        rows, columns = latent.tensor.shape[2:]
        frame = Frame.of(rows, columns, self.space.factor * self.scale, self.network.settings.backbone.patch)
        if size is not None:
            check_size(size, frame.size)
        return frame

    def _at_once(self, latent: Latent) -> int:
        """How many images of such latents are decoded together."""
        return self.runner.images_at_once(*self._frame(latent, None).whole)

    def _embed(self, captions: list[str]) -> Tensor | None:
        if self._captions is not None:
            return self._captions(captions, self.device, self.dtype)
        if any(captions):
            raise ValueError(f"{self.model.name} takes no caption, got {captions[0]!r}; leave the prompt empty")
        return None


def _caption_embeddings() -> Captions:
    from pixdec.text import CaptionEmbeddings

    return CaptionEmbeddings()


def _negative_prompt() -> str:
    from pixdec.text import NEGATIVE_PROMPT

    return NEGATIVE_PROMPT
