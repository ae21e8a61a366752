"""`PixelDecoder`: a latent becomes an image.

decoder = PixelDecoder.from_pretrained("pixdec-nano")
image = decoder.decode(latent)[0]
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from pixdec.devices import best_device, computes_in_bfloat16, device_named
from pixdec.encoder import given_to
from pixdec.inference.budget import DecodePlan
from pixdec.inference.config import InferenceConfig, config_of
from pixdec.inference.engine import TEACHER_STEPS, Captions, DecodeStep, Engine
from pixdec.inference.forms import in_form, stacked
from pixdec.inference.requests import Batch, OutputSize, Prompt, Seed, Sigma, requests_for, tensor_of
from pixdec.inference.sizes import Size
from pixdec.io.arguments import whole
from pixdec.io.hub import Access
from pixdec.latents import Latent, LatentSpace, get_space
from pixdec.models.nano import Nano
from pixdec.models.network import Network
from pixdec.text import CaptionEmbeddings
from pixdec.weights.identify import to_metadata
from pixdec.weights.load import LoadedDecoder, load_decoder, write_weights
from pixdec.weights.lora import Lora, MergedLora, check_strength, read_lora

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixdec.integrations.diffusers import Attachment, DecoderVAE, Stop

__all__ = ["DEFAULT", "TEACHER_STEPS", "Captions", "InferenceConfig", "PixelDecoder"]

DEFAULT = "pixdec-nano"

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
# Called after every step as diffusers calls its own: (decoder, step, noise level, {"x0": …}).
Callback = Callable[["PixelDecoder", int, float, dict[str, Tensor]], object]
One = Latent | Tensor
Many = Sequence[One]


class How(TypedDict, total=False):
    """What `PixelDecoder.decode` takes by name besides; see there."""

    sigma: Sigma
    seed: Seed
    steps: int | None
    size: OutputSize
    batch_size: int | None
    config: InferenceConfig | None
    callback_on_step_end: Callback | None


class PixelDecoder:
    """A loaded network with everything it needs to decode latents of its space.

    It may be called from several threads at once: how a decode is run is an `InferenceConfig` that goes with each call,
    and the network that was loaded is the same before and after.

    Attributes:
        model: what was loaded: its network, name, kind, times and licence.
        space: its latent space.
        config: how decodes are run that do not say it themselves.
    """

    def __init__(
        self,
        model: LoadedDecoder,
        captions: Captions | None = None,
        device: str | torch.device | None = None,
        config: InferenceConfig | None = None,
    ):
        if model.kind == "prior":
            raise ValueError(
                f"{model.name} is a text-to-image prior and takes no latent; load a decoder, see `pixdec models`"
            )
        self.model = model
        model.network.eval()
        self.space: LatentSpace = get_space(model.spaces[0])
        self.config = config_of(config, InferenceConfig())
        self._engine = Engine(model, model.network.device if device is None else torch.device(device), captions)
        self._merged: MergedLora | None = None
        self.config.check(self.device)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        space: str | None = None,
        config: InferenceConfig | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        **old: Any,
    ) -> Self:
        """A decoder by name (`pixdec models` lists them), from a file or folder, or from a repository of the hub.

        Args:
            name_or_path: the bundled decoder if nothing is named; "someone/my-decoder" is what `save_pretrained` wrote,
                on the hub.
            device: None takes CUDA, else MPS, else the CPU.
            dtype: None keeps the file's, bfloat16 for the released models and for the bundled one, whose float16 is for
                the disk; but float32 on a CPU without bfloat16 matrix units, where bfloat16 is many times slower.
            space: the latent space where a file alone does not tell (16-channel checkpoints outside their released
                folder).
            config: how decodes are run that do not say it themselves.
            revision: branch, tag or commit of a hub repository; None is the pinned one, or the main branch.
            local_files_only: look into the hub's cache only.
            token: for the hub; None is that of `hf auth login` or HF_TOKEN.
            **old: parts of the config by the names of earlier versions (memory, attention, quantise, compile); these
                warn.

        Raises:
            ValueError: an unknown name, a damaged or foreign file, an ambiguous space, or what this device cannot do.
            OSError: a download failed.
        """
        config = config_of(config, InferenceConfig()).with_old_names(old)
        place = device_named(device) if device is not None else best_device()
        config.check(place)
        copied = config.memory is not None or config.quantize is not None or config.offload
        model = load_decoder(
            name_or_path,
            space=space,
            device="cpu" if copied else place,  # where only a copy of other weights goes to the device
            dtype=dtype if dtype is not None or computes_in_bfloat16(place) else torch.float32,
            half=torch.bfloat16,
            access=Access(revision, token, local_files_only),
        )
        return cls(model, CaptionEmbeddings() if model.needs_text else None, place, config)

    def save_pretrained(self, folder: str | Path, name: str | None = None) -> None:
        """Writes a folder that `from_pretrained` reads, here or as a repository of the hub: model.safetensors, which
        says what it is. Weights are saved as they are, a loaded LoRA at its strength among them.

        Args:
            folder: made if it is not there.
            name: what the decoder is called; None keeps its name.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        facts = to_metadata(replace(self.model, name=name or self.model.name))
        write_weights(self.network.state_dict(), path / "model.safetensors", facts)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves the network to another device or dtype, itself.

        Raises:
            ValueError: the config asks for what the device cannot do.
        """
        place = self.device if device is None else device_named(device)
        self.config.check(place)
        self.network.to(place, dtype or self.dtype)
        if self._merged is not None:
            self._merged.strength = self._merged.strength  # computed afresh, in the new precision
        self._engine = Engine(self.model, place, self._engine.embed)
        return self

    @property
    def network(self) -> Network:
        """What was loaded; no call changes it."""
        return self.model.network

    @property
    def captions(self) -> Captions | None:
        """What makes the embeddings of captions, None for networks that read none; may be replaced."""
        return self._engine.embed

    @captions.setter
    def captions(self, captions: Captions | None) -> None:
        self._engine.embed = captions

    @property
    def device(self) -> torch.device:
        """Where the network computes, and where decoded tensors come from."""
        return self._engine.device

    def prepare(self, config: InferenceConfig | None = None) -> Network:
        """Makes ready what decodes with a config need, a copy of the network of other weights, and returns the network
        that they call: the first of them need not wait for it, and what cannot be is refused now.

        Raises:
            ValueError: the device cannot do it.
        """
        return self._engine.prepare(config_of(config, self.config))

    def plan(self, height: int, width: int, batch: int = 1, config: InferenceConfig | None = None) -> DecodePlan:
        """How a batch of outputs of height x width pixels fits in the memory that was allowed, or in what the device
        has: `plan(2048, 2048).lines()` tells in words.

        Raises:
            ValueError: it does not fit.
        """
        return self._engine.plan((height, width), batch, config_of(config, self.config))

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights. Noise levels, gates and the image itself are float32 always."""
        return self.network.dtype

    @property
    def scale(self) -> int:
        """Output side / nominal image side."""
        return self.model.scale

    def load_lora(self, path: str | Path, strength: float = 1.0) -> None:
        """Adds a LoRA of `pixdec train` to the weights, in the place of one that was there: see `pixdec.weights.lora`.

        Raises ValueError, and leaves all as it is, for a file that is no LoRA or one for another network or latent
        space, or a strength that is not finite.
        """
        check_strength(strength)
        lora, network = read_lora(path), self.network
        if isinstance(network, Nano):
            raise ValueError(f"{path}: {self.model.name} takes no LoRA; load the decoder that it was trained for")
        lora.check(network, self.model.name, self.model.spaces)
        self.unload_lora()
        self._merged = MergedLora(network, lora)
        self.lora_strength = strength

    def unload_lora(self) -> None:
        """The network as it was, bit for bit; nothing without a LoRA."""
        if self._merged is not None:
            self.lora_strength = 0.0
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
        self._engine.forget()

    @overload
    def decode(
        self, latent: One | Many, prompt: Prompt = "", *, output: Literal["pil"] = "pil", **how: Unpack[How]
    ) -> "list[Image]": ...
    @overload
    def decode(self, latent: One, prompt: Prompt = "", *, output: Literal["pt"], **how: Unpack[How]) -> Tensor: ...
    @overload
    def decode(
        self, latent: Many, prompt: Prompt = "", *, output: Literal["pt"], **how: Unpack[How]
    ) -> list[Tensor]: ...
    @overload
    def decode(self, latent: One, prompt: Prompt = "", *, output: Literal["np"], **how: Unpack[How]) -> Array: ...
    @overload
    def decode(
        self, latent: Many, prompt: Prompt = "", *, output: Literal["np"], **how: Unpack[How]
    ) -> list[Array]: ...
    def decode(
        self,
        latent: One | Many,
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: OutputSize = None,
        output: Literal["pil", "pt", "np"] = "pil",
        *,
        batch_size: int | None = None,
        config: InferenceConfig | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> "list[Image] | Tensor | list[Tensor] | Array | list[Array]":
        """Decodes a batch of latents, or a list of batches of any sizes, in order.

        Args:
            latent: a `Latent`, or a normalised tensor (B,C,h,w) of the decoder's own space; or a list of these.
            prompt: the caption, or one for each image; decoders without text ignore nothing: they refuse a caption.
            sigma: noise level of the latents, one or one for each image; None takes the `Latent`'s (0 for a tensor).
            seed: of the noise, one for each image, or one s for all (image i draws from s + i). The same seed gives the
                same image on every device, alone or in a batch.
            steps: 1 to 4 for the released students and `pixdec-nano`, any number for teachers; None is the model's own:
                4, or 1 of `pixdec-nano`, whose later steps add little.
            size: (height, width) of the images, or one for each latent of a list. The decoder decodes at its own scale,
                H = h·factor·scale, W = w·factor·scale, and the image is resampled, see `inference.sizes.fit`. Its shape
                is kept: a size that both sides do not reach by one factor, to a pixel, is refused. None: H x W.
            output: "pil", a list of all images; "pt", (B,3,H,W) float32 in [0,1] on the decoder's device; "np",
                (B,H,W,3) float32 in [0,1]. For a list of latents, a list of these, one for each.
            batch_size: how many images of one size are decoded at once; None as many as have the pixels of one of
                4096 x 4096. It changes time and memory, and the images by rounding only.
            config: how it is run; None as `self.config` has it.
            callback_on_step_end: called after every step of every batch, as diffusers calls its own:
                (decoder, step, noise level, {"x0": (B,3,H,W) in [-1,1]}). What it returns is not looked at.

        Raises:
            ValueError: a raw, packed, foreign or non-finite latent, any argument that does not fit, and an image that
                the device has not enough memory for, however little of it is computed at a time.
        """
        if output not in ("pil", "pt", "np"):
            raise ValueError(f"output={output!r}: expected 'pil', 'pt' or 'np'")
        if not (callback_on_step_end is None or callable(callback_on_step_end)):
            raise ValueError(f"callback_on_step_end={callback_on_step_end!r}: expected a function")
        batch_size = None if batch_size is None else whole("batch_size", batch_size)
        given = [given_to(self.space, each) for each in (latent if isinstance(latent, Sequence) else [latent])]
        if not given:
            raise ValueError("latent=[]: expected one or more latents")
        requests, config = requests_for(self.model, given, prompt, sigma, seed, size), config_of(config, self.config)

        images: list[Any] = [None] * len(requests)
        for batch in self._engine.batches(requests, config, batch_size):
            for part, step in self._engine.decoded(batch, steps, config):
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step.index, step.t, {"x0": step.x0})
                if step.index + 1 == step.total:
                    for place, image in zip(part.places, in_form(step.x0, output), strict=True):
                        images[place] = image
        if output == "pil":
            return images
        parts = stacked(images, [tensor_of(each).shape[0] for each in given])
        return parts if isinstance(latent, Sequence) else parts[0]

    def stream(
        self,
        latent: Latent | Tensor,
        prompt: Prompt = "",
        sigma: Sigma = None,
        seed: Seed = 0,
        steps: int | None = None,
        size: Size | None = None,
        *,
        config: InferenceConfig | None = None,
    ) -> Generator[DecodeStep, Sequence[int] | None]:
        """As `decode` of one batch, all of it at once, but yields every step's estimate of the image: `x0` (B,3,H,W)
        float32 in [-1,1], at the model's own size; only that of the last step, the result, has `size`. `how` says how
        the network was called. `send` takes the rows that are still wanted, if not all are: no others are computed.

        Raises:
            ValueError: as `decode`.
        """
        requests = requests_for(self.model, [given_to(self.space, latent)], prompt, sigma, seed, size)
        return self._engine.steps(Batch(range(len(requests)), requests), steps, config_of(config, self.config))

    def as_vae(
        self,
        vae: Any = None,
        *,
        prompt: str | Sequence[str] = "",
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> "DecoderVAE":
        """What takes the place of a diffusers pipeline's VAE: `pipe.vae = decoder.as_vae()`, and its images are ours.

        Args:
            vae: the pipeline's own VAE, for a decoder of `rgb`, which enlarges what that decodes, and for pipelines
                that encode images too.
            prompt: for decoders that read text; the pipeline's own does not reach its VAE. `attach` knows it.
            steps: see `decode`.
            seed: see `decode`.

        Raises:
            ValueError: there is no VAE where one is needed, or one of another space.
        """
        from pixdec.integrations.diffusers import DecoderOptions, DecoderVAE

        return DecoderVAE(self, vae, DecoderOptions(prompt, steps, seed))

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

        how: dict[str, Any] = {"decoder_prompt": prompt, "decoder_steps": steps, "decoder_seed": seed}
        return attach(pipe, self, stop_after=stop_after, space=space, **how)
