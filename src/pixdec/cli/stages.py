"""From the names on the command line to a run: encoders, networks, examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pixdec.encoder import TINY_SPACE, ImageEncoder
from pixdec.evaluate.autoencoders import open_autoencoder
from pixdec.latents import get_space
from pixdec.models.pid import PiD
from pixdec.models.tiny_vae import TinyDecoder
from pixdec.text import GEMMA, NEGATIVE_PROMPT, CaptionEmbeddings
from pixdec.train.decoder import DecoderStage
from pixdec.train.examples import Source, open_source
from pixdec.train.lora import add_lora
from pixdec.train.parallel import Share, World, join, prepare
from pixdec.train.prior import PriorStage
from pixdec.train.recipes import DecoderRecipe, PriorRecipe, Recipe, StudentRecipe
from pixdec.train.representation import Representation
from pixdec.train.runs import Run, draws_for, to_device
from pixdec.train.sheets import SheetInputs, Sheets
from pixdec.train.stages import Conditioner, Embed, Encode, embedded
from pixdec.train.start import Start, start_from
from pixdec.train.student import StudentStage
from pixdec.weights.load import load_autoencoder

if TYPE_CHECKING:
    from pixdec.cli.train import Options


def open_run(recipe: Recipe, options: Options) -> Run:
    """Everything a run needs, loaded and put on its device.

    Raises:
        ValueError: weights that do not fit, an encoder of another space, data that cannot be used.
        OSError: weights that are not on disk and cannot be fetched.
    """
    world = join(options.device, recipe.machine.context)
    source = open_source(options.data, recipe, world.share)
    stage, frozen, start = _stage(recipe, options, world)
    if recipe.lora.rank:
        _refuse_idle_lora(recipe, start)
        add_lora(stage.network, recipe.lora, recipe.loop.seed)
    sheets = _sheets(recipe, stage, lambda few: open_source(options.data, few, Share()), world)
    prepare(stage.networks, frozen, recipe.machine, world)
    began = {
        "data": options.data,
        "from": options.start or "",
        "teacher": options.teacher or "",
        "encoder": " ".join(options.encoder),
    }
    start = start or Start("", LICENCE)
    return Run(
        recipe, stage, source, Path(options.output), world, began, start.name, options.licence or start.licence, sheets
    )


AnyStage = PriorStage | DecoderStage | StudentStage

LICENCE = "Apache-2.0"


def _stage(recipe: Recipe, options: Options, world: World) -> tuple[AnyStage, list[PiD], Start | None]:
    """The stage, the networks it needs that do not learn, and what it begins with."""
    torch.manual_seed(recipe.loop.seed)  # a base decoder's weights are drawn as it is made
    network = PiD(recipe.network).initialise(recipe.loop.seed)
    begin, start = options.start or options.teacher, None
    if begin is not None:
        start = start_from(network, begin)
    elif network.base is not None and not _learns_base(recipe):
        _take_base(network.base, recipe)
    network.to(world.device)
    embed = _embed(recipe, options)
    if isinstance(recipe, PriorRecipe):
        return PriorStage(network, recipe.objective, embed, _representation(recipe, network, options, world)), [], start
    if isinstance(recipe, DecoderRecipe):
        return DecoderStage(network, recipe.objective, _conditioner(recipe, options, world, embed)), [], start
    assert isinstance(recipe, StudentRecipe)
    if options.teacher is None:
        raise ValueError("--teacher: name what the student learns from, such as the folder of a decoder's run")
    teacher = PiD(recipe.network)
    start_from(teacher, options.teacher)
    teacher.to(world.device)
    conditioner = _conditioner(recipe, options, world, embed)
    null = None if embed is None else embed([NEGATIVE_PROMPT])
    seed = recipe.loop.seed
    return StudentStage(network, teacher, recipe.objective, conditioner, recipe.times, null, seed), [teacher], start


def _refuse_idle_lora(recipe: Recipe, start: Start | None) -> None:
    if start is None:
        raise ValueError(f"lora.rank={recipe.lora.rank}: a LoRA changes weights that are there; name them with --from")
    if _learns_base(recipe):
        raise ValueError(f"lora.rank={recipe.lora.rank}: all but the LoRA is frozen; set objective.base to 0")


def _take_base(base: TinyDecoder, recipe: Recipe) -> None:
    bundled = load_autoencoder()
    try:
        base.load_state_dict(bundled.decoder.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"the bundled base decoder has {bundled.settings}, the recipe asks for {recipe.network.base}: set the "
            "same, train the base too with --objective.base 0.5, or begin --from weights that have one"
        ) from error


def _learns_base(recipe: Recipe) -> bool:
    return isinstance(recipe, DecoderRecipe) and recipe.objective.base > 0


def _conditioner(
    recipe: DecoderRecipe | StudentRecipe, options: Options, world: World, embed: Embed | None
) -> Conditioner:
    encoders = [_encoder(name, recipe.space, world.device) for name in options.encoder]
    if not encoders:
        raise ValueError('--encoder: name at least one, such as "tiny"')
    return Conditioner(recipe.objective.conditions, encoders, embed)


def _encoder(name: str, space: str, device: torch.device) -> Encode:
    """Images (B,3,H,W) in [-1,1] on `device` -> normalised latents (B,C,h,w) there."""
    target = get_space(space)
    if name.partition(":")[0] in ("tiny", "taef2") and target.name == TINY_SPACE:
        autoencoder = open_autoencoder(name, target, device)
        return lambda images: autoencoder.encode(images).tensor.to(device)
    if name.startswith("taef2:"):
        raise ValueError(f"--encoder {name}: makes {TINY_SPACE} latents, the recipe's space is {space}")
    own = None if name == "tiny" else name
    if space in ("dinov2", "siglip"):
        from pixdec.integrations.vision import VisionEncoder

        vision = VisionEncoder.from_pretrained(space, own, device=device)
        return lambda images: vision.encode(images).tensor.to(device)
    encoder = ImageEncoder.from_pretrained(space, own, device)
    return lambda images: encoder.encode(images).tensor.to(device)


def _embed(recipe: Recipe, options: Options) -> Embed | None:
    if recipe.network.backbone.text_width is None:
        return None

    return CaptionEmbeddings(options.gemma or GEMMA)


def _representation(recipe: PriorRecipe, network: PiD, options: Options, world: World) -> Representation | None:
    settings = recipe.objective.representation
    if settings.weight == 0:
        return None
    if options.features is None:
        raise ValueError(
            f"representation.weight={settings.weight}: name the vision encoder with --features, "
            "such as facebook/dinov2-with-registers-base"
        )
    from pixdec.integrations.vision import VisionEncoder

    vision = VisionEncoder.from_pretrained("dinov2", options.features, device=world.device)
    representation = Representation(settings, network, lambda images: vision.encode(images).tensor.to(world.device))
    representation.projector.to(world.device)
    return representation


def _sheets(recipe: Recipe, stage: AnyStage, source_of: Callable[[Recipe], Source], world: World) -> Sheets | None:
    """The fixed inputs: the first examples, the same on all processes."""
    count = recipe.folder.sheet_images
    if recipe.folder.sheet_every == 0 or count == 0:
        return None
    few = replace(
        recipe,
        loop=replace(recipe.loop, batch=count, parts=1),
        data=replace(recipe.data, workers=0, streams=None, precomputed=False),
    )
    place, examples = next(source_of(few).begin(0))
    examples, draws = to_device(examples, world.device), draws_for(few, place, world.device)
    if isinstance(stage, PriorStage):
        text = embedded(stage.embed, examples, torch.zeros(count, dtype=torch.bool))
        return Sheets(SheetInputs(examples.images, None, None, text), recipe.folder.sheet_steps, recipe.times, "v1.5")
    plain = replace(stage.conditioner.settings, clean=1.0, drop_caption=0.0, drop_latent=0.0)
    conditions = Conditioner(plain, stage.conditioner.encoders[:1], stage.conditioner.embed)(examples, draws)
    inputs = SheetInputs(examples.images, conditions.low, conditions.latent, conditions.text)
    return Sheets(inputs, recipe.folder.sheet_steps, recipe.times, recipe.version)
