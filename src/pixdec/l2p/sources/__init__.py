"""The latent generators that can become pixel generators, one file each: what differs between them, and nothing else.

A new one is a file with a class of this protocol, and its line in `SOURCES`.

B batch · H, W image pixels · p patch · D width · T text tokens · E their width
"""

import inspect
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pixdec.io.quiet import library

SOURCES = {"z-image": "z_image.ZImage", "flux2-klein": "flux2.Flux2Klein", "qwen-image": "qwen_image.QwenImage"}


class Source(Protocol):
    """A family of latent generators.

    Attributes:
        transformer: the name of its diffusers class.
        pipeline: that of the pipeline that makes images, and embeds prompts.
        repository: a released model, for what a file of weights does not hold: text encoder and scheduler.
        embedder, final: beginnings of the names of the tensors that a pixel model replaces, and drops.
        block_lists: the names of the lists of blocks, in which the large products are.
        shift: that the noise levels are trained and sampled with.
    """

    transformer: str
    pipeline: str
    repository: str
    embedder: str
    final: tuple[str, ...]
    block_lists: tuple[str, ...]
    shift: float

    def build(self, config: Mapping[str, Any], patch: int) -> nn.Module:
        """The family's transformer on the meta device, with patches of pixels at its beginning and nothing after its
        last block."""
        ...

    def width(self, config: Mapping[str, Any]) -> int:
        """D."""
        ...

    def text_width(self, config: Mapping[str, Any]) -> int:
        """E."""
        ...

    def blocks(self, transformer: Any) -> list[nn.Module]:
        """The main blocks in order; the first and last n are what is called shallow."""
        ...

    def features(self, transformer: Any, x: Tensor, t: Tensor, text: Sequence[Tensor], patch: int) -> Tensor:
        """The last block's tokens (B,D,H/p,W/p) for an image x (B,3,H,W) at noise levels t (B,), float32, 1 = noise,
        with texts (T,E)."""
        ...

    def embed(self, pipe: Any, prompts: Sequence[str], device: torch.device) -> list[Tensor]:
        """What the family's pipeline makes of prompts: (T,E) each, without padding."""
        ...


@cache
def get_source(name: str) -> Source:
    """The source of a name in `SOURCES`. ValueError for another."""
    if name not in SOURCES:
        raise ValueError(f"source={name!r}: expected one of {', '.join(SOURCES)}")
    module, _, kind = SOURCES[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), kind)()


def source_of(transformer: str) -> str:
    """The name of the source with that transformer class. ValueError if there is none."""
    known = {get_source(name).transformer: name for name in SOURCES}
    if transformer not in known:
        raise ValueError(f"its class is {transformer or 'not stated'}; expected one of {', '.join(known)}")
    return known[transformer]


def diffusers_class(name: str) -> Any:
    """A class of diffusers; ValueError without diffusers, or if it has none of that name."""
    diffusers = library("diffusers", "a pixel generator", "pipelines")
    found = getattr(diffusers, name, None)
    if found is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {name}; a newer one may")
    return found


def on_meta(kind: Any, config: Mapping[str, Any], changed: Mapping[str, Any]) -> Any:
    """A transformer without memory for its weights, of a diffusers config, some of which is changed.

    Raises:
        ValueError: a setting that the class does not know, or none can be built of these.
    """
    known = inspect.signature(kind.__init__).parameters
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := next((key for key in given if key not in known), None):
        raise ValueError(f"{unknown}={given[unknown]!r}: {kind.__name__} has no such setting")
    try:
        with torch.device("meta"):
            return kind(**{**given, **changed})
    except (RuntimeError, ArithmeticError, AssertionError, TypeError) as error:
        raise ValueError(f"no {kind.__name__} can have the settings {given}") from error


def tokens_of(x: Tensor, patch: int) -> Tensor:
    """(B,3,H,W) -> (B, HW/p², 3p²), each in the order row, column, channel."""
    grid = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B,3,h,p,w,p)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def grid_of(tokens: Tensor, like: Tensor, patch: int) -> Tensor:
    """(B, HW/p², D) -> (B,D,H/p,W/p) for images `like`."""
    return tokens.transpose(1, 2).unflatten(2, (like.shape[2] // patch, like.shape[3] // patch))


class Last(nn.Module):
    """In the place of a final layer: passes the tokens on."""

    def forward(self, tokens: Tensor, *_: object, **__: object) -> Tensor:
        return tokens


_EXACT: ContextVar[Tensor] = ContextVar("exact noise levels")


class ExactTime(nn.Module):
    """Sinusoids of the noise level as it is. Transformers round it to their weights' precision first, which leaves 353
    of 1000 levels in bfloat16."""

    def __init__(self, sinusoids: nn.Module):
        super().__init__()
        self.sinusoids = sinusoids

    def forward(self, _: Tensor) -> Tensor:
        return self.sinusoids(_EXACT.get())


@contextmanager
def exact_time(t: Tensor) -> Generator[None]:
    """Inside, every `ExactTime` that this thread calls sees `t` (B,)."""
    token = _EXACT.set(t)
    try:
        yield
    finally:
        _EXACT.reset(token)


def by_length(text: Iterable[Tensor]) -> dict[int, list[int]]:
    """Places in a batch, by the number of text tokens."""
    places: dict[int, list[int]] = {}
    for place, each in enumerate(text):
        places.setdefault(len(each), []).append(place)
    return places
