"""Stage 3, the student: distribution matching distillation, DMD2 (Yin et al. 2024, arXiv 2405.14867).

The student makes an image x in one of its few steps. The teacher, frozen, has learnt the images' distribution; the fake
score, at first its copy, learns the student's; the discriminator is a head on the teacher's features. They look at
x_t = (1−t)·x + t·eps. In its turn the student minimises

    distribution_matching · DM(x, x0_teacher, x0_fake) + gan · softplus(−D(x_t)) + pixel · charbonnier(x − image)

and in theirs fake score and discriminator, together the critic,

    score_matching · ‖v_fake(x_t) − (eps − x)‖² + softplus(−D(real_t)) + softplus(D(x_t))
        + r1 · (D(real_t) − D(real_t + r1_noise·n))²

B batch · H, W image pixels · C latent channels · h, w latent grid · T text tokens · E their width
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from pixdec.io.arguments import check_range
from pixdec.models.discriminator import Discriminator
from pixdec.models.pid import PiD
from pixdec.sampling.flow import clean, interpolate
from pixdec.text import NEGATIVE_PROMPT
from pixdec.train.draws import Draws, LevelSettings, noise_levels
from pixdec.train.features import Seen, watching
from pixdec.train.losses import (
    approximate_r1,
    charbonnier,
    discriminator_loss,
    distribution_matching,
    flow_matching,
    generator_loss,
)
from pixdec.train.stages.stage import Conditioner, Conditions, ConditionSettings, Examples


@dataclass(frozen=True)
class StudentSettings:
    """How a student learns; the defaults are the released recipe's.

    Attributes:
        levels: t at which teacher, fake score and discriminator look.
        conditions: how latents are made and noised; the student drops none.
        ratio: the student learns in every so many steps, the critic in the others.
        guidance: of the teacher by its text, distilled into the student; 1 is none, and the only one for networks
            without text.
        rollout: where the student's step begins. "self": on its own way down from pure noise, the number of steps
            before it random; "noised": at the real image, noised to one of the student's levels.
        distribution_matching: weight of the distribution-matching loss.
        score_matching: weight of the fake score's flow-matching loss.
        gan: weight of the adversarial loss in the student's turn, reached linearly over the first `gan_warmup` steps;
            0 leaves the discriminator out.
        r1: weight of the approximate R1 penalty, with noise of deviation `r1_noise` on what the discriminator sees.
        block: the patch block of the teacher, counted from 0, whose tokens the discriminator sees.
        pixel: weight of the distance to the real image, which bounds how far a small decoder leaves it.
    """

    levels: LevelSettings = field(default_factory=lambda: LevelSettings(least=0.02, most=0.99))
    conditions: ConditionSettings = field(default_factory=lambda: ConditionSettings(drop_caption=0.0, drop_latent=0.0))
    ratio: int = 6
    guidance: float = 3.0
    rollout: Literal["self", "noised"] = "self"
    distribution_matching: float = 1.0
    score_matching: float = 1.0
    gan: float = 0.05
    gan_warmup: int = 100
    r1: float = 200.0
    r1_noise: float = 0.1
    block: int = 7
    pixel: float = 0.0

    def __post_init__(self) -> None:
        if self.ratio < 2:
            raise ValueError(f"ratio={self.ratio}: expected at least 2; the critic learns in the steps between")
        if self.rollout not in ("self", "noised"):
            raise ValueError(f"rollout={self.rollout!r}: expected 'self' or 'noised'")
        weights = ("distribution_matching", "score_matching", "gan", "gan_warmup", "r1", "r1_noise", "pixel")
        check_range(self, weights, 0)


class StudentStage:
    """`student` learns to make in the few steps of `times` what `teacher` makes in many.

    `times` runs down to 0, e.g. `flow.STUDENT_TIMES`. The text of the teacher's unconditional branch is the negative
    prompt, as `conditioner` embeds it. The teacher is frozen and becomes the fake score by copy.

    Call networks only as modules: sharded ones gather their weights in `forward`.
    """

    def __init__(
        self,
        student: PiD,
        teacher: PiD,
        settings: StudentSettings,
        conditioner: Conditioner,
        times: Sequence[float],
        seed: int = 0,
    ):
        _check(student, teacher, settings, times)
        self.settings, self.conditioner, self.times = settings, conditioner, tuple(times)
        self.null: Tensor | None = None  # (1,T,E)
        if settings.guidance != 1:
            if conditioner.embed is None:
                raise ValueError(f"guidance={settings.guidance}: nothing embeds the negative prompt; set it to 1")
            self.null = conditioner.embed([NEGATIVE_PROMPT])
        self.network, self.teacher = student, teacher.requires_grad_(False).eval()
        self.fake = copy.deepcopy(teacher).float().train()
        for network in (self.network, self.fake):
            network.requires_grad_(True)
        networks: dict[str, nn.Module] = {"student": student, "fake": self.fake}
        self.discriminator = _discriminator(teacher, seed) if settings.gan else None
        if self.discriminator is not None:
            networks["discriminator"] = self.discriminator
        self.networks: Mapping[str, nn.Module] = networks
        self._critic_turn = tuple(networks)[1:]

    def turn(self, step: int) -> tuple[str, ...]:
        """The student in every `ratio`-th step, the critic first and in the others."""
        return ("student",) if (step + 1) % self.settings.ratio == 0 else self._critic_turn

    def losses(self, step: int, examples: Examples, draws: Draws) -> dict[str, Tensor]:
        """In the student's turn distribution_matching, gan and pixel; in the critic's score_matching, discriminator and
        r1; those that are used, each before its weight, and total."""
        conditions = self.conditioner(examples, draws)
        if "student" in self.turn(step):
            return self._student(step, examples.images, conditions, draws)
        return self._critic(examples.images, conditions, draws)

    def _student(self, step: int, images: Tensor, conditions: Conditions, draws: Draws) -> dict[str, Tensor]:
        settings = self.settings
        x = self._make(images, conditions, draws)
        t, noise = self._look(images, draws)
        x_t = interpolate(x, noise, t)
        teacher, adversarial = self._teach(x_t, t, conditions)
        with torch.no_grad():
            fake = clean(x_t, _velocity(self.fake, x_t, t, conditions), t)
        losses = {"distribution_matching": distribution_matching(x, teacher, fake)}
        total = settings.distribution_matching * losses["distribution_matching"]
        if adversarial is not None:
            losses["gan"] = adversarial
            total = total + settings.gan * min(1.0, step / max(1, settings.gan_warmup)) * adversarial
        if settings.pixel:
            losses["pixel"] = charbonnier(x - images).mean()
            total = total + settings.pixel * losses["pixel"]
        return {"total": total, **losses}

    def _critic(self, images: Tensor, conditions: Conditions, draws: Draws) -> dict[str, Tensor]:
        settings = self.settings
        with torch.no_grad():
            x = self._make(images, conditions, draws)
        t, noise = self._look(images, draws)
        x_t = interpolate(x, noise, t)
        losses = {"score_matching": flow_matching(_velocity(self.fake, x_t, t, conditions), x, noise)}
        total = settings.score_matching * losses["score_matching"]
        if self.discriminator is not None:
            # The same levels and noise, so that nothing but the images tells them apart.
            real_t = interpolate(images, noise, t)
            real, fake = self._logits(real_t, t, conditions), self._logits(x_t, t, conditions)
            losses["discriminator"] = discriminator_loss(real, fake)
            total = total + losses["discriminator"]
            if settings.r1:
                moved = real_t + settings.r1_noise * draws.normal(*images.shape[1:])
                losses["r1"] = approximate_r1(real, self._logits(moved, t, conditions))
                total = total + settings.r1 * losses["r1"]
        return {"total": total, **losses}

    def _make(self, images: Tensor, conditions: Conditions, draws: Draws) -> Tensor:
        """x (B,3,H,W): the clean image that the student sees in one of its steps, with a gradient through that step
        alone. Both turns draw from the same distribution, or the fake score would learn another than it is asked for.
        """
        shape, steps = images.shape[1:], len(self.times) - 1
        if self.settings.rollout == "noised":
            begins = torch.tensor(self.times[:-1], device=images.device)
            t = begins[(draws.uniform() * steps).long()]
            x_t = interpolate(images, draws.normal(*shape), t)
        else:
            last = int(draws.common() * steps)  # one for all: sharded networks must be called equally often
            t, x_t = self._level(self.times[0], images), draws.normal(*shape)
            with torch.no_grad():
                for _, following in pairwise(self.times[: last + 1]):
                    x0 = clean(x_t, _velocity(self.network, x_t, t, conditions), t)
                    t = self._level(following, images)
                    x_t = interpolate(x0, draws.normal(*shape), t)
        return clean(x_t, _velocity(self.network, x_t, t, conditions), t)

    def _look(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """t (B,) and eps (B,3,H,W) of a look at the student's images."""
        return noise_levels(self.settings.levels, draws, *images.shape[-2:]), draws.normal(*images.shape[1:])

    def _teach(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """The teacher's x0 (B,3,H,W), guided, without gradient; and the student's adversarial loss on the features of
        the same call, whose gradient reaches x_t alone."""
        seen_at, adversarial = x_t.detach(), None
        if self.discriminator is None:
            with torch.no_grad():
                velocity = _velocity(self.teacher, seen_at, t, conditions)
        else:
            seen_at.requires_grad_()
            with watching(self.teacher, self.settings.block) as seen:
                velocity = _velocity(self.teacher, seen_at, t, conditions).detach()
            adversarial = _passed(generator_loss(self._judge(seen, x_t)), seen_at, x_t)
        seen_at = seen_at.detach()
        if self.null is not None:
            text = self.null.to(x_t.device).expand(len(x_t), -1, -1)
            with torch.no_grad():
                without = self.teacher(seen_at, t, text, conditions.latent, conditions.sigma)
            velocity = without + self.settings.guidance * (velocity - without)
        return clean(seen_at, velocity, t), adversarial

    def _logits(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The discriminator's logits (B,1), with a gradient to its weights alone."""
        with torch.no_grad(), watching(self.teacher, self.settings.block) as seen:
            _velocity(self.teacher, x_t, t, conditions)
        return self._judge(seen, x_t)

    def _judge(self, seen: Seen, x_t: Tensor) -> Tensor:
        """Logits (B,1) of what the teacher's tokens at x_t look like."""
        assert self.discriminator is not None
        height, width = x_t.shape[-2:]
        return self.discriminator(seen.grid(height, width, self.teacher.settings.backbone.patch).float()).float()

    @staticmethod
    def _level(t: float, images: Tensor) -> Tensor:
        return torch.full((len(images),), t, device=images.device)


def _velocity(network: PiD, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
    return network(x_t, t, conditions.text, conditions.latent, conditions.sigma)


def _passed(loss: Tensor, at: Tensor, inputs: Tensor) -> Tensor:
    """The value of `loss`, a function of the leaf `at`, with its gradient passed on to `inputs`, which have the same
    values, and to no weights on the way: none must be switched off for it, which sharded networks would not notice. The
    graph of `loss` is released."""
    with torch.autocast(at.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(loss, at)
    return loss.detach() + (gradient * (inputs - inputs.detach())).sum()


def _discriminator(teacher: PiD, seed: int) -> Discriminator:
    """A fresh one for the teacher's tokens, on its device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Discriminator(teacher.settings.backbone.hidden)
    return made.to(next(teacher.parameters()).device)


def _check(student: PiD, teacher: PiD, settings: StudentSettings, times: Sequence[float]) -> None:
    if student is teacher:
        raise ValueError("student and teacher are one network; copy it")
    for name, network in (("student", student), ("teacher", teacher)):
        if network.adapter is None:
            raise ValueError(f"the {name} has no latent adapter; a student is made of a decoder")
        if network.adapter.settings.scale != settings.conditions.degrade.scale:
            raise ValueError(
                f"conditions.degrade.scale={settings.conditions.degrade.scale}: the {name} decodes "
                f"{network.adapter.settings.scale}x; set it to that"
            )
    mine, theirs = student.settings.backbone.text_width, teacher.settings.backbone.text_width
    if mine != theirs:
        raise ValueError(f"the student's text is {mine} wide, the teacher's {theirs}; they are given the same")
    if len(times) < 2 or times[-1] != 0 or any(not b < a <= 1 for a, b in pairwise(times)):
        raise ValueError(f"times={tuple(times)}: expected noise levels that fall from at most 1 to 0")
    if settings.guidance != 1 and theirs is None:
        raise ValueError(f"guidance={settings.guidance}: this teacher reads no text to be guided by; set it to 1")
    depth = teacher.settings.backbone.depth
    if settings.gan and not 0 <= settings.block < depth:
        raise ValueError(f"block={settings.block}: the teacher has {depth} patch blocks, numbered from 0")
