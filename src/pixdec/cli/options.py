"""Options that several verbs share: how they are spelt on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pixdec.io.files import first_line_of

if TYPE_CHECKING:
    import torch

Inputs = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN ...", help_behavior_hint="(one or more)")
]
Output = Annotated[str, tyro.conf.arg(aliases=("-o",), metavar="OUT")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Format = Literal["png", "webp", "jpg"]
Dtype = Literal["float32", "bfloat16"]
# As in pixdec.inference, which would import torch.
Attention = Literal["auto", "torch", "math", "flash", "efficient", "cudnn", "flash3", "sage"]
Quantised = Literal["int8", "int8-weights", "fp8"]
Compile = Literal["default", "graphs"]


@dataclass(frozen=True)
class HowToRun:
    """How a decoder's network is called."""

    memory: str | None = None
    """What a decode may take, weights included, such as 8GB, or auto for what the device has: tiles, chunks, precision
    and where the weights are follow from it. Without it nothing is planned."""
    tile: int = 0
    """Decode in overlapping tiles of this many pixels a side, for less memory; 0 leaves it to the model."""
    attention: Attention = "torch"
    """The kernel that computes it; auto takes the fastest that is exact on this device."""
    quantise: Quantised | None = None
    """Compute in eight bits: quicker or smaller, but not the same image."""
    compile: Compile | None = None
    """Compile the network: the first image of a size takes longer, the others less. graphs: with CUDA graphs."""

    @property
    def changes(self) -> dict[str, object]:
        """Those settings that make an image another one, where others change its rounding; None where they do not."""
        kernel = self.attention if self.attention == "sage" else None  # the one that is not exact
        return {"tile": self.tile or None, "quantise": self.quantise, "attention": kernel}


Run = Annotated[HowToRun, tyro.conf.arg(name="")]
AS_IT_IS = HowToRun()


@dataclass(frozen=True)
class DecodeWith:
    """Which decoder makes the images, and how."""

    model: str = "pixdec-nano"
    """The decoder: a name that `pixdec models` lists, or a file or folder of weights."""
    lora: str | None = None
    """A LoRA for the decoder: a file of `pixdec train` with --lora.rank."""
    lora_strength: float = 1.0
    """How much of the LoRA is added: 1 as trained, 0 nothing."""
    space: str | None = None
    """The latent space, where the file of the model or of a latent does not tell: those of FLUX.1, SD3 and Qwen-Image
    look alike."""
    steps: int | None = None
    """Decoding steps; without it as many as the model is made for."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is."""
    dtype: Dtype | None = None
    """Precision of the network; without it what suits the device."""
    how: Run = AS_IT_IS
    plan: Flag = False
    """Print how each image would be decoded within --memory, or in what the device has, and what that would take; make
    none."""
    team: int = 1
    """So many processes of torchrun decode each image together; the others share out the images."""


Decoding = Annotated[DecodeWith, tyro.conf.arg(name="")]
USUAL = DecodeWith()


def torch_dtype(name: Dtype | None) -> torch.dtype | None:
    """The torch dtype of that name."""
    import torch

    return {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def check_refine(steps: int | None) -> None:
    """Raises ValueError for a negative number of steps of --refine; None is the encoder's own."""
    if steps is not None and steps < 0:
        raise ValueError(f"--refine {steps}: expected 0 (the encoder's own latent) or more steps")


def check_device(name: str | None) -> None:
    """See that a device is there before anything is loaded.

    Raises:
        ValueError: PyTorch does not know it, or it is not on this machine.
    """
    if name is None:
        return
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch has no one kind for this
        raise ValueError(f"--device {name}: not available here ({first_line_of(error)})") from error
