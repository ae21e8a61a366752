"""The models that can be named: the released PiD decoders and prior, and those that are bundled. No torch here."""

from __future__ import annotations

import difflib
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pixdec.io.hub import USUAL, Access, cached, fetch_file

_log = logging.getLogger(__name__)
DecoderKind = Literal["student", "teacher", "prior"]
Kind = DecoderKind | Literal["autoencoder"]

REPOSITORY = "nvidia/PiD"
BUNDLED = Path(__file__).with_name("bundled")
STUDENT_TIMES = (0.999, 0.866, 0.634, 0.342, 0.0)  # pixdec.sampling.flow's, which cannot be imported without torch


@dataclass(frozen=True)
class Licence:
    """The terms a model's weights come under."""

    name: str
    text: str
    commercial: bool


APACHE = Licence(
    "Apache-2.0", "free to use, change and share, also commercially, with its notice kept", commercial=True
)
NSCL = Licence(
    "NSCLv1", "NVIDIA's licence of these weights: research and evaluation only, no commercial use", commercial=False
)


@dataclass(frozen=True)
class Sizes:
    """The output sizes a model was trained on: from `smallest` to `largest` pixels in all, the longer side at most
    `aspect` times the shorter."""

    smallest: int
    largest: int
    aspect: float

    def warning(self, model: str, height: int, width: int) -> str | None:
        """One line if an output of height x width pixels lies outside, else None."""
        area, aspect = height * width, max(height, width) / min(height, width)
        if self.smallest <= area <= self.largest and aspect <= self.aspect:
            return None
        return (
            f"{width}x{height} ({area / 1e6:.1f} megapixels, {aspect:.2f}:1) is outside what {model} was trained on "
            f"({self.smallest / 1e6:.1f} to {self.largest / 1e6:.1f} megapixels, at most {self.aspect:.2f}:1): "
            "expect a soft or discoloured image"
        )


# Aspect buckets 2048x2048, 2304x1728 and 2688x1536 with their transposes (PiD, arXiv 2605.23902).
TWO_K = Sizes(2304 * 1728, 2048 * 2048, 2688 / 1536)
TWO_TO_FOUR_K = Sizes(2304 * 1728, 4096 * 4096, 2688 / 1536)
ONLY_2048 = Sizes(2048 * 2048, 2048 * 2048, 1.0)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model is, as the catalog or its file has it.

    Attributes:
        space: the latent space, "" for a prior.
        kind: a student takes a few fixed steps; a teacher and a prior any number.
        times: a student's noise levels, falling to 0; () for others.
        sizes: the output sizes that it was trained for; None for every size, or where that is not known.
    """

    name: str
    space: str
    kind: Kind
    version: str
    times: tuple[float, ...] = ()
    sizes: Sizes | None = None

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the spaces whose latents the model takes, its own first."""
        return accepted_spaces(self.space)

    def size_warning(self, height: int, width: int) -> str | None:
        """One line if an output of height x width pixels is outside the trained range, else None."""
        return None if self.sizes is None else self.sizes.warning(self.name, height, width)


@dataclass(frozen=True, kw_only=True)
class Card(Facts):
    """What is known of a model before its file is opened; the file of the bundled decoder alone states its times.

    `file` lies in `repository` on the hub, or in `BUNDLED` if that is None. `revision` of the repository, None: its
    main branch; `sha256` of the file, None: what the hub says when it is downloaded.
    """

    folder: str
    repository: str | None
    file: str
    scale: int
    licence: Licence
    needs_text: bool
    revision: str | None = None
    sha256: str | None = None


def accepted_spaces(space: str) -> tuple[str, ...]:
    """A space and those that hold the same latents (Z-Image uses the FLUX.1 VAE); () for ""."""
    if not space:
        return ()
    return ("flux1", "z-image") if space in ("flux1", "z-image") else (space,)


def _released(name: str, folder: str, space: str, sizes: Sizes) -> Card:
    """Version, scale and kind are in the name of the folder."""
    scale = re.search(r"sr(\d)x", folder)  # which the prior has none of; it shares v1.5's shift of noise levels
    kind: Kind = "prior" if scale is None else "teacher" if folder.endswith("_undistilled") else "student"
    return Card(
        name=name,
        folder=folder,
        repository=REPOSITORY,
        file=f"{folder}/model_ema_bf16.pth",
        space=space,
        version="v1.5" if "_v1pt5_" in folder or scale is None else "v1",
        scale=1 if scale is None else int(scale[1]),
        kind=kind,
        licence=NSCL,
        needs_text=True,
        sizes=sizes,
        times=STUDENT_TIMES if kind == "student" else (),
    )


def _bundled(name: str, space: str, version: str, scale: int, kind: Kind) -> Card:
    return Card(
        name=name,
        folder=name,
        repository=None,
        file=f"{name}.safetensors",
        space=space,
        version=version,
        scale=scale,
        kind=kind,
        licence=APACHE,
        needs_text=False,
    )


_V1 = "PiD_res2k_sr4x_official_{}_distill_4step"
_V1_4K = "PiD_res2kto4k_sr4x_official_{}_distill_4step"
_V1_5 = "PiD_v1pt5_res2kto4k_sr4x_official_{}_distill_4step"
_TEACHER = "PiD_v1pt5_res2kto4k_sr4x_official_{}_undistilled"

CARDS: tuple[Card, ...] = (
    _bundled("pixdec-nano", "rgb", "nano", 4, "student"),
    _bundled("pixdec-tiny", "flux2", "tiny", 1, "autoencoder"),
    _released("pid-v1.5-flux1-4k", _V1_5.format("flux"), "flux1", TWO_TO_FOUR_K),
    _released("pid-v1.5-flux2-4k", _V1_5.format("flux2"), "flux2", TWO_TO_FOUR_K),
    _released("pid-v1.5-qwen-image-4k", _V1_5.format("qwenimage"), "qwen-image", TWO_TO_FOUR_K),
    _released("pid-flux1-2k", _V1.format("flux"), "flux1", TWO_K),
    _released("pid-flux2-2k", _V1.format("flux2"), "flux2", TWO_K),
    _released("pid-sd3-2k", _V1.format("sd3"), "sd3", TWO_K),
    _released("pid-sd3-4k", _V1_4K.format("sd3"), "sd3", TWO_TO_FOUR_K),
    _released("pid-sdxl-4k", _V1_4K.format("sdxl"), "sdxl", TWO_TO_FOUR_K),
    _released("pid-dinov2-2k", _V1.format("dinov2"), "dinov2", TWO_K),
    _released("pid-siglip-8x", _V1.format("siglip").replace("sr4x", "sr8x"), "siglip", ONLY_2048),
    _released("pid-v1.5-flux1-4k-teacher", _TEACHER.format("flux"), "flux1", TWO_TO_FOUR_K),
    _released("pid-v1.5-flux2-4k-teacher", _TEACHER.format("flux2"), "flux2", TWO_TO_FOUR_K),
    _released("pid-v1.5-qwen-image-4k-teacher", _TEACHER.format("qwenimage"), "qwen-image", TWO_TO_FOUR_K),
    _released("pixeldit-4k", "PixelDiT_finetune_2kto4k", "", TWO_TO_FOUR_K),
)

_BY_NAME = {alias: card for card in CARDS for alias in (card.name, card.folder, f"{card.repository}/{card.folder}")}


def is_known(name: str) -> bool:
    """Whether there is a card of that name; the repository of the released models is none of another model."""
    return name.rstrip("/") in _BY_NAME or name == REPOSITORY


def get_card(name: str) -> Card:
    """The card for our name ("pid-flux1-2k"), the released folder, or hub repository and folder
    ("nvidia/PiD/PiD_res2k_…").

    Raises:
        ValueError: there is none; names the nearest.
    """
    card = _BY_NAME.get(name.rstrip("/"))
    if card is None:
        names = [card.name for card in CARDS]
        folders = {folder.casefold(): card.name for folder, card in _BY_NAME.items()}
        near = difflib.get_close_matches(name.casefold(), folders, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(dict.fromkeys(folders[n] for n in near))}?"
            if near
            else f"known: {', '.join(names)}"
        )
        raise ValueError(f"{name}: neither a file, a known model nor a repository of the hub; {hint}")
    return card


def card_of(folder: str) -> Card | None:
    """The released model whose folder has that name, if any."""
    return next((card for card in CARDS if card.folder == folder and card.repository is not None), None)


def located(card: Card, revision: str | None = None) -> Path | None:
    """The model's file if it is on this machine: inside the package, or in the cache of huggingface_hub. Fetches
    nothing."""
    if card.repository is None:
        path = BUNDLED / card.file
        return path if path.is_file() else None
    return cached(card.repository, card.file, revision or card.revision)


def fetch(card: Card, access: Access = USUAL) -> Path:
    """The model's file, downloaded if it is not on this machine yet; of the card's revision unless another is asked
    for.

    Before a download, the terms of a model that is not for commercial use are logged as a warning.

    Raises:
        OSError: it cannot be had (no network, no permission, an incomplete installation), or is not the pinned file.
    """
    if card.repository is None:
        path = located(card)
        if path is None:
            raise FileNotFoundError(
                f"{card.name}: {card.file} is missing from the installed package; install pixdec again"
            )
        return path
    own = access.revision in (None, card.revision)
    path = located(card, access.revision)
    if path is None and not card.licence.commercial and not access.local_files_only:
        _log.warning("%s: fetched under %s: %s", card.name, card.licence.name, card.licence.text)
    try:
        access = replace(access, revision=access.revision or card.revision)
        return path or fetch_file(card.repository, card.file, access, card.sha256 if own else None)
    except OSError as error:
        raise OSError(f"{card.name}: {error}") from error
