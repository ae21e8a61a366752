"""Recipes: functions that return everything that decides a run, but its data. The command line overrides any field.

B batch · sides in pixels
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.sampling.flow import STUDENT_TIMES
from pixdec.train.data.fit import CENTER, FitSettings
from pixdec.train.draws import LevelSettings
from pixdec.train.loop import LoopSettings
from pixdec.train.low_rank import LoraSettings
from pixdec.train.parallel import MachineSettings
from pixdec.train.stages.decoder import DecoderSettings
from pixdec.train.stages.l2p import PixelObjective
from pixdec.train.stages.prior import PriorSettings
from pixdec.train.stages.stage import ConditionSettings
from pixdec.train.stages.student import StudentSettings


@dataclass(frozen=True)
class DataSettings:
    """Which examples come.

    Images come in aspect buckets of base size `base`, whose sides are multiples of `multiple`; `shuffle`, `fit` and
    `pages` as `StreamSettings` has them; `streams` is fixed, so that the number of processes may change.
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

    @property
    def reads_text(self) -> bool:
        """Whether the network takes embedded captions."""
        return self.network.backbone.text_width is not None


@dataclass(frozen=True)
class PixelRecipe:
    """The transfer of a latent generator to pixels; the network is what the run begins with. `lora`: on the blocks that
    are frozen otherwise, by diffusers' names of their layers."""

    name: str
    loop: LoopSettings
    objective: PixelObjective = field(default_factory=PixelObjective)
    data: DataSettings = field(default_factory=DataSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    folder: FolderSettings = field(default_factory=lambda: FolderSettings(sheet_every=0))
    lora: LoraSettings = field(default_factory=lambda: LoraSettings(layers=("to_q", "to_k", "to_v", "to_out.0")))
    reads_text: ClassVar[bool] = True


AnyRecipe = Recipe | PixelRecipe


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


def _adapter(*, version: str = "v1.5") -> AdapterSettings:
    newest = version == "v1.5"
    return AdapterSettings(
        latent_channels=128,
        latent_factor=16,
        width=1024 if newest else 512,
        unpack=2 if newest else 1,
        padding="replicate" if newest else "zeros",
        gate="token" if newest else "channel",
        pixel_head=newest,
        aux_rgb=newest,
    )


def released_network(*, version: str = "v1.5") -> PiDSettings:
    """The released decoders' 1.36 B network for FLUX.2 latents."""
    side = 2048 if version == "v1.5" else 1024
    return PiDSettings(PixDiTSettings(reference=(side, side)), _adapter(version=version))


def _paper_loop(batch: int, rate: float, steps: int) -> LoopSettings:
    # The paper names no schedule: a constant rate after a short rise.
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


def tiny_network() -> PiDSettings:
    """The paper's network in small and without text, for FLUX.2 latents: 7 M parameters, which two processor
    cores train."""
    return PiDSettings(
        PixDiTSettings(
            hidden=192,
            heads=6,
            depth=6,
            pixel_width=8,
            pixel_hidden=96,
            pixel_heads=4,
            pixel_depth=1,
            text_width=None,
            reference=(256, 256),
        ),
        replace(_adapter(), width=64, pixel_head=True, aux_rgb=False),
    )


_TINY_DATA = DataSettings(base=192, workers=0, shuffle=100, fit=FitSettings(zoom=3.0, unscaled=0.25))
_TINY_CONDITIONS = ConditionSettings(clean=0.6, drop_caption=0.0, drop_latent=0.0)
_TINY_MACHINE = MachineSettings(shard=False, recompute=False)
_TINY_FOLDER = FolderSettings(save_every=100, sheet_every=500)


def prior_tiny() -> PriorRecipe:
    """What the small decoder may begin with: its network without a latent."""
    loop = LoopSettings(steps=3000, batch=4, learning_rate=1e-3, warmup=200, weight_decay=0.01)
    return PriorRecipe(
        "tiny", replace(tiny_network(), adapter=None), loop, space="", data=_TINY_DATA, machine=_TINY_MACHINE,
        folder=_TINY_FOLDER,
    )  # fmt: skip


def decoder_tiny() -> DecoderRecipe:
    """A small network without text: to try things out, on two processor cores."""
    objective = DecoderSettings(levels=LevelSettings(high=0.25), conditions=_TINY_CONDITIONS)
    loop = LoopSettings(steps=3000, batch=4, learning_rate=1e-3, warmup=200, weight_decay=0.01)
    return DecoderRecipe(
        "tiny", tiny_network(), loop, times=STUDENT_TIMES, data=_TINY_DATA, machine=_TINY_MACHINE,
        folder=_TINY_FOLDER, objective=objective,
    )  # fmt: skip


def student_tiny() -> StudentRecipe:
    """The small network's third stage. Student and critic take turns one to one, and the distance to the real image is
    kept, which a small network leaves otherwise."""
    objective = StudentSettings(
        conditions=_TINY_CONDITIONS,
        ratio=2,
        guidance=1.0,
        distribution_matching=0.5,
        gan_warmup=60,
        block=3,
        pixel=1.0,
    )
    loop = LoopSettings(steps=760, batch=4, learning_rate=8e-5, warmup=20, decay=0.6)
    return StudentRecipe(
        "tiny", tiny_network(), loop, times=STUDENT_TIMES, data=_TINY_DATA, machine=_TINY_MACHINE,
        folder=_TINY_FOLDER, objective=objective,
    )  # fmt: skip


def _pixel_loop(steps: int) -> LoopSettings:
    # The release: a constant rate from the second step on, and no clipping, which a bound of a million is.
    return LoopSettings(
        steps, batch=8, learning_rate=5e-5, warmup=1, decay=0.0, weight_decay=0.01, clip=1e6, betas=(0.9, 0.999)
    )


def _pixel_data(base: int, patch: int) -> DataSettings:
    return DataSettings(base=base, multiple=patch, pages=0.0, fit=CENTER, precomputed=True)


def l2p_1k() -> PixelRecipe:
    """The released transfer at 1024²: the source's own images, each with noise of its own, batch 8 at 5e-5. The paper
    names no number of steps."""
    return PixelRecipe("l2p_1k", _pixel_loop(30_000), data=_pixel_data(1024, 16))


def l2p_4k() -> PixelRecipe:
    """The transfer at 4096², patch 64: real images, fresh noise. Shift 3 as released; the paper's ablation likes 5."""
    objective = PixelObjective(grid=1000, fixed_noise=False)
    return PixelRecipe("l2p_4k", _pixel_loop(100_000), objective, _pixel_data(4096, 64))


def l2p_nano() -> PixelRecipe:
    """A small pixel model on 64² images, for one processor core."""
    data = replace(_pixel_data(64, 16), workers=0, shuffle=100)
    folder = replace(_TINY_FOLDER, sheet_every=0)
    loop = LoopSettings(1500, 16, learning_rate=1e-3, warmup=50, decay=0.5, weight_decay=0.01, betas=(0.9, 0.99))
    return PixelRecipe("nano", loop, PixelObjective(shallow=1), data, _TINY_MACHINE, folder)


# By stage and name.
RECIPES: Mapping[str, Mapping[str, Callable[[], AnyRecipe]]] = {
    "prior": {"paper_2k": prior_paper_2k, "tiny": prior_tiny},
    "decoder": {"paper_2k": decoder_paper_2k, "v1_5": decoder_v1_5, "tiny": decoder_tiny},
    "student": {"paper_2k": student_paper_2k, "tiny": student_tiny},
    "l2p": {"l2p_1k": l2p_1k, "l2p_4k": l2p_4k, "nano": l2p_nano},
}
KINDS: Mapping[str, type[AnyRecipe]] = {
    "prior": PriorRecipe,
    "decoder": DecoderRecipe,
    "student": StudentRecipe,
    "l2p": PixelRecipe,
}
