"""Recipes: functions that return everything that decides a run, but its data. The command line overrides any field.

B batch · sides in pixels
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.tiny_vae import TinyVAESettings
from pixdec.sampling.flow import STUDENT_TIMES
from pixdec.train.data.degrade import DegradeSettings
from pixdec.train.data.fit import FitSettings
from pixdec.train.data.photos import CropSettings
from pixdec.train.decoder import DecoderSettings
from pixdec.train.draws import LevelSettings
from pixdec.train.loop import LoopSettings
from pixdec.train.lora import LoraSettings
from pixdec.train.parallel import MachineSettings
from pixdec.train.prior import PriorSettings
from pixdec.train.stages import ConditionSettings
from pixdec.train.student import StudentSettings


@dataclass(frozen=True)
class DataSettings:
    """Which examples come.

    Packed shards (`pixdec data pack`) come in aspect buckets of base size `base`, whose sides are multiples of
    `multiple`; `shuffle`, `fit` and `pages` as `StreamSettings` has them; `streams` is fixed, so that the number of
    processes may change. A plain folder of images gives square crops instead, as `crops` says.
    """

    base: int = 2048
    multiple: int = 64
    shuffle: int = 1000
    pages: float = 0.05
    fit: FitSettings = field(default_factory=FitSettings)
    unreadable: Literal["stop", "skip"] = "skip"
    streams: int | None = None
    workers: int = 4
    precomputed: bool = False
    crops: CropSettings = field(default_factory=lambda: CropSettings(size=512))


@dataclass(frozen=True)
class FolderSettings:
    """What a run leaves in its folder, and when: a checkpoint every `save_every` steps, of which the last `keep` stay;
    a sheet of `sheet_images` fixed inputs every `sheet_every` steps, decoded in `sheet_steps` (0: no sheets)."""

    save_every: int = 500
    keep: int = 2
    sheet_every: int = 1000
    sheet_images: int = 4
    sheet_steps: int = 4


@dataclass(frozen=True)
class Recipe:
    """What all stages have. `space` and `version` go with the weights: the latents' space ("" for a prior), and which
    noise schedule a teacher is sampled with. `times`: a few-step decoder's noise levels, () for others."""

    name: str
    network: PiDSettings
    loop: LoopSettings
    space: str = "flux2"
    version: str = "v1.5"
    times: tuple[float, ...] = ()
    data: DataSettings = field(default_factory=DataSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    folder: FolderSettings = field(default_factory=FolderSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True)
class PriorRecipe(Recipe):
    """Stage 1."""

    objective: PriorSettings = field(default_factory=PriorSettings)


@dataclass(frozen=True)
class DecoderRecipe(Recipe):
    """Stage 2."""

    objective: DecoderSettings = field(default_factory=DecoderSettings)


@dataclass(frozen=True)
class StudentRecipe(Recipe):
    """Stage 3."""

    objective: StudentSettings = field(default_factory=StudentSettings)


PAPER_CLIP, PAPER_DECAY = 0.1, 1e-3


def released_network(*, version: str = "v1.5") -> PiDSettings:
    """The released decoders' 1.36 B network for FLUX.2 latents."""
    newest = version == "v1.5"
    adapter = AdapterSettings(
        latent_channels=128,
        latent_factor=16,
        width=1024 if newest else 512,
        unpack=2 if newest else 1,
        padding="replicate" if newest else "zeros",
        gate="token" if newest else "channel",
        pixel_head=newest,
        aux_rgb=newest,
    )
    side = 2048 if newest else 1024
    return PiDSettings(PixDiTSettings(reference=(side, side)), adapter)


def _paper_loop(batch: int, rate: float, steps: int) -> LoopSettings:
    # The recipes of specification §9 name no schedule: a constant rate after a short rise.
    return LoopSettings(
        steps, batch, learning_rate=rate, warmup=200, decay=0.0, weight_decay=PAPER_DECAY, clip=PAPER_CLIP,
        betas=(0.9, 0.99), nonfinite="skip",
    )  # fmt: skip


def prior_paper_2k() -> PriorRecipe:
    """The paper's prior at 2048²: batch 128, 20 000 steps at 2e-5, shift 6."""
    network = replace(released_network(), adapter=None)
    return PriorRecipe("paper_2k", network, _paper_loop(128, 2e-5, 20_000), space="")


def decoder_paper_2k() -> DecoderRecipe:
    """The paper's decoder, version 1: batch 64, 30 000 steps at 5e-5, everything learns."""
    return DecoderRecipe("paper_2k", released_network(version="v1"), _paper_loop(64, 5e-5, 30_000), version="v1")


def decoder_v1_5() -> DecoderRecipe:
    """The released v1.5 recipe: the backbone stays, the adapter learns, with 0.8 of the RGB alignment loss."""
    objective = DecoderSettings(learns="adapter", alignment=0.8)
    return DecoderRecipe("v1_5", released_network(), _paper_loop(64, 5e-5, 30_000), objective=objective)


def student_paper_2k() -> StudentRecipe:
    """DMD2 as in the paper: batch 16, 3000 steps at 1e-5, the student in every sixth, on its own rollout; weights 1 for
    distribution and score matching, 0.05 for the adversarial loss after 100 steps, 200 for R1. Guidance, betas and the
    rise of the rate are those of the released v1.5 recipe for FLUX.2."""
    objective = StudentSettings(
        conditions=ConditionSettings(drop_caption=0.0, drop_latent=0.0), ratio=6, guidance=3.0, rollout="self"
    )
    loop = replace(_paper_loop(16, 1e-5, 3000), warmup=100, betas=(0.9, 0.999))
    return StudentRecipe("paper_2k", released_network(), loop, times=STUDENT_TIMES, objective=objective)


def nano_network() -> PiDSettings:
    """The bundled decoder's network: 5.5 M parameters besides its base decoder."""
    return PiDSettings(
        backbone=PixDiTSettings(
            patch=8,
            hidden=192,
            heads=6,
            depth=6,
            pixel_width=8,
            pixel_hidden=192,
            pixel_heads=6,
            pixel_depth=1,
            text_width=None,
            in_channels=6,
            rope_stride=1.0,
            pixel_positions="patch",
            window=8,
        ),
        adapter=AdapterSettings(
            latent_channels=128,
            latent_factor=16,
            scale=4,
            width=64,
            unpack=2,
            padding="replicate",
            gate="token",
            pixel_head=True,
        ),
        prediction="residual",
        base=TinyVAESettings(),
        residual_std=0.2,
        deblock=48,
    )


NANO_TIMES = (0.999, 0.3, 0.15, 0.06, 0.0)
_NANO_DATA = DataSettings(
    base=192,
    workers=0,
    shuffle=100,
    crops=CropSettings(size=192, zoom=3.0, unscaled=0.25, synthetic=0.12),
    fit=FitSettings(zoom=3.0, unscaled=0.25),
)
_NANO_MACHINE = MachineSettings(precision="bfloat16", shard=False, recompute=False)
_NANO_FOLDER = FolderSettings(save_every=100, sheet_every=500)


def decoder_nano() -> DecoderRecipe:
    """The bundled decoder. Its noise levels lie around the residual's deviation d = 0.2 (EDM's distribution in this
    frame): logit t normal with mean ln d − 0.2, but for a quarter where the first of few steps works."""
    objective = DecoderSettings(
        levels=LevelSettings(mean=-1.81, std=1.3, high=0.25),
        conditions=ConditionSettings(DegradeSettings(scale=4), clean=0.6, drop_caption=0.0, drop_latent=0.0),
        coarse=0.5,
        even=True,
    )
    loop = LoopSettings(steps=3300, batch=4, learning_rate=1e-3, warmup=200, weight_decay=0.01)
    return DecoderRecipe(
        "nano", nano_network(), loop, version="nano", times=NANO_TIMES, data=_NANO_DATA, machine=_NANO_MACHINE,
        folder=_NANO_FOLDER, objective=objective,
    )  # fmt: skip


def student_nano() -> StudentRecipe:
    """The bundled decoder's third stage, from its second. Student and critic take turns one to one, the adversarial
    term counts three times as much as in the paper, and the distance to the real image is kept: a network of 5.5 M
    parameters leaves it otherwise."""
    objective = StudentSettings(
        levels=LevelSettings(mean=-1.81, std=1.3, least=0.02, most=0.99),
        conditions=ConditionSettings(DegradeSettings(scale=4), clean=0.6, drop_caption=0.0, drop_latent=0.0),
        ratio=2,
        guidance=1.0,
        distribution_matching=0.5,
        gan=0.15,
        gan_warmup=60,
        look=128,
        block=3,
        coarse=0.5,
        even=True,
        pixel=1.0,
        drift=4.0,
        seams=2.0,
    )
    loop = LoopSettings(steps=760, batch=4, learning_rate=8e-5, warmup=20, decay=0.6)
    return StudentRecipe(
        "nano", nano_network(), loop, version="nano", times=NANO_TIMES, data=_NANO_DATA, machine=_NANO_MACHINE,
        folder=_NANO_FOLDER, objective=objective,
    )  # fmt: skip


PRIORS: Mapping[str, Callable[[], PriorRecipe]] = {"paper_2k": prior_paper_2k}
DECODERS: Mapping[str, Callable[[], DecoderRecipe]] = {
    "paper_2k": decoder_paper_2k,
    "v1_5": decoder_v1_5,
    "nano": decoder_nano,
}
STUDENTS: Mapping[str, Callable[[], StudentRecipe]] = {"paper_2k": student_paper_2k, "nano": student_nano}
