"""What a checkpoint is: which network, for which latent space. The space is stated, or it follows from the
tensors; it is never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast, get_args

from pixdec.io.tensor_files import TensorFile
from pixdec.latents import get_space
from pixdec.models.nano import NanoSettings
from pixdec.models.pid import PiDSettings
from pixdec.weights.catalog import CARDS, STUDENT_TIMES, Card, DecoderKind, Facts, accepted_spaces, card_of
from pixdec.weights.checkpoint import listed, places_of
from pixdec.weights.keymap import to_original
from pixdec.weights.network_settings import (
    is_prior,
    possible_spaces,
    scale_of,
    settings_from_json,
    settings_from_shapes,
    settings_to_json,
    version_of,
)
from pixdec.weights.state import NetworkTensors

UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True, kw_only=True)
class Identity(Facts):
    """All about a decoder but its weights."""

    kind: DecoderKind
    settings: PiDSettings | NanoSettings
    licence: str

    def __post_init__(self) -> None:
        if isinstance(self.settings, NanoSettings):
            self._check_times()
            if self.kind != "student" or not get_space(self.space).is_image:
                raise ValueError(f"kind {self.kind!r} and space {self.space!r}: a nano is a student of the space rgb")
            return
        adapter = self.settings.adapter
        if (self.kind == "prior", self.space == "") != (adapter is None, adapter is None):
            raise ValueError(
                f"kind {self.kind!r} and space {self.space!r}: a prior, and nothing else, has no adapter and no space"
            )
        if adapter is not None:
            space = get_space(self.space)
            if (adapter.latent_channels, adapter.latent_factor) != (space.channels, space.factor):
                raise ValueError(
                    f"its adapter takes {adapter.latent_channels} channels at 1/{adapter.latent_factor}, "
                    f"but {space.name} latents have {space.channels} at 1/{space.factor}"
                )
        self._check_times()

    def _check_times(self) -> None:
        falls = len(self.times) > 1 and all(a > b for a, b in pairwise(self.times)) and self.times[-1] == 0
        if (self.kind == "student") != falls or (self.times and (self.kind != "student" or self.times[0] > 1)):
            raise ValueError(
                f"times {list(self.times)}: a student has noise levels that fall from at most 1 to 0, others have none"
            )

    @property
    def scale(self) -> int:
        """Output side divided by the side of the image that the latent is of; 1 for a prior."""
        if isinstance(self.settings, NanoSettings):
            return self.settings.scale
        return 1 if self.settings.adapter is None else self.settings.adapter.scale

    @property
    def default_steps(self) -> int | None:
        """Steps of a decode that names none: all that a student was trained for, but one of a nano, whose later ones
        add little to it; None leaves it to who calls a teacher."""
        if isinstance(self.settings, NanoSettings):
            return 1
        return len(self.times) - 1 if self.kind == "student" else None

    @property
    def needs_text(self) -> bool:
        """Whether the network reads a caption."""
        return isinstance(self.settings, PiDSettings) and self.settings.backbone.text_width is not None


class AmbiguousSpaceError(ValueError):
    """A decoder whose tensors fit the latents of several spaces, with nothing that says which."""

    def __init__(self, version: str, possible: Sequence[str]) -> None:
        names = f"{', '.join(possible[:-1])} or {possible[-1]}"
        super().__init__(
            f"decoders for {names} have tensors of the same shapes; say which with space=..., "
            "or keep the file in a folder of its released name"
        )
        self.version, self.possible, self.names = version, possible, names


def identify(checkpoint: TensorFile, network: NetworkTensors, space: str | None = None) -> Identity:
    """What the decoder in a checkpoint is: as its metadata state, else from its tensors and its released name.

    `space` is the caller's word. The file's name and its folder's count where they are those of a released model.

    Raises:
        AmbiguousSpaceError: several spaces fit and nothing says which.
        ValueError: caller, metadata, folder and tensors contradict each other, or no network has such tensors.
    """
    card = _card(checkpoint)
    claims = {} if space is None else {f"space={space!r}": get_space(space).name}
    if card is not None:
        claims[f"the name {card.folder}"] = card.space
    if "pixdec" in checkpoint.metadata:
        found = _stated(checkpoint.metadata)
        _agreed({**claims, "its metadata": found.space}, [found.space])
    else:
        found = _inferred(checkpoint, network, card, claims)
    return replace(found, sizes=next((card.sizes for card in CARDS if card.name == found.name), None))


def _card(checkpoint: TensorFile) -> Card | None:
    cards = {card.name: card for place in places_of(checkpoint) if (card := card_of(place)) is not None}
    if len(cards) > 1:
        raise ValueError(f"the file and its folder are named as two models, {' and '.join(cards)}; rename one")
    return next(iter(cards.values()), None)


def _agreed(claims: Mapping[str, str], possible: Sequence[str]) -> str | None:
    """The space that all claims name, if there are any; it must be a possible one."""
    spaces = {source: next(iter(accepted_spaces(space)), "") for source, space in claims.items()}
    for source, space in spaces.items():
        other = next((s for s in spaces if spaces[s] != space), None)
        if other is not None:
            raise ValueError(f"{source} says {space or 'no space'}, but {other} says {spaces[other] or 'no space'}")
        if space not in possible:
            fitting = " or ".join(name or "no space, it is a prior" for name in possible)
            raise ValueError(f"{source} says {space or 'no space'}, but its tensors fit {fitting}")
    return next(iter(spaces.values()), None)


def _inferred(
    checkpoint: TensorFile, network: NetworkTensors, card: Card | None, claims: Mapping[str, str]
) -> Identity:
    shapes = {to_original(key): tuple(tensor.shape) for key, tensor in network.tensors.items()}
    version, prior = version_of(shapes), is_prior(shapes)
    possible: tuple[str, ...] = ("",) if prior else possible_spaces(shapes)
    if not possible:
        channels = network.tensors["adapter.conv_in.weight"].shape[1]
        raise ValueError(f"its adapter ({version}) takes latents of {channels} channels, which no known space has")
    space = _agreed(claims, possible)
    if card is not None and card.version != version:
        raise ValueError(f"the name {card.folder} says {card.version}, but its tensors are those of {version}")
    if space is None:
        space, *others = possible
        if others:
            raise AmbiguousSpaceError(version, possible)
    kind = (
        "prior" if prior else "teacher" if any("undistilled" in place for place in places_of(checkpoint)) else "student"
    )
    return Identity(
        settings=settings_from_shapes(shapes, space, scale_of(space)),
        name=checkpoint.path.stem if card is None else card.name,
        space=space,
        kind=kind,
        version=version,
        times=STUDENT_TIMES if kind == "student" else (),
        licence=UNKNOWN_LICENCE if card is None else card.licence.name,
    )


def to_metadata(identity: Identity) -> dict[str, str]:
    """What our files carry beside their tensors."""
    return {
        "pixdec": "decoder",
        "network": "nano" if isinstance(identity.settings, NanoSettings) else "pid",
        "name": identity.name,
        "space": identity.space,
        "kind": identity.kind,
        "version": identity.version,
        "times": json.dumps(identity.times),
        "licence": identity.licence,
        "settings": settings_to_json(identity.settings),
    }


def _stated(metadata: Mapping[str, str]) -> Identity:
    """The inverse of `to_metadata`, strict."""
    what = metadata["pixdec"]
    if what != "decoder":
        raise ValueError(f"no decoder: its metadata say {what!r}")
    missing = {"name", "space", "kind", "version", "times", "licence", "settings"} - set(metadata)
    if missing:
        raise ValueError(f"its metadata lack {listed(missing)}")
    if metadata["kind"] not in get_args(DecoderKind):
        raise ValueError(
            f"its metadata have kind {metadata['kind']!r}; expected one of {', '.join(get_args(DecoderKind))}"
        )
    return Identity(
        settings=settings_from_json(metadata["settings"], NanoSettings if is_nano(metadata) else PiDSettings),
        name=metadata["name"],
        space=metadata["space"],
        kind=cast("DecoderKind", metadata["kind"]),
        version=metadata["version"],
        times=_times(metadata["times"]),
        licence=metadata["licence"],
    )


def is_nano(metadata: Mapping[str, str]) -> bool:
    """Whether our file holds the small network; files from before it existed do not say."""
    return metadata.get("network", "pid") == "nano"


def _times(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(t) for t in cast("list[float]", json.loads(text)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"its metadata have times {text!r}; expected a JSON list of noise levels") from error
