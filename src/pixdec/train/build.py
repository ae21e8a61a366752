"""From a recipe to a run: networks, encoders and examples, loaded and laid on their devices.

for step in train(decoder_tiny(), "photos", "runs/mine"):
    print(step.step, step.losses["total"])
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pixdec.encoder import TINY_SPACE, ImageEncoder
from pixdec.io import files
from pixdec.latents import get_space
from pixdec.models.pid import PiD
from pixdec.models.taef2 import load_taef2
from pixdec.text import GEMMA, CaptionEmbeddings
from pixdec.train.build_pixels import build_pixels
from pixdec.train.draws import Draws
from pixdec.train.examples import open_examples
from pixdec.train.loop import Progress
from pixdec.train.low_rank import add_lora
from pixdec.train.parallel import Share, join, prepare
from pixdec.train.recipes import AnyRecipe, DecoderRecipe, PixelRecipe, PriorRecipe, Recipe, StudentRecipe
from pixdec.train.representation import Representation
from pixdec.train.runs import NOTHING, Run, RunOptions
from pixdec.train.sample_sheets import Sheets
from pixdec.train.stages.decoder import DecoderStage
from pixdec.train.stages.prior import PriorStage
from pixdec.train.stages.stage import Conditioner, ConditionSettings, Embed, Encode, embedded
from pixdec.train.stages.student import StudentStage
from pixdec.train.start import Start, start_from

LICENCE = "Apache-2.0"
AnyStage = PriorStage | DecoderStage | StudentStage


def train(recipe: AnyRecipe, data: str | Path, output: str | Path, options: RunOptions = NOTHING) -> Iterator[Progress]:
    """Begins the run in the folder `output`, or goes on with it, and yields after every step.

    Args:
        recipe: everything that decides the result, but the data (`pixdec.train.recipes`).
        data: packed shards, their index or URL; or a folder of images.
        output: the folder of the run (`pixdec.train.runs`).
        options: what it begins with and is fed.

    Raises:
        ValueError, OSError: as `build` and `Run.go`.
        FloatingPointError: a gradient was not finite.
    """
    yield from build(recipe, data, output, options).go()


def build(recipe: AnyRecipe, data: str | Path, output: str | Path, options: RunOptions = NOTHING) -> Run:
    """Everything a run needs, loaded and put on its device; see `train`.

    Raises:
        ValueError: weights that do not fit, an encoder of another space, data that cannot be used.
        OSError: weights that are not on disk and cannot be fetched.
    """
    if isinstance(recipe, PixelRecipe):
        return build_pixels(recipe, data, output, options)
    world = join(options.device, recipe.machine.context, offload=recipe.machine.offload)
    files.prepare([Path(output) / "settings.json"])  # before anything is loaded
    source = open_examples(data, recipe, world.share)
    with torch.random.fork_rng(devices=[]):  # biases are drawn as the network is made
        torch.manual_seed(recipe.loop.seed)
        network = PiD(recipe.network).initialize(recipe.loop.seed)
    start = None
    if begin := options.start or options.teacher:
        start = start_from(network, begin)
    elif recipe.lora.rank:
        raise ValueError(f"lora.rank={recipe.lora.rank}: a LoRA changes weights that are there; name them with --from")
    network.to(world.device)
    teacher = None
    if isinstance(recipe, StudentRecipe):
        if options.teacher is None:
            raise ValueError("--teacher: name what the student learns from, such as the folder of a decoder's run")
        teacher = PiD(recipe.network)
        start_from(teacher, options.teacher)
        teacher.to(world.device)
    stage = new_stage(recipe, network, _tools(recipe, network, options, world.device), teacher)
    if recipe.lora.rank:
        add_lora(stage.network, recipe.lora, recipe.loop.seed)
    sheets = _sheets(recipe, stage, data, world.device)
    prepare(stage.networks, [] if teacher is None else [teacher], recipe.machine, world)
    began = {
        "data": str(data),
        "from": options.start or "",
        "teacher": options.teacher or "",
        "encoder": " ".join(options.encoder),
    }
    start = start or Start("", LICENCE)
    return Run(recipe, stage, source, Path(output), world, began, start.name, options.licence or start.licence, sheets)


@dataclass(frozen=True, eq=False)
class Tools:
    """What a stage works with besides its networks: what makes conditions, what embeds captions, and REPA's encoder;
    those it needs."""

    conditioner: Conditioner | None = None
    embed: Embed | None = None
    representation: Representation | None = None


def new_stage(recipe: Recipe, network: PiD, tools: Tools, teacher: PiD | None = None) -> AnyStage:
    """The stage of a recipe. Raises ValueError for settings that do not go together."""
    if isinstance(recipe, PriorRecipe):
        return PriorStage(network, recipe.objective, tools.embed, tools.representation)
    assert tools.conditioner is not None
    if isinstance(recipe, DecoderRecipe):
        return DecoderStage(network, recipe.objective, tools.conditioner)
    assert isinstance(recipe, StudentRecipe)
    assert teacher is not None
    seed = recipe.loop.seed
    return StudentStage(network, teacher, recipe.objective, tools.conditioner, recipe.times, seed)


def conditions_of(recipe: Recipe) -> ConditionSettings | None:
    """How the conditions of a decoder or student are made; None for a prior."""
    return recipe.objective.conditions if isinstance(recipe, DecoderRecipe | StudentRecipe) else None


def _tools(recipe: Recipe, network: PiD, options: RunOptions, device: torch.device) -> Tools:
    embed = None if recipe.network.backbone.text_width is None else CaptionEmbeddings(options.gemma or GEMMA)
    if isinstance(recipe, PriorRecipe):
        return Tools(embed=embed, representation=_representation(recipe, network, options, device))
    if not options.encoder:
        raise ValueError('--encoder: name at least one, such as "tiny"')
    encoders = [_encoder(name, recipe.space, device) for name in options.encoder]
    settings = conditions_of(recipe)
    assert settings is not None
    return Tools(Conditioner(settings, encoders, embed))


def _encoder(name: str, space: str, device: torch.device) -> Encode:
    """Images (B,3,H,W) in [-1,1] on `device` -> normalised latents (B,C,h,w) there."""
    target = get_space(space)
    if name.startswith("taef2:"):
        if target.name != TINY_SPACE:
            raise ValueError(f"--encoder {name}: makes {TINY_SPACE} latents, the recipe's space is {space}")
        try:
            taef2 = load_taef2(name.removeprefix("taef2:")).to(device)
        except (RuntimeError, EOFError) as error:
            raise ValueError(
                f"--encoder {name}: not TAEF2's files, or damaged ({files.first_line_of(error)})"
            ) from error
        return lambda images: target.patchify(taef2.encode(images))
    own = None if name == "tiny" else name
    if target.vision:
        from pixdec.integrations.vision import VisionEncoder

        vision = VisionEncoder.from_pretrained(space, own, device=device)
        return lambda images: vision.encode(images).tensor.to(device)
    encoder = ImageEncoder.from_pretrained(space, own, device, torch.float32 if own is None else None)
    return lambda images: encoder.encode(images).tensor.to(device)


def _representation(
    recipe: PriorRecipe, network: PiD, options: RunOptions, device: torch.device
) -> Representation | None:
    settings = recipe.objective.representation
    if settings.weight == 0:
        return None
    if options.features is None:
        raise ValueError(
            f"representation.weight={settings.weight}: name the vision encoder with --features, "
            "such as facebook/dinov2-with-registers-base"
        )
    from pixdec.integrations.vision import VisionEncoder

    vision = VisionEncoder.from_pretrained("dinov2", options.features, device=device)
    representation = Representation(settings, network, lambda images: vision.encode(images).tensor.to(device))
    representation.projector.to(device)
    return representation


def _sheets(recipe: Recipe, stage: AnyStage, data: str | Path, device: torch.device) -> Sheets | None:
    """The fixed inputs: the first examples, the same on all processes."""
    count = recipe.folder.sheet_images
    if recipe.folder.sheet_every == 0 or count == 0:
        return None
    few = replace(
        recipe,
        loop=replace(recipe.loop, batch=count, parts=1),
        data=replace(recipe.data, workers=0, streams=None, precomputed=False),
    )
    examples = next(open_examples(data, few, Share()).batches()).to(device)
    draws = Draws(recipe.loop.seed, 0, range(count), count, device)
    steps = recipe.folder.sheet_steps
    if isinstance(stage, PriorStage):
        text = embedded(stage.embed, examples, torch.zeros(count, dtype=torch.bool))
        return Sheets(examples.images, None, None, text, steps, recipe.times, "v1.5")
    plain = replace(stage.conditioner.settings, clean=1.0, drop_caption=0.0, drop_latent=0.0)
    made = Conditioner(plain, stage.conditioner.encoders[:1], stage.conditioner.embed)(examples, draws)
    return Sheets(examples.images, made.low, made.latent, made.text, steps, recipe.times, recipe.version)
