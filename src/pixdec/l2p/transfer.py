"""From a latent generator to a pixel model that has everything of it but the ends, and back from what was trained.

The rule is the release's: PyTorch's own initialisation, over which every tensor of equal name and shape is copied.
What a copy must have and has not is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pixdec.l2p.model import HEAD, PixelModel, PixelSettings, file_name, shapes_of
from pixdec.l2p.weight_files import Weights, check, digest
from pixdec.weights.checkpoint import listed


@dataclass(frozen=True)
class Report:
    """What became of every tensor, by name: `copied`; `new`, without one of that name; `reshaped`, new because the one
    of that name has another shape; `dropped`, of the source alone."""

    copied: tuple[str, ...]
    new: tuple[str, ...]
    reshaped: tuple[str, ...]
    dropped: tuple[str, ...]


def compare(model: PixelModel, source: Mapping[str, tuple[int, ...]]) -> Report:
    """What the rule does with a source's tensors, by name and shape.

    Raises:
        ValueError: the source lacks a tensor besides those that pixels need anew, or has others besides those that they
            replace.
    """
    wanted, kind = shapes_of(model), model.source
    ends = (kind.embedder, *kind.final, HEAD)
    copied = [key for key, shape in wanted.items() if source.get(key) == shape]
    new = [key for key in wanted if key not in source]
    reshaped = [key for key, shape in wanted.items() if key in source and source[key] != shape]
    dropped = [key for key in source if key not in wanted]
    for what, keys in (("lacks", new), ("has, of another shape,", reshaped), ("has besides", dropped)):
        if strange := [key for key in keys if not key.startswith(ends)]:
            raise ValueError(f"the source {what} {listed(strange)}; expected a whole {kind.transformer}")
    return Report(tuple(copied), tuple(new), tuple(reshaped), tuple(dropped))


def transplant(source: Weights, patch: int, seed: int = 42, narrow: int = 1) -> tuple[Weights, Report]:
    """A pixel model to train, of a latent generator or of another pixel model. What is copied stays mapped. `narrow`:
    of the head, see `DetailerSettings`.

    Raises:
        ValueError: there is no such patch, or as `compare`.
    """
    settings = PixelSettings(source.settings.source, source.settings.config, patch, narrow)
    if source.part:
        raise ValueError(f"{source.path}: only what was trained; merge it first (pixdec l2p merge)")
    try:
        model = PixelModel(settings)
        report = compare(model, {key: tuple(tensor.shape) for key, tensor in source.tensors.items()})
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from error
    tensors = _initialised(model, {*report.new, *report.reshaped}, seed)
    tensors |= {key: source.tensors[key] for key in report.copied}
    name = f"{source.name.rstrip('/').rpartition('/')[2]}-pixel{patch}"
    return replace(source, tensors=tensors, settings=settings, name=name), report


def _initialised(model: PixelModel, names: set[str], seed: int) -> dict[str, Tensor]:
    """Fresh tensors of convolutions and linear layers, as PyTorch draws them."""
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            own = [name for name, _ in module.named_parameters(path, recurse=False) if file_name(name) in names]
            if own:
                layer: Any = module.to_empty(device="cpu", recurse=False)
                layer.reset_parameters()
                fresh = {file_name(key): value.detach() for key, value in module.named_parameters(path, recurse=False)}
                found |= {key: value for key, value in fresh.items() if key in names}
    return found


def merge(start: Weights, trained: Weights) -> Weights:
    """The start with what training changed in its place.

    Raises:
        ValueError: `trained` belongs to another start, or has tensors that the start lacks or has in another shape.
    """
    if not trained.part:
        raise ValueError(f"{trained.path}: a whole model, not what training changed; expected its trained.safetensors")
    if trained.settings != start.settings:
        of, it = ({**vars(each.settings), **each.settings.config, "config": ""} for each in (trained, start))
        unlike = ", ".join(
            f"{key} {of.get(key)}, not {it.get(key)}" for key in {**of, **it} if of.get(key) != it.get(key)
        )
        raise ValueError(f"{trained.path}: its start was no model like {start.path} ({unlike}); name that")
    if trained.base and trained.base != (found := digest(start.path)):
        raise ValueError(
            f"{trained.path}: its training began with a file of digest {trained.base[:8]}, and that of {start.path} is "
            f"{found[:8]}; name the start that it began with"
        )
    for key, tensor in trained.tensors.items():
        if key not in start.tensors or start.tensors[key].shape != tensor.shape:
            there = list(start.tensors[key].shape) if key in start.tensors else "missing"
            raise ValueError(f"{trained.path}: {key} is {list(tensor.shape)}, and {there} in {start.path}")
    merged = replace(start, tensors={**start.tensors, **trained.tensors}, name=trained.name, licence=trained.licence)
    check(PixelModel(start.settings), merged.tensors)
    return merged
