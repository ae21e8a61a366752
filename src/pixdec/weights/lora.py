"""LoRA in files and in loaded networks, without peft.

A LoRA (Hu et al. 2021, arXiv 2106.09685) changes the weight W (out,in) of a Linear by

    W + strength · alpha/rank · B·A,    A (rank,in), B (out,rank)

and `strength` is the dial: 1 as it was trained, 0 the network as it was, below 0 and above 1 whatever comes of it.

It is added into the weights, not beside them: a decode costs nothing more, and whatever else is done to a network
(compiling, tiling, chunks of a layer's weight) sees ordinary Linears. What it costs is a copy of the changed layers'
own weights in main memory, from which every strength is computed afresh and to which 0 returns bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pixdec.io.files import replacing
from pixdec.io.tensor_files import TensorFile, write_safetensors
from pixdec.models.pid import PiD, PiDSettings
from pixdec.weights.checkpoint import listed, open_checkpoint

_A, _B = ".lora_A.weight", ".lora_B.weight"  # peft's names, without those of the adapter and of its wrapper
_FACTS = ("name", "base", "space", "shapes", "licence", "settings")
_UNREAD = "adapter.aux_rgb."  # in training only: a network with it takes the same LoRA as one without


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA as its file has it.

    Attributes:
        name, licence: its own.
        base: the name of what it was trained on; `space`, its latent space, "" for a prior; `shapes`, `shapes_of` it.
        alpha: see above.
        layers: the endings of names that it was trained for.
        pairs: A (rank,in) and B (out,rank), float32, by the name of the Linear.
    """

    path: Path
    name: str
    base: str
    space: str
    shapes: str
    licence: str
    alpha: float
    layers: tuple[str, ...]
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """Of every B·A."""
        return next(iter(self.pairs.values()))[0].shape[0]

    def check(self, network: PiD, name: str, spaces: Sequence[str]) -> None:
        """Raises ValueError unless this was made for a network of these shapes and a latent space among `spaces`;
        `name` is what the network is called in the message."""
        made_for = f"{self.path}: a LoRA for {self.base}"
        if self.space not in spaces:
            what = f"{self.space} latents" if self.space else "images from text alone"
            raise ValueError(f"{made_for}, which makes {what}; {name} decodes {' and '.join(spaces)}")
        if self.shapes == shapes_of(network):
            return
        linears = {key: module for key, module in network.named_modules() if isinstance(module, nn.Linear)}
        for key, (a, b) in self.pairs.items():
            ours = list(linears[key].weight.shape) if key in linears else "missing"
            theirs = [b.shape[0], a.shape[1]]
            if ours != theirs:
                raise ValueError(f"{made_for}, where {key} is {theirs}; in {name} it is {ours}")
        raise ValueError(f"{made_for}, a network of other shapes than {name}, though not in the layers it changes")


class MergedLora:
    """A LoRA in a network's weights. `strength` may be set at any time, from no thread but the one that decodes.

    Sums are float32 (float64 for such weights), rounded once to the dtype of the weights. If the network is moved to
    another device or dtype, set the strength again.
    """

    def __init__(self, network: PiD, lora: Lora):
        """Copies the weights that are to change; `lora.check` must have passed. Strength 0."""
        self.lora, self._strength = lora, 0.0
        self._weights = {key: network.get_parameter(f"{key}.weight") for key in lora.pairs}
        # On the meta device there is nothing to keep: such a network tells only whether the LoRA fits.
        self._originals = {
            key: weight.detach().to("meta" if weight.is_meta else "cpu", copy=True)
            for key, weight in self._weights.items()
        }

    @property
    def strength(self) -> float:
        """How much of the LoRA is in the weights now."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        check_strength(strength)
        with torch.inference_mode():  # in place, also for weights that were loaded in this mode
            for key, weight in self._weights.items():
                original = self._originals[key].to(weight.device)
                if strength == 0:  # not a sum with zeros, whose sign would be the device's to choose
                    weight.copy_(original)
                    continue
                a, b = self.lora.pairs[key]
                precise = torch.promote_types(weight.dtype, torch.float32)
                a, b = a.to(weight.device, precise), b.to(weight.device, precise)
                factor = strength * self.lora.alpha / self.lora.rank
                weight.copy_(torch.addmm(original.to(precise), b, a, alpha=factor))
        self._strength = float(strength)


def check_strength(strength: float) -> None:
    """Raises ValueError for a strength that is not finite."""
    if not math.isfinite(strength):
        raise ValueError(f"LoRA strength {strength}: expected a finite number; 1 is as trained, 0 is without")


def shapes_of(network: PiD) -> str:
    """SHA-256 of the names and shapes of a network's tensors, so that a LoRA knows the like of what it was trained
    on."""
    shapes = sorted((key, list(tensor.shape)) for key, tensor in network.state_dict().items())
    return hashlib.sha256(json.dumps([each for each in shapes if not each[0].startswith(_UNREAD)]).encode()).hexdigest()


def save_lora(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    *,
    alpha: float,
    layers: Sequence[str],
    network: PiDSettings,
    name: str,
    base: str,
    space: str,
    licence: str,
) -> None:
    """Writes a LoRA as safetensors, whole or not at all, in the dtype of `tensors`.

    `tensors` are named NAME.lora_A.weight and NAME.lora_B.weight, as peft's own files name them but for their prefix;
    `network` are the settings of what it was trained on. The rest as `Lora` has it.

    Raises:
        ValueError: tensors that are no LoRA of such a network.
        OSError: `path` cannot be written.
    """
    with torch.device("meta"):
        like = PiD(network)
    settings = {"rank": next(iter(tensors.values())).shape[0] if tensors else 0, "alpha": alpha, "layers": list(layers)}
    metadata = {
        "pixdec": "lora",
        "name": name,
        "base": base,
        "space": space,
        "shapes": shapes_of(like),
        "licence": licence,
        "settings": json.dumps(settings),
    }
    lora = lora_in(TensorFile(Path(path), tensors, metadata, 0))
    for key, (a, b) in lora.pairs.items():
        wanted = like.state_dict().get(f"{key}.weight")
        if wanted is None or list(wanted.shape) != [b.shape[0], a.shape[1]]:
            raise ValueError(f"{path}: {key} is no Linear of the network, or one of other sides")
    with replacing(path) as temporary:
        write_safetensors(temporary, tensors, {key: tensor.dtype for key, tensor in tensors.items()}, metadata)


def read_lora(path: str | Path) -> Lora:
    """A file that `save_lora` wrote, strict.

    Raises:
        ValueError: there is no such file, it is damaged, or it is no LoRA of pixdec.
    """
    checkpoint = open_checkpoint(path)
    try:
        return lora_in(checkpoint)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error


def lora_in(checkpoint: TensorFile) -> Lora:
    """The LoRA in an open file. Raises ValueError, without the file's name, if it is none."""
    facts = checkpoint.metadata
    if facts.get("pixdec") != "lora":
        what = repr(facts["pixdec"]) if "pixdec" in facts else "a file without pixdec's facts"
        raise ValueError(f"no LoRA but {what}; expected one that `pixdec train` wrote with --lora.rank")
    if missing := set(_FACTS) - set(facts):
        raise ValueError(f"its metadata lack {listed(missing)}")
    rank, alpha, layers = _settings(facts["settings"])
    names = [key.removesuffix(_A) for key in checkpoint.tensors if key.endswith(_A)]
    odd = set(checkpoint.tensors) - {name + end for name in names for end in (_A, _B)}
    alone = [name + _B for name in names if name + _B not in checkpoint.tensors]
    if odd or alone or not names:
        problems = {"unexpected": odd, "missing": alone or ([] if names else [f"…{_A}"])}
        found = "; ".join(f"{what} {listed(each)}" for what, each in problems.items() if each)
        raise ValueError(f"its tensors are no LoRA's: {found}")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(names):
        a, b = checkpoint.tensors[name + _A], checkpoint.tensors[name + _B]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise ValueError(f"its {name} has A {list(a.shape)} and B {list(b.shape)}: expected rank {rank}")
        if not (a.is_floating_point() and b.is_floating_point() and a.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"its {name} has values that are not finite numbers")
        pairs[name] = (a.float(), b.float())
    return Lora(
        path=checkpoint.path,
        name=facts["name"],
        base=facts["base"],
        space=facts["space"],
        shapes=facts["shapes"],
        licence=facts["licence"],
        alpha=alpha,
        layers=layers,
        pairs=pairs,
    )


def _settings(text: str) -> tuple[int, float, tuple[str, ...]]:
    """rank, alpha, layers"""
    try:
        values = json.loads(text)
        rank, alpha = int(values["rank"]), float(values["alpha"])
        layers = tuple(str(each) for each in values["layers"])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"its settings are {text}; expected rank, alpha and layers as JSON") from error
    if rank < 1 or not math.isfinite(alpha):
        raise ValueError(f"its settings are {text}; expected a rank of at least 1 and a finite alpha")
    return rank, alpha, layers
