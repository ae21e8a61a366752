"""Options that several verbs share: declared once, and how they are spelt on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro

from pixdec.cli.report import Made, in_steps
from pixdec.generation.settings import DecodingSettings, Dtype

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from pixdec.decoder import PixelDecoder
    from pixdec.inference.config import InferenceConfig

T = TypeVar("T")
Maker = Callable[["PixelDecoder", Callable[[int], None]], Callable[[T], Made]]
"""Of a decoder, and what is told every step: what makes one image."""
Inputs = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN ...", help_behavior_hint="(one or more)")
]
Output = Annotated[str, tyro.conf.arg(aliases=("-o",), metavar="OUT")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Json = Annotated[Flag, tyro.conf.arg(help="Print JSON, one object a line, for each result.")]
# As in pixdec.inference.config, which would import torch.
Attention = Literal["auto", "torch", "math", "flash", "efficient", "cudnn", "flash3", "sage"]
Quantize = Literal["int8", "int8-weights", "fp8"]
Compile = Literal["default", "graphs"]

# Spellings of earlier versions, which are taken for one release.
OLD_OPTIONS = {
    "--caption": "--prompt",
    "--quantise": "--quantize",
    "--data.fit.centre": "--data.fit.center",
    "--data.crops.size": "--data.base",
    "--data.crops.zoom": "--data.fit.zoom",
    "--data.crops.unscaled": "--data.fit.unscaled",
    "--data.crops.synthetic": "--data.pages",
}
GONE_OPTIONS = frozenset({"--refine", "--network.deblock", "--data.crops.candidates"})  # with their value


@dataclass(frozen=True)
class RunOptions:
    """How a decoder's network is called: `InferenceConfig`."""

    memory: str | None = None
    """What a decode may take, weights included, such as 8GB, or auto for what the device has: tiles, chunks, precision
    and where the weights are follow from it. Without it nothing is planned."""
    tile: int = 0
    """Decode in overlapping tiles of this many pixels a side, for less memory; 0 leaves it to the model."""
    attention: Attention = "torch"
    """The kernel that computes it; auto takes the fastest that is exact on this device."""
    quantize: Quantize | None = None
    """Compute in eight bits: quicker or smaller, but not the same image."""
    compile: Compile | None = None
    """Compile the network: the first image of a size takes longer, the others less. graphs: with CUDA graphs."""

    def config(self) -> InferenceConfig:
        """As `PixelDecoder` takes it.

        Raises:
            ValueError: an amount of memory that is none.
        """
        from pixdec.inference.config import InferenceConfig

        return InferenceConfig(
            attention=self.attention,
            compile=self.compile,
            memory=self.memory,
            tile=self.tile or None,
            quantize=self.quantize,
        )


Run = Annotated[RunOptions, tyro.conf.arg(name="")]
AS_IT_IS = RunOptions()


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(DecodingSettings):
    """Which decoder makes the images, and how."""

    model: str = "pixdec-nano"
    """The decoder: a name that `pixdec models` lists, or a file or folder of weights."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub, instead of the one that is pinned here or its main branch."""
    steps: int | None = None
    """Decoding steps; without it as many as the model is made for."""
    how: Run = AS_IT_IS
    plan: Flag = False
    """Print how each image would be decoded within --memory, or in what the device has, and what that would take; make
    none."""
    again: Flag = False
    """Make images anew that exist with the same settings; without it they are skipped."""
    json: Json = False

    def check(self) -> None:
        """See, before anything is loaded, that the device is there and can do what is asked.

        Raises:
            ValueError: one line that names the option.
        """
        import torch

        from pixdec.devices import best_device
        from pixdec.inference.kernels import kernel_of

        if self.lora is None and self.lora_strength != 1:
            raise ValueError(f"lora_strength={self.lora_strength}: of which LoRA? Name its file with --lora")
        if self.ray is not None:  # what its machines have is theirs to say
            if self.plan:
                raise ValueError(f"ray={self.ray}: --plan is of this machine; leave one out")
            return
        check_device(self.device)
        self.how.config().check(best_device() if self.device is None else torch.device(self.device))
        if self.how.attention != "auto":
            kernel_of(self.how.attention)

    def here(self) -> DecodeOptions:
        """For the decoder of this process: one without weights where others make the images."""
        return self if self.ray is None else replace(self, device="meta", how=RunOptions(tile=self.how.tile))

    def results(
        self, maker: Maker[T], todo: Sequence[T], decoder: PixelDecoder, bar: tqdm[None]
    ) -> Iterator[tuple[T, Made | Exception]]:
        """Make the images, here with this decoder or on a Ray cluster, and yield what became of each."""
        from pixdec.generation.ray import on_ray, one_by_one

        if not todo:
            return
        if self.ray is None:
            yield from one_by_one(maker(decoder, in_steps(bar)), todo)
            return
        for each in on_ray(partial(_elsewhere, maker, self), todo, self.ray):
            bar.update()
            yield each

    def open(self, prompt: str = "") -> PixelDecoder:
        """The decoder, which takes this prompt.

        Raises:
            ValueError, OSError: as `generation.decoding.open_decoder`; a prompt for a decoder without text.
        """
        from pixdec.generation.decoding import open_decoder

        decoder = open_decoder(self.model, self, self.how.config(), steps=self.steps, revision=self.revision)
        if prompt and not decoder.model.needs_text:
            raise ValueError(f"prompt={prompt!r}: {decoder.model.name} takes no text; leave it out")
        return decoder

    def asked(self, decoder: PixelDecoder) -> dict[str, object]:
        """What an image depends on of these options, for `generation.records`."""
        from pixdec.generation.records import changed_by, fingerprint, weights_fingerprint

        return {
            "model": decoder.model.name,
            "weights": weights_fingerprint(self.model, self.revision),
            "space": decoder.space.name,
            "scale": decoder.scale,
            "steps": self.steps,
            "lora": None if decoder.lora is None else decoder.lora.name,
            "lora_weights": None if self.lora is None else fingerprint(self.lora),
            "lora_strength": None if self.lora is None else self.lora_strength,
            "dtype": self.dtype,
            **changed_by(self.how.config()),
        }


def _elsewhere(maker: Maker[T], by: DecodeOptions) -> Callable[[T], Made]:
    """Called by a worker of a Ray cluster."""
    return maker(by.open(), lambda of: None)


Decoding = Annotated[DecodeOptions, tyro.conf.arg(name="")]
USUAL = DecodeOptions()


def torch_dtype(name: Dtype | None) -> torch.dtype | None:
    """The torch dtype of that name."""
    import torch

    return {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def check_device(name: str | None) -> None:
    """See that a device is there before anything is loaded.

    Raises:
        ValueError: PyTorch does not know it, or it is not on this machine.
    """
    if name is not None:
        from pixdec.devices import device_named

        if device_named(name).type == "meta":
            raise ValueError(f"device={name!r}: computes nothing; expected cpu, cuda, cuda:N or mps")


def parse_size(text: str) -> tuple[int, int]:
    """The (height, width) of `--size WIDTHxHEIGHT`.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise ValueError(f"size={text}: expected WIDTHxHEIGHT in pixels, such as 1920x1280")
    return int(found[2]), int(found[1])
