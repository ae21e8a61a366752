"""What a run of generation is given. Importing this imports nothing heavy: the command line takes its options from
here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixdec.io.arguments import check_range

Dtype = Literal["float32", "bfloat16"]
ImageFormat = Literal["png", "webp", "jpg"]
SEED_LIMIT = 2**62  # PyTorch takes 64 bits, and the seeds of later images are larger
SEEDS_EACH = 1000  # between the first seeds of two prompts, and so the most images of one


@dataclass(frozen=True, kw_only=True)
class PlaceSettings:
    """Where images are made, and in which form they are written."""

    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is."""
    dtype: Dtype | None = None
    """Precision of the networks; without it what suits the device, or that of a pixel model's file."""
    format: ImageFormat | None = None
    """Format of the images in an output folder; png without it."""

    @property
    def suffix(self) -> str:
        """Of the images in an output folder."""
        return f".{self.format or 'png'}"


@dataclass(frozen=True, kw_only=True)
class DecodingSettings(PlaceSettings):
    """What is said of a decoder wherever images are made."""

    lora: str | None = None
    """A LoRA for the decoder: a file of `pixdec train` with --lora.rank."""
    lora_strength: float = 1.0
    """How much of the LoRA is added: 1 as trained, 0 nothing."""
    space: str | None = None
    """The latent space, where no file and no VAE tells: those of FLUX.1, SD3 and Qwen-Image look alike."""
    ray: str | None = None
    """Address of a Ray cluster that makes the images: host:port, ray://host:port, auto for the one that this machine is
    in. All its machines must see the same folders."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings(PlaceSettings):
    """How prompts become images, whatever makes them."""

    seed: int = 0
    """Image k of prompt i (from 0) has the seed SEED + 1000 i + k, whatever else is made."""
    images_per_prompt: int = 1
    """The second of a prompt is NAME-2, and so on."""
    height: int | None = None
    """Of the generator's image, in pixels; without it the generator's own."""
    width: int | None = None
    """Of the generator's image, in pixels."""
    negative: str | None = None
    """The negative prompt, for generators that take one."""
    again: bool = False
    """Make images anew that exist with other settings, instead of stopping."""

    def check(self) -> None:
        """See that the numbers can be.

        Raises:
            ValueError: one line that names the setting.
        """
        for name in ("steps", "stop_after", "decoder_steps", "height", "width"):
            value: object = getattr(self, name, None)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        check_seeds(self.seed, self.images_per_prompt)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(PromptSettings, DecodingSettings):
    """Which generator and decoder make the images, and how."""

    pipeline: str
    """The generator: a hub id, or a folder that pipe.save_pretrained wrote."""
    stop_after: int | Literal["auto"] = "auto"
    """End the generator after so many of its steps; "auto" picks the step, and runs few-step models to their end."""
    decoder: str = "pixdec-nano"
    """A name that `pixdec models` lists, or a file or folder of weights."""
    steps: int | None = None
    """Steps of the generator's full schedule; without it the pipeline's own number."""
    decoder_steps: int | None = None
    """Decoding steps; without it as many as the decoder is made for."""
    guidance: float | None = None
    """The strength of guidance; without it the pipeline's own."""
    save_latents: bool = False
    """Keep each latent beside its image as NAME.safetensors; `pixdec decode` makes the same image of it."""
    latents_only: bool = False
    """Make latents and no images: the decoder is not needed. The same run without this decodes them."""
    offload: bool = False
    """Never hold generator and decoder in memory together: first all latents are made, into a hidden folder in the
    output, then the generator is released and they are decoded. On CUDA each part of the generator is on the GPU only
    while it works. It costs the time to move these parts for every image, disk for the latents, and no image is ready
    before the last latent. Without it both stay on the device."""
    trust: bool = False
    """Accept latents also whose statistics look wrong."""


@dataclass(frozen=True, kw_only=True)
class PixelGenerationSettings(PromptSettings):
    """Which pixel generator makes the images, and how."""

    model: str = "pixdec-l2p"
    """A pixel model: pixdec-l2p (bundled; it knows shapes, colors, places and letters), l2p-1k, a file, or a folder or
    repository of one. Its own size is that of its training."""
    text_encoder: str | None = None
    """Folder or hub id of the source's pipeline; without it the one that the model's file names."""
    steps: int = 30
    """Euler steps."""
    guidance: float = 2.0
    """s in v_neg + s (v_pos - v_neg): 1 is none. The 4K and 8K models are shown with 50 steps and 4."""
    shift: float | None = None
    """Of noise levels; without it 3."""
    image: str | None = None
    """Begin with this image."""
    strength: float = 1.0
    """How much of it is made anew, above 0 to 1."""
    stop_after: int | None = None
    """Stop after so many steps, with the estimate of the clean image."""
    quantize: Literal["int8", "int8-weights"] | None = None
    """The blocks' large products in eight bits; head and norms stay."""
    offload: bool = False
    """Text encoder and model are on the device only while they work, never together."""

    def check(self) -> None:
        """See that the numbers can be.

        Raises:
            ValueError: one line that names the setting.
        """
        super().check()
        if self.stop_after is not None and self.stop_after > self.steps:
            raise ValueError(f"stop_after={self.stop_after}: the run has {self.steps} steps")
        if not 0 < self.strength <= 1 or (self.strength < 1 and self.image is None):
            raise ValueError(f"strength={self.strength}: expected above 0 to 1, and below 1 only with an image")


@dataclass(frozen=True)
class SynthesisSettings:
    """Which images a source makes for training."""

    seed: int = 0
    """Image k of prompt i (from 0) has the seed SEED + 1000 i + k, or that of its line + k."""
    images_per_prompt: int = 2
    """Images of each prompt."""
    shard: int = 500
    """Images in a shard."""
    batch: int = 1
    """Images of one call of the source."""

    def __post_init__(self) -> None:
        check_range(self, ("shard", "batch"), 1)
        check_seeds(self.seed, self.images_per_prompt)


def check_seeds(seed: int, images_per_prompt: int) -> None:
    """ValueError for a seed, or a number of images of each prompt, that seeds of all images cannot be made of."""
    if not 1 <= images_per_prompt <= SEEDS_EACH:
        raise ValueError(f"images_per_prompt={images_per_prompt}: expected 1 to {SEEDS_EACH}")
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed={seed}: expected 0 to {SEED_LIMIT - 1}")
