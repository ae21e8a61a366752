"""From a recipe of L2P to a run: the model that it begins with, its examples, what it leaves.

A run's checkpoints and its result hold what learns and nothing else: `pixdec l2p merge` puts it into its start.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pixdec.io import files
from pixdec.l2p.model import PixelModel, PixelSettings, file_name
from pixdec.l2p.pixel_pipeline import embedding_of
from pixdec.l2p.weight_files import digest, load_model, open_weights, save_weights
from pixdec.train.examples import open_examples
from pixdec.train.low_rank import NAME, LoraSettings, add_lora
from pixdec.train.parallel import join, prepare
from pixdec.train.recipes import PixelRecipe
from pixdec.train.runs import NOTHING, Run, RunOptions
from pixdec.train.stages.l2p import PixelStage
from pixdec.weights.pixels import Z_IMAGE

_BASE = ".base_layer."  # peft's name of what a LoRA changes


def build_pixels(recipe: PixelRecipe, data: str | Path, output: str | Path, options: RunOptions = NOTHING) -> Run:
    """Everything a run needs, loaded and put on its device: `train.build.build` for L2P. `data` are packed shards, with
    the prompts' embeddings if data.precomputed.

    Raises:
        ValueError: a start or data that cannot be used, or settings that do not go together.
        OSError: weights that are not on disk and cannot be fetched.
    """
    start = options.start
    if start is None:
        raise ValueError("--from: name the pixel model to begin with, which `pixdec l2p init` writes")
    if recipe.machine.context != 1:
        raise ValueError(f"machine.context={recipe.machine.context}: images of pixel models are not shared; take 1")
    world = join(options.device, offload=recipe.machine.offload)
    files.prepare([Path(output) / "settings.json"])
    weights = open_weights(start)
    if recipe.data.multiple % weights.settings.multiple:
        raise ValueError(
            f"data.multiple={recipe.data.multiple}: expected a multiple of {weights.settings.multiple}, for patches of "
            f"{weights.settings.patch}"
        )
    source = open_examples(data, recipe, world.share)
    model = load_model(weights, "cpu" if recipe.machine.offload else world.device, torch.float32)
    encoder = embedding_of(model, options.gemma or weights.repository, torch.bfloat16)
    stage = PixelStage(model, recipe.objective, lambda prompts: encoder(prompts, world.device))
    if recipe.lora.rank:
        add_lora(model, recipe.lora, recipe.loop.seed)
    prepare(stage.networks, [], recipe.machine, world)
    began = {"data": str(data), "from": start, "start": digest(weights.path)}
    folder, licence = Path(output), options.licence or weights.licence
    trained = replace(weights, name=folder.resolve().name, licence=licence, base=began["start"])

    def export(path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Only what learnt; a LoRA as the weights that it makes."""
        save_weights(replace(trained, tensors=merged(tensors, recipe.lora), part=True), path)

    return Run(recipe, stage, source, folder, world, began, weights.name, licence, export=export)


def model_on_meta(recipe: PixelRecipe, start: str | None) -> PixelModel:
    """The model that a run would train, without weights; Z-Image's with patches of data.multiple if none is named."""
    settings = (
        PixelSettings("z-image", Z_IMAGE, recipe.data.multiple) if start is None else open_weights(start).settings
    )
    model = PixelModel(settings)
    PixelStage(model, recipe.objective)
    if recipe.lora.rank:
        add_lora(model, recipe.lora)
    return model


def merged(tensors: Mapping[str, Tensor], lora: LoraSettings) -> dict[str, Tensor]:
    """What learnt, by its names in files; W + alpha/rank·B·A where a LoRA did."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".lora_" in key:
            continue
        stem, inside, _ = key.partition(_BASE)
        if inside:
            a, b = (tensors[f"{stem}.lora_{side}.{NAME}.weight"].float() for side in "AB")
            tensor = tensor.float() + lora.factor / lora.rank * (b @ a)
        found[file_name(key.replace(_BASE, "."))] = tensor
    return found
