"""A recipe's stage with random weights and random data: what is counted for a plan, on the meta device, and measured,
on a real one.

B batch · H, W image pixels · C latent channels · h, w latent grid · T text tokens · E their width
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from pixdec.models.cost import META, random_inputs
from pixdec.models.pid import PiD, PiDSettings
from pixdec.train.decoder import DecoderStage
from pixdec.train.draws import Draws
from pixdec.train.lora import add_lora
from pixdec.train.prior import PriorStage
from pixdec.train.recipes import DecoderRecipe, PriorRecipe, Recipe, StudentRecipe
from pixdec.train.representation import Representation
from pixdec.train.stages import Conditioner, Conditions, Embed, Examples, Stage
from pixdec.train.student import StudentStage

FROZEN = "teacher"


@dataclass(frozen=True, eq=False)
class Trial:
    """A recipe's stage as a run builds it, but with random weights, and random conditions in place of encoders.
    `frozen` are networks that do not learn."""

    recipe: Recipe
    stage: Stage
    frozen: Sequence[PiD]

    def learning(self) -> Mapping[str, nn.Module]:
        """What learns, by name."""
        return self.stage.networks

    def modules(self) -> Mapping[str, nn.Module]:
        """All networks by name."""
        return {**self.learning(), **dict(zip((FROZEN,), self.frozen, strict=False))}


def trial(recipe: Recipe, device: torch.device = META) -> Trial:
    """The stage of a recipe. ValueError as the stage itself raises it."""
    network, frozen = _network(recipe, device), list[PiD]()
    embed = _embed(recipe.network, device)
    if isinstance(recipe, PriorRecipe):
        settings = recipe.objective.representation
        representation = None
        if settings.weight:
            representation = Representation(settings, network, partial(_features, settings.width))
            representation.projector.to(device)
        stage = PriorStage(network, recipe.objective, embed, representation)
    elif isinstance(recipe, DecoderRecipe):
        conditioner = _RandomConditions(recipe.objective.conditions, [], embed, recipe.network)
        stage = DecoderStage(network, recipe.objective, conditioner)
    else:
        assert isinstance(recipe, StudentRecipe), recipe
        teacher = _network(recipe, device).requires_grad_(False)
        null = None if embed is None or recipe.objective.guidance == 1 else embed([""])
        conditioner = _RandomConditions(recipe.objective.conditions, [], embed, recipe.network)
        stage = StudentStage(network, teacher, recipe.objective, conditioner, recipe.times, null)
        frozen.append(teacher)
    if recipe.lora.rank:
        add_lora(network, recipe.lora)
    return Trial(recipe, stage, frozen)


def _network(recipe: Recipe, device: torch.device) -> PiD:
    with device:
        return PiD(recipe.network)


def random_examples(recipe: Recipe, height: int, width: int, batch: int, device: torch.device = META) -> Examples:
    """Images of noise without captions."""
    return Examples(torch.rand(batch, 3, height, width, device=device) * 2 - 1, [""] * batch)


@dataclass(frozen=True, eq=False)
class _RandomConditions(Conditioner):
    network: PiDSettings = field(default_factory=PiDSettings)

    def __call__(self, examples: Examples, draws: Draws) -> Conditions:
        batch, _, height, width = examples.images.shape
        return random_conditions(self.network, height, width, batch, examples.images.device)


@lru_cache(maxsize=8)
def random_conditions(
    network: PiDSettings, height: int, width: int, batch: int, device: torch.device = META
) -> Conditions:
    """What a decoder is told of a batch; always the same, so that a pass does not count it."""
    given = random_inputs(network, height, width, batch, torch.bfloat16, device)
    assert given.latent is not None and given.sigma is not None and network.adapter is not None
    scale = network.adapter.scale
    low = torch.rand(batch, 3, height // scale, width // scale, device=device) * 2 - 1
    return Conditions(given.latent, given.sigma, given.text, low, torch.ones_like(given.sigma))


@lru_cache(maxsize=8)
def _embedded(network: PiDSettings, count: int, device: torch.device) -> Tensor:
    length, width = network.backbone.text_length, network.backbone.text_width
    return torch.randn(count, length, width or 0, dtype=torch.bfloat16, device=device)


def _embed(network: PiDSettings, device: torch.device) -> Embed | None:
    """Random embeddings; None for a network without text."""
    return None if network.backbone.text_width is None else lambda texts: _embedded(network, len(texts), device)


def _features(width: int, images: Tensor) -> Tensor:
    """Those of DINOv2 at 448 pixels; they are resized to the tokens' grid, so that their number counts little."""
    return torch.randn(len(images), width, 32, 32, device=images.device)
