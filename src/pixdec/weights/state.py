"""The tensors of a network in a file, whatever they are called and however they are kept there, under our keys.

Files put prefixes in front of keys, keep the averaged weights beside others, split the modulation of pixel blocks in
two (ComfyUI), or store weights in float8 with a scale beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pixdec.weights.checkpoint import listed
from pixdec.weights.keymap import OUR_ROOTS, ROOTS, to_original, to_ours

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("scale_weight", "weight_scale")  # beside float8 weights: what they are multiplied by
_UNREAD = ("scale_input", "input_scale", "comfy_quant")  # beside them too: for products in float8
# What wrappers (torch.compile, DDP, FSDP, DeepSpeed) put into a key, anywhere.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_forward_module"}
_DROPPED = ("fake_score.", "discriminator.")  # beside the network in checkpoints of training
_MODULATION, _HALVES = "adaLN_modulation.0", ("adaLN_modulation_msa", "adaLN_modulation_mlp")


@dataclass(frozen=True)
class NetworkTensors:
    """A network's tensors under our keys. `names`: our key -> the file's own; `unknown`: keys that no PiD network has;
    `scales`: of float8 weights, by our key."""

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    unknown: tuple[str, ...]
    original: bool
    scales: Mapping[str, Tensor]

    @classmethod
    def as_they_are(cls, tensors: Mapping[str, Tensor]) -> NetworkTensors:
        """Tensors of another network, which keep their keys."""
        return cls(tensors, {key: key for key in tensors}, (), original=False, scales={})

    def name(self, key: str) -> str:
        """What the file calls one of our keys, or would."""
        if key in self.names or not self.original:
            return self.names.get(key, key)
        return to_original(key)

    def dequantized(self) -> NetworkTensors:
        """With bfloat16, which holds every value of theirs, in the place of float8. Raises ValueError for a scale that
        does not fit its weight."""
        read = {key: _wide(tensor, self.scales.get(key), self.name(key)) for key, tensor in self.tensors.items()}
        return replace(self, tensors=read, scales={})


def network_tensors(tensors: Mapping[str, Tensor]) -> NetworkTensors:
    """Brings tensors in the original's naming or ours, with whatever prefixes, under our keys.

    Raises:
        ValueError: none of them is a tensor of a PiD network.
    """
    bare = network_keys(tensors)
    original = not any(key.split(".")[0] in OUR_ROOTS for key in bare)
    values = {key: tensors[full] for key, full in bare.items()}
    scales = _taken(values)
    _join_modulation(values, scales, bare)
    names: dict[str, str] = {}
    unknown: list[str] = []
    ours: dict[str, str] = {}
    for key in values:
        try:
            ours[key] = to_ours(key) if original else key
            names[ours[key]] = bare[key]
        except ValueError:
            unknown.append(bare[key])
    if not names:
        raise ValueError(f"no decoder: its tensors ({listed(unknown)}) are not those of a PiD or PixelDiT network")
    return NetworkTensors(
        {ours[key]: value for key, value in values.items() if key in ours},
        names,
        tuple(unknown),
        original,
        {ours[key]: scale for key, scale in scales.items() if key in ours},
    )


def network_keys(tensors: Iterable[str]) -> dict[str, str]:
    """Picks the keys of one network: its bare key -> the key in the file.

    Whatever stands in front of most of them is taken off: released files have `net.`, ComfyUI's
    `model.diffusion_model.`, PixelDiT's `core.`, and wrappers leave names of their own anywhere. Averaged weights
    (`net_ema.`) are preferred to others beside them; `fake_score.` and `discriminator.` of training are left out, and
    PixelDiT's `pos_embed`. Other keys stay as they are, for the caller to refuse.

    Raises:
        ValueError: two keys of the file come to the same.
    """
    clean = {full: ".".join(part for part in full.split(".") if part not in _WRAPPERS) for full in tensors}
    kept = {full: key for full, key in clean.items() if not key.startswith(_DROPPED)}
    prefixes = Counter(prefix for key in kept.values() if (prefix := _prefix(key)) is not None)
    averages = {prefix for prefix in prefixes if "ema" in prefix}
    prefix = max(averages or prefixes, key=lambda each: (prefixes[each], each), default="")
    left = tuple(set(prefixes) - {prefix, ""}) if averages else ()
    names: dict[str, str] = {}
    for full, key in kept.items():
        bare = key.removeprefix(prefix)
        if bare == "pos_embed" or (left and key.startswith(left) and not key.startswith(prefix)):
            continue
        if bare in names:
            raise ValueError(f"both {names[bare]} and {full} are the network's {bare}; keep one")
        names[bare] = full
    return names


def _prefix(key: str) -> str | None:
    """What stands in front of a network's own key; None for a key that is none."""
    parts = key.split(".")
    own = next((i for i, part in enumerate(parts) if part in ROOTS), None)
    return None if own is None else "".join(f"{part}." for part in parts[:own])


def _taken(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes what belongs to float8 weights from among the tensors: the scales, by the key of their weight."""
    scales: dict[str, Tensor] = {}
    for key in list(values):
        module, _, last = key.rpartition(".")
        if f"{module}.weight" in values and last in (*_SCALES, *_UNREAD):
            value = values.pop(key)
            if last in _SCALES:
                scales[f"{module}.weight"] = value
        elif key == "scaled_fp8":  # an empty tensor that tells ComfyUI of the others
            values.pop(key)
    return scales


def _wide(tensor: Tensor, scale: Tensor | None, name: str) -> Tensor:
    """A weight in a type to compute in."""
    if tensor.dtype not in FLOAT8:
        return tensor
    if scale is None:
        return tensor.to(torch.bfloat16)
    each = scale.ndim == 1 and scale.numel() > 1  # one for each output channel
    try:
        wide = tensor.float() * scale.float().view((-1, *[1] * (tensor.ndim - 1)) if each else scale.shape)
    except RuntimeError:
        wide = None
    if wide is None or wide.shape != tensor.shape:
        raise ValueError(f"{name} is {list(tensor.shape)} in float8, and its scale {list(scale.shape)}: expected one")
    return wide.to(torch.bfloat16)


def _join_modulation(values: dict[str, Tensor], scales: dict[str, Tensor], names: dict[str, str]) -> None:
    """Puts together what ComfyUI has split: each pixel's six vectors of modulation, (p²·6·c,…), into those of attention
    and those of the MLP, (p²·3·c,…) each, for p² pixels of c channels."""
    embed = values.get("pixel_embedder.proj.weight")
    for key in [key for key in values if f".{_HALVES[0]}." in key]:
        halves = [key.replace(_HALVES[0], half) for half in _HALVES]
        target = key.replace(_HALVES[0], _MODULATION)
        if embed is None or any(half not in values for half in halves) or target in values:
            continue  # refused as tensors that are unexpected
        parts = [_wide(values[half], scales.pop(half, None), names[half]) for half in halves]
        rows = 3 * embed.shape[0]
        if any(part.ndim == 0 or part.shape != parts[0].shape or part.shape[0] % rows for part in parts):
            raise ValueError(f"{names[key]} is {list(parts[0].shape)}: expected a multiple of {rows} rows, as its twin")
        pixels = [part.reshape(-1, rows, *part.shape[1:]) for part in parts]
        for half in halves:
            del values[half]
        values[target] = torch.cat(pixels, 1).flatten(0, 1)
        names[target] = names[key]
