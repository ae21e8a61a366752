"""From a recipe of L2P to a run: the model that it begins with, its examples, what it leaves.

A run's checkpoints and its result hold what learns and nothing else: `pixdec l2p merge` puts it into its start.
"""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixdec.io import files
from pixdec.l2p.files import digest, load_model, open_weights, save_weights
from pixdec.l2p.model import PixelModel, PixelSettings, file_name
from pixdec.l2p.pipeline import PromptEncoder
from pixdec.train.examples import Source, open_source
from pixdec.train.low_rank import LoraSettings
from pixdec.train.parallel import join, prepare
from pixdec.train.recipes import PixelRecipe
from pixdec.train.runs import Run
from pixdec.train.stages.l2p import EmbedEach, PixelStage
from pixdec.weights.pixels import Z_IMAGE

_LORA, _BASE = "default", ".base_layer."  # peft's names


def build_pixels(
    recipe: PixelRecipe,
    data: str | Path | Source,
    output: str | Path,
    *,
    start: str | Path | None,
    text_encoder: str | None = None,
    device: str | None = None,
    licence: str | None = None,
    embed: EmbedEach | None = None,
) -> Run:
    """Everything a run needs, loaded and put on its device.

    Args:
        recipe: everything that decides the result, but the data.
        data: packed shards, with the prompts' embeddings if data.precomputed; or any source of examples.
        output: the folder of the run.
        start: what `pixdec l2p init` wrote.
        text_encoder: folder or hub id of the source's pipeline; None for the one that `start` names.
        device: None for the fastest there is.
        licence: of the result; None for that of the start.
        embed: in place of the text encoder.

    Raises:
        ValueError: a start or data that cannot be used, or settings that do not go together.
        OSError: weights that are not on disk and cannot be fetched.
    """
    if start is None:
        raise ValueError("--from: name the pixel model to begin with, which `pixdec l2p init` writes")
    if recipe.machine.context != 1:
        raise ValueError(f"machine.context={recipe.machine.context}: images of pixel models are not shared; take 1")
    world = join(device)
    files.prepare([Path(output) / "settings.json"])
    weights = open_weights(start)
    if recipe.data.multiple % weights.settings.multiple:
        raise ValueError(
            f"data.multiple={recipe.data.multiple}: expected a multiple of {weights.settings.multiple}, for patches of "
            f"{weights.settings.patch}"
        )
    source = open_source(data, recipe, world.share) if isinstance(data, str | Path) else data
    model = load_model(weights, world.device, torch.float32)
    encoder = PromptEncoder(model.source, text_encoder or weights.repository, torch.bfloat16)
    stage = PixelStage(model, recipe.objective, embed or (lambda prompts: encoder(prompts, world.device)))
    if recipe.lora.rank:
        add_middle_lora(model, recipe.lora, recipe.loop.seed)
    prepare(stage.networks, [], recipe.machine, world)
    began = {
        "data": str(data) if isinstance(data, str | Path) else "",
        "from": str(start),
        "start": digest(weights.path),
    }
    folder = Path(output)
    trained = replace(weights, name=folder.resolve().name, licence=licence or weights.licence, base=began["start"])

    def export(path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Only what learnt; a LoRA as the weights that it makes."""
        save_weights(replace(trained, tensors=merged(tensors, recipe.lora), part=True), path)

    return Run(recipe, stage, source, folder, world, began, weights.name, trained.licence, export=export)


def model_on_meta(recipe: PixelRecipe, start: str | None) -> PixelModel:
    """The model that a run would train, without weights; Z-Image's with patches of data.multiple if none is named."""
    settings = (
        PixelSettings("z-image", Z_IMAGE, recipe.data.multiple) if start is None else open_weights(start).settings
    )
    model = PixelModel(settings)
    PixelStage(model, recipe.objective)
    if recipe.lora.rank:
        add_middle_lora(model, recipe.lora, 0)
    return model


def add_middle_lora(model: PixelModel, settings: LoraSettings, seed: int) -> None:
    """Puts a LoRA into the Linears of the frozen blocks whose names end in one of `settings.layers`, in place; what
    learns already goes on to. B is zero.

    Raises:
        ValueError: no such layer, or peft is not installed.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    names = {module: name for name, module in model.named_modules()}
    frozen = [
        block
        for block in model.source.blocks(model.transformer)
        if not any(parameter.requires_grad for parameter in block.parameters())
    ]
    chosen = [
        names[module]
        for block in frozen
        for module in block.modules()
        if isinstance(module, nn.Linear) and any(fnmatchcase(names[module], f"*.{each}") for each in settings.layers)
    ]
    if not chosen:
        raise ValueError(f"lora.layers={settings.layers}: none of {len(frozen)} frozen blocks has such layers")
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise ValueError("training a LoRA needs peft: pip install 'pixdec[train]'") from error
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.factor, target_modules=chosen, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model, _LORA)
    for parameter in learning:
        parameter.requires_grad_(True)


def merged(tensors: Mapping[str, Tensor], lora: LoraSettings) -> dict[str, Tensor]:
    """What learnt, by its names in files; W + alpha/rank·B·A where a LoRA did."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".lora_" in key:
            continue
        stem, inside, _ = key.partition(_BASE)
        if inside:
            a, b = (tensors[f"{stem}.lora_{side}.{_LORA}.weight"].float() for side in "AB")
            tensor = tensor.float() + lora.factor / lora.rank * (b @ a)
        found[file_name(key.replace(_BASE, "."))] = tensor
    return found
