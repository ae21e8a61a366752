"""Prompts → images, by a pixel model and no VAE: shaped like a pipeline of diffusers.

B images · H, W their pixels · T text tokens · E their width
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from pixdec.devices import best_device, device_named, release_memory
from pixdec.inference.config import Quantize
from pixdec.inference.quantize import quantize_linears
from pixdec.io.files import first_line_of, prepare
from pixdec.io.hub import hub_reason
from pixdec.io.tensors import resize, to_pil, to_tensor
from pixdec.l2p.model import BAND_PIXELS, PixelModel, file_name
from pixdec.l2p.sources import Source, diffusers_class
from pixdec.l2p.weight_files import Weights, load_model, open_weights, save_weights
from pixdec.sampling.flow import interpolate, shifted_times
from pixdec.sampling.samplers import euler, guided
from pixdec.text.words import SCHEME, Words

Embed = Callable[[Sequence[str], torch.device], list[Tensor]]  # prompts, where to compute -> (T,E) for each
FILE = "pixel.safetensors"


class PromptEncoder:
    """The text side of the source's own pipeline, loaded with the first prompt; after each call it rests on the CPU if
    `offload`."""

    def __init__(self, source: Source, repository: str, dtype: torch.dtype):
        self.source, self.repository, self.dtype = source, repository, dtype
        self.offload = False
        self._pipe: Any = None

    def __call__(self, prompts: Sequence[str], device: torch.device) -> list[Tensor]:
        """Raises ValueError if the pipeline is not known or cannot be loaded."""
        if self._pipe is None:
            if not self.repository:
                raise ValueError("text_encoder: not stated by the model's file; name the source's pipeline")
            kind = diffusers_class(self.source.pipeline)
            try:
                self._pipe = kind.from_pretrained(self.repository, transformer=None, vae=None, torch_dtype=self.dtype)
            except Exception as error:
                reason = hub_reason(error, self.repository)
                raise ValueError(f"{self.repository}: its text encoder cannot be loaded ({reason})") from error
        self._pipe.to(device)
        with torch.inference_mode():
            found = [each.float() for each in self.source.embed(self._pipe, prompts, device)]
        if self.offload:
            self._pipe.to("cpu")
            release_memory()
        return found


def embedding_of(model: PixelModel, repository: str, dtype: torch.dtype) -> Embed:
    """What embeds prompts for a model: its source's pipeline, or a table of the words that it knows."""
    if repository.startswith(SCHEME):
        return Words.named(repository, model.source.text_width(model.settings.config))
    return PromptEncoder(model.source, repository, dtype)


@dataclass(frozen=True, eq=False)
class PixelPipelineOutput:
    """`images`: PIL images, or (B,3,H,W) "pt" or (B,H,W,3) "np" in [0,1]."""

    images: Any


class PixelPipeline:
    """`pipe(prompt).images`. What a call computes depends on its arguments alone."""

    def __init__(self, model: PixelModel, embed: Embed, weights: Weights | None = None):
        self.model, self.embed, self.weights = model, embed, weights
        self.offloaded_to: torch.device | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        text_encoder: str | None = None,
        device: str | torch.device | None = None,
        torch_dtype: torch.dtype | None = None,
        quantize: Quantize | None = None,
    ) -> Self:
        """A pixel model by its card's name, file, folder or hub repository.

        Args:
            name_or_path: see `open_weights`.
            text_encoder: folder or hub id of the source's pipeline; None for the one that the file states, or the
                family's own.
            device: None for the fastest there is.
            torch_dtype: None for that of most of the file's tensors.
            quantize: the large Linears of the blocks in eight bits. Head, norms and embedders stay as they are, for
                colors would come in bands.

        Raises:
            ValueError, OSError: as `open_weights` and `load_model`, or `quantize_linears`.
        """
        weights = open_weights(name_or_path)
        place = best_device() if device is None else device_named(device)
        model = load_model(weights, place, torch_dtype)
        if quantize is not None:
            quantize_linears(model, large_linears(model), quantize)
        repository = text_encoder or weights.repository or model.source.repository
        embed = embedding_of(model, repository, model.dtype)
        return cls(model, embed, replace(weights, repository=repository))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `pixel.safetensors` into a folder, which `from_pretrained` opens. The text encoder is not copied: the
        file names it.

        Raises:
            ValueError: the pipeline was quantized, or not loaded from a file.
            OSError: it cannot be written.
        """
        tensors = {file_name(key): tensor for key, tensor in self.model.state_dict().items()}
        if self.weights is None or any(type(tensor) is not Tensor for tensor in tensors.values()):
            raise ValueError("save_pretrained: only of what from_pretrained loaded without quantize")
        prepare([Path(folder) / FILE])
        save_weights(replace(self.weights, tensors=tensors), Path(folder) / FILE)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves the model, itself."""
        self.model.to(self.model.device if device is None else device_named(device), dtype or self.model.dtype)
        return self

    def load_lora_weights(self, path: str | Path, strength: float = 1.0) -> None:
        """Adds a LoRA of the source, in whatever form its diffusers pipeline reads, to the weights, for good. What it
        has for layers that the pixel model lacks is left out.

        Raises:
            ValueError: the file cannot be read, or has nothing for this model.
        """
        model: Any = self.model.transformer
        try:
            given = diffusers_class(self.model.source.pipeline).lora_state_dict(str(path))
            loras: Any = given[0] if isinstance(given, tuple) else given
            names = {name for name, _ in model.named_modules()}
            kept = {key: value for key, value in loras.items() if _layer_of(key) in names}
            if not kept:
                raise ValueError("it has no layer of this model")
            model.load_lora_adapter(kept, prefix="transformer")
        except Exception as error:
            raise ValueError(f"{path}: no LoRA that fits ({first_line_of(error)})") from error
        model.fuse_lora(lora_scale=strength)
        model.unload_lora()

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """From now on text encoder and model are on `device` (None: the fastest) only while they work, never
        together."""
        self.offloaded_to = best_device() if device is None else device_named(device)
        self.model.to("cpu")
        if isinstance(self.embed, PromptEncoder):
            self.embed.offload = True

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.0,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], object] | None = None,
        *,
        image: Any = None,
        strength: float = 1.0,
        shift: float | None = None,
        stop_after: int | None = None,
        prompt_embeds: Sequence[Tensor] | None = None,
        negative_prompt_embeds: Sequence[Tensor] | None = None,
        noise: Tensor | None = None,
    ) -> PixelPipelineOutput:
        """Makes images.

        Args:
            prompt: one or several.
            negative_prompt: what guidance leads away from; the empty prompt if None.
            num_inference_steps: Euler steps.
            guidance_scale: s in v_neg + s·(v_pos − v_neg); 1 is none and costs one call a step instead of two.
                Z-Image's pipeline in diffusers counts from 0: its g is s − 1.
            height, width: multiples of the patch; None for the size that the model was trained at, 64 patches.
            num_images_per_prompt: images of one prompt stand beside each other.
            generator: of the noise, one for all images, drawn one after the other, or one for each.
            output_type: see `PixelPipelineOutput`.
            callback_on_step_end: called as diffusers calls it, (pipe, step, noise level, {"latents": x, "x0": …}), with
                x (B,3,H,W) the state after the step.
            image: begins with this image, PIL or (B,3,H,W) in [-1,1], resized, in place of noise alone.
            strength: how much of it is made anew, above 0 to 1: the noise level, before the shift, of the first step.
            shift: of noise levels; None for the family's.
            stop_after: ends after so many steps with the estimate x0 of the clean image.
            prompt_embeds, negative_prompt_embeds: (T,E) for each prompt, in place of texts.
            noise: (B,3,H,W) in place of `generator`.

        Raises:
            ValueError: an argument that does not fit.
        """
        model = self.model
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps}: expected at least 1")
        if not 0 < strength <= 1:
            raise ValueError(f"strength={strength}: expected above 0 to 1")
        if stop_after is not None and not 1 <= stop_after <= num_inference_steps:
            raise ValueError(f"stop_after={stop_after}: expected 1 to {num_inference_steps}, the number of steps")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type!r}: expected 'pil', 'np' or 'pt'")
        size = (height or model.settings.side, width or model.settings.side)
        model.settings.check_size(*size)
        device = self.offloaded_to or model.device
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("expected prompt or prompt_embeds, one of them")
        text, negative = self._texts(prompt, prompt_embeds, device), list[Tensor]()
        if guidance_scale != 1:
            away = self._texts(negative_prompt or "", negative_prompt_embeds, device)
            if len(away) not in (1, len(text)):
                raise ValueError(f"{len(away)} negative prompts for {len(text)} prompts: expected one, or one for each")
            negative = away if len(away) == len(text) else away * len(text)
        text = [each for each in text for _ in range(num_images_per_prompt)]
        negative = [each for each in negative for _ in range(num_images_per_prompt)]
        times = shifted_times(num_inference_steps, model.source.shift if shift is None else shift, strength)
        x = _noise(noise, generator, (len(text), 3, *size)).to(device)
        if image is not None:
            begun = image if isinstance(image, Tensor) else to_tensor(image)
            begun = begun if begun.shape[2:] == size else resize(begun, *size, how="lanczos").clamp(-1, 1)
            x = interpolate(begun.float().to(device).expand_as(x), x, torch.full((len(x),), times[0], device=device))
        elif strength != 1:
            raise ValueError(f"strength={strength}: without an image there is nothing to begin with; leave it out")
        last = x
        with self._at_work(device):
            denoise = guided(_velocity(model, text), _velocity(model, negative), guidance_scale)
            for step in euler(denoise, x, times):
                last = step.x0
                if callback_on_step_end is not None:
                    assert step.x is not None
                    callback_on_step_end(self, step.index, step.t, {"latents": step.x, "x0": step.x0})
                if stop_after == step.index + 1:
                    break
        return PixelPipelineOutput(_in_form(last.clamp(-1, 1), output_type))

    def _texts(
        self, prompts: str | Sequence[str] | None, embeds: Sequence[Tensor] | None, device: torch.device
    ) -> list[Tensor]:
        """Embeddings (T,E) of prompts, where they are not given."""
        if embeds is not None:
            return list(embeds)
        return self.embed([prompts] if isinstance(prompts, str) else list(prompts or ()), device)

    @contextmanager
    def _at_work(self, device: torch.device) -> Any:
        if self.offloaded_to is None:
            yield
            return
        self.model.to(device)
        try:
            yield
        finally:
            self.model.to("cpu")
            release_memory()


def large_linears(model: PixelModel) -> dict[str, nn.Linear]:
    """The products of the blocks that are quantized, by name: no modulation, no embedder, no head."""
    blocks = tuple(f"transformer.{name}." for name in model.source.block_lists)
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(blocks)
        and isinstance(module, nn.Linear)
        and not any(part in name for part in ("adaLN", "_mod."))
        and min(module.in_features, module.out_features) >= 128
        and module.in_features % 16 == module.out_features % 16 == 0
    }


def _layer_of(key: str) -> str:
    """The module that a LoRA's tensor is for."""
    return key.removeprefix("transformer.").partition(".lora_")[0]


def _velocity(model: PixelModel, text: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: model(x, t, text, band=BAND_PIXELS)


def _noise(given: Tensor | None, generator: Any, shape: tuple[int, ...]) -> Tensor:
    """(B,3,H,W) float32; each image's is drawn on its generator's device."""
    if given is not None:
        if tuple(given.shape) != shape:
            raise ValueError(f"noise of {list(given.shape)}: expected {list(shape)}")
        return given.float()
    each = [generator] * shape[0] if generator is None or isinstance(generator, torch.Generator) else list(generator)
    if len(each) != shape[0]:
        raise ValueError(f"{len(each)} generators for {shape[0]} images: expected one, or one for each")
    drawn = [torch.randn((1, *shape[1:]), generator=g, device=None if g is None else g.device) for g in each]
    return torch.cat(drawn)


def _in_form(images: Tensor, output_type: str) -> Any:
    if output_type == "pil":
        return to_pil(images)
    images = (images + 1) / 2
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()
