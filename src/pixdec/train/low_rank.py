"""LoRA on chosen layers: a stage in which low-rank changes of a few Linears learn, and nothing else does.

Only training needs peft. What it leaves is a small file (`pixdec.weights.lora`), which a decoder takes at any strength.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pixdec.io.quiet import library
from pixdec.l2p.model import PixelModel
from pixdec.models.adapter import SigmaGate
from pixdec.models.pid import PiD
from pixdec.models.pixdit import PixelBlock

NAME = "default"  # peft's for the one LoRA of a network; its files leave it out


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank changes alpha/rank·B·A of the Linears whose names end in one of `layers`, whole dotted parts, in which *
    stands for anything: "qkv", "image.mlp.up", "adapter.heads.*".

    `rank` 0: no LoRA, everything learns as the stage says. `alpha` None is the rank, which makes the factor 1; fix it
    to keep the learning rate when the rank changes.
    """

    rank: int = 0
    alpha: float | None = None
    layers: tuple[str, ...] = ("qkv", "proj")

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank={self.rank}: expected at least 1, or 0 for no LoRA")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"lora.alpha={self.alpha}: expected a number above 0")

    @property
    def factor(self) -> float:
        """alpha, or what stands for it."""
        return float(self.rank) if self.alpha is None else self.alpha


def add_lora(network: PiD | PixelModel, settings: LoraSettings, seed: int = 0) -> None:
    """Puts a LoRA into the chosen Linears, in place, and freezes all else; of a pixel model into its frozen blocks, and
    what learns goes on to. B is zero: nothing changes until it learns.

    Call it when the stage is built, for stages say themselves what learns; before the network is sharded, compiled or
    given to `State`. A's first values follow from `seed` alone. A Linear's own weight is NAME.base_layer.weight then.

    Raises:
        ValueError: peft is not installed, a LoRA is there already, or an ending of `layers` is that of no layer, or of
            one that cannot have a LoRA.
    """
    if settings.rank < 1:
        raise ValueError(f"lora.rank={settings.rank}: expected at least 1")
    if any(".lora_A." in name for name, _ in network.named_parameters()):
        raise ValueError("this network has a LoRA already; add one to a fresh network")
    pixels = isinstance(network, PixelModel)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad and pixels]
    chosen = _frozen_layers(network, settings) if isinstance(network, PixelModel) else chosen_layers(network, settings)
    peft = library("peft", "training a LoRA", "train")
    network.requires_grad_(False)
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.factor, target_modules=list(chosen), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, wherever the network is
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, network, NAME)
    for parameter in learning:
        parameter.requires_grad_(True)


def chosen_layers(network: PiD, settings: LoraSettings) -> tuple[str, ...]:
    """The full names of the Linears that `settings` choose. Raises ValueError as `add_lora`.

    A Linear that has no part in the image is passed over; one whose weight is used without calling it is refused, for
    the network would go on as if its LoRA were not there.
    """
    if not settings.layers:
        raise ValueError("lora.layers is empty: name endings such as qkv and proj")
    linears = dict(_linears(network))
    possible = [name for name, problem in linears.items() if not problem]
    chosen = set[str]()
    for ending in settings.layers:
        fitting = [name for name in possible if _ends(name, ending)]
        bypassed = [name for name, problem in linears.items() if problem == _BYPASSED and _ends(name, ending)]
        if bypassed:
            others = f"; name others more fully, such as {'.'.join(fitting[0].split('.')[-2:])}" if fitting else ""
            raise ValueError(f"lora.layers: {ending!r}: {bypassed[0]} {_BYPASSED}{others}")
        if not fitting:
            parts = [name.split(".")[-2:] for name in possible]
            known = {f"{above}.*" if own.isdigit() else own for above, own in parts}
            raise ValueError(
                f"lora.layers: {ending!r} ends no layer's name; those here end in {', '.join(sorted(known))}"
            )
        chosen.update(fitting)
    return tuple(name for name in possible if name in chosen)


_IDLE = "has no part in the image"
_BYPASSED = "is not called, its weight is used in parts: a LoRA beside it would do nothing"


def _linears(network: PiD) -> Iterator[tuple[str, str]]:
    """The names of all Linears, each with why it cannot have a LoRA ("" if it can)."""
    last = f"backbone.patch_blocks.{network.settings.backbone.depth - 1}.text."
    for name, module in network.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        parent, _, own = name.rpartition(".")
        holder = network.get_submodule(parent)
        if name.startswith((f"{last}proj", f"{last}mlp.", "adapter.aux_rgb.")):
            yield name, _IDLE
        elif isinstance(holder, SigmaGate) or (isinstance(holder, PixelBlock) and own == "modulation"):
            yield name, _BYPASSED
        else:
            yield name, ""


def _frozen_layers(model: PixelModel, settings: LoraSettings) -> list[str]:
    """The chosen Linears of blocks in which nothing learns."""
    names = {module: name for name, module in model.named_modules()}
    blocks = model.source.blocks(model.transformer)
    frozen = [block for block in blocks if not any(parameter.requires_grad for parameter in block.parameters())]
    linears = [names[each] for block in frozen for each in block.modules() if isinstance(each, nn.Linear)]
    chosen = [name for name in linears if any(_ends(name, ending) for ending in settings.layers)]
    if not chosen:
        raise ValueError(f"lora.layers={settings.layers}: none of {len(frozen)} frozen blocks has such layers")
    return chosen


def _ends(name: str, ending: str) -> bool:
    return fnmatchcase(name, ending) or fnmatchcase(name, f"*.{ending}")


def lora_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA among a network's weights (its state_dict, or a run's average of them), under the names that files have:
    those of `peft.get_peft_model_state_dict`. Raises ValueError if there is none."""
    found = {
        key.replace(f".{NAME}.", "."): tensor.detach()
        for key, tensor in weights.items()
        if ".lora_A." in key or ".lora_B." in key
    }
    if not found:
        raise ValueError("these weights hold no LoRA; expected those of a network that add_lora was called with")
    return found
