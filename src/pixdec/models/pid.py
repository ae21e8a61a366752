"""PiD: a PixelDiT backbone that decodes a latent, let in by the adapter and its sigma-aware gates.

B batch · H, W output pixels · L patch tokens · D hidden width · C latent channels · h, w latent grid
T text tokens · E their width
x_t = (1−t)·x0 + t·eps, t = 1 is noise; the network gives the velocity v = eps − x0.
"""

from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.models.adapter import GATE_BIAS, AdapterSettings, Injected, LatentAdapter, SigmaGate
from pixdec.models.deblock import BLOCK, Deblock, bands
from pixdec.models.execution import PLAIN, Execution
from pixdec.models.pixdit import PixDiT, PixDiTSettings
from pixdec.models.tiny_vae import TinyDecoder, TinyVAESettings

MIN_T = 0.05
_ZERO_AT_FIRST = (".modulation.", "final_linear", "adapter.heads", "pixel_head", "deblock.out")


@dataclass(frozen=True)
class PiDSettings:
    """A whole network. `adapter` None is the text-to-image prior.

    `prediction` says what the backbone's output means:
    "velocity" the velocity itself; "x0" the clean image, v = (x_t − x0)/max(t, 0.05);
    "residual" what a quick decode of the latent lacks, see `Residual`; needs `base`. Then a network of small patches
    may have a `deblock` filter, of that many hidden channels.
    """

    backbone: PixDiTSettings = field(default_factory=PixDiTSettings)
    adapter: AdapterSettings | None = field(default_factory=AdapterSettings)
    prediction: Literal["velocity", "x0", "residual"] = "velocity"
    base: TinyVAESettings | None = None
    residual_std: float = 0.15
    deblock: int | None = None

    def __post_init__(self):
        if self.deblock is not None and (self.prediction != "residual" or self.backbone.patch % BLOCK):
            raise ValueError(
                f"deblock={self.deblock}: for residual networks whose patches are multiples of {BLOCK} pixels, got "
                f"prediction={self.prediction!r} with patch={self.backbone.patch}"
            )
        if (self.prediction == "residual") != (self.base is not None):
            raise ValueError(
                f"prediction={self.prediction!r} with base={self.base}: "
                "a residual needs a base decoder, and no other prediction has one"
            )
        if self.base is not None:
            adapter, channels = self.adapter, self.base.latent_channels
            if adapter is None or self.backbone.in_channels != 6:
                raise ValueError("a base decoder needs an adapter, and a backbone with in_channels=6")
            if adapter.latent_factor != 8 * adapter.unpack or adapter.latent_channels != channels * adapter.unpack**2:
                raise ValueError(
                    f"a base decoder of {channels} channels at 1/8 does not fit latents of {adapter.latent_channels} "
                    f"channels at 1/{adapter.latent_factor} with unpack={adapter.unpack}"
                )


@dataclass(frozen=True)
class Condition:
    """What the network makes of a latent once for a whole decode: it depends neither on t nor on sigma.

    `features`: (B,k,Hs,Ws) of the adapter; `tokens`: what is let in at each injection point, made of the features by a
    Linear each, or None to make it in every call; `base`: (B,3,H,W) in [-1,1], for residual networks only.
    """

    features: Tensor
    tokens: list[Injected] | None
    base: Tensor | None

    def crop(self, top: int, left: int, height: int, width: int, patch: int) -> "Condition":
        """What belongs to a rectangle of output pixels, all multiples of the patch side. Its tokens are made in every
        call: for a whole large image they would take many times the memory of its features."""
        rows, columns = (slice(a // patch, (a + b) // patch) for a, b in ((top, height), (left, width)))
        base = None if self.base is None else self.base[:, :, top : top + height, left : left + width]
        return Condition(self.features[:, :, rows, columns], None, base)


class PiD(nn.Module):
    """`network(x_t, t, text, latent, sigma) -> velocity`."""

    def __init__(self, settings: PiDSettings):
        super().__init__()
        self.settings = settings
        backbone, adapter = settings.backbone, settings.adapter
        self.backbone = PixDiT(backbone)
        self.adapter = self.gates = self.pixel_gate = None
        if adapter is not None:
            self.adapter = LatentAdapter(adapter, patch=backbone.patch, hidden=backbone.hidden, depth=backbone.depth)
            self.gates = nn.ModuleList(SigmaGate(backbone.hidden, adapter.gate) for _ in self.adapter.heads)
            self.pixel_gate = SigmaGate(backbone.hidden, adapter.gate) if adapter.pixel_head else None
        self.base = TinyDecoder(settings.base) if settings.base is not None else None
        self.deblock = Deblock(3 + backbone.in_channels, settings.deblock) if settings.deblock is not None else None

    @property
    def patch(self) -> int:
        """Sides of images are multiples of so many pixels."""
        return self.settings.backbone.patch

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.backbone.patch_embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are; those of offloaded blocks may be elsewhere."""
        return self.backbone.patch_embed.weight.device

    def initialise(self, seed: int = 0) -> Self:
        """Fresh weights, in place: Xavier-uniform Linears; zero modulations, final Linear, adapter heads and last
        convolution of the deblocking filter, so that every block starts as the identity and the rest as if it were not
        there; truncated-normal (0.02) convolutions."""
        torch.manual_seed(seed)
        for name, module in self.named_modules():
            if name.startswith("base."):
                continue
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.startswith("base."):
                continue
            if any(part in name for part in _ZERO_AT_FIRST):
                nn.init.zeros_(parameter)
            if "content.bias" in name:
                nn.init.constant_(parameter, GATE_BIAS)
        return self

    def condition(self, latent: Tensor, *, tokens: bool = True) -> Condition:
        """Normalised latent (B,C,h,w) -> what all steps of a decode share. Without `tokens` a call takes about a
        hundredth longer and a condition a tenth of the memory."""
        assert self.adapter is not None, "a prior takes no latent"
        base = None
        if self.base is not None:
            base = F.interpolate(
                self.preview(latent), scale_factor=self.adapter.settings.scale, mode="bicubic", align_corners=False
            )
        features = self.adapter.features(latent)
        points = range(len(self.adapter.heads) + (self.pixel_gate is not None))
        return Condition(features, [self._injected(features, i) for i in points] if tokens else None, base)

    def _injected(self, features: Tensor, point: int) -> Injected:
        """What is let in at injection point number `point`; the one after the patch blocks' is the pixel blocks'."""
        assert self.adapter is not None
        return self._gate(point).prepare(self.adapter.token(features, point))

    def _gate(self, point: int) -> SigmaGate:
        """The gate of an injection point."""
        assert self.gates is not None
        gate = self.gates[point] if point < len(self.gates) else self.pixel_gate
        assert isinstance(gate, SigmaGate)
        return gate

    def preview(self, latent: Tensor) -> Tensor:
        """What the base decoder makes of a normalised latent (B,C,h,w): the image (B,3,h·factor,w·factor), float32."""
        assert self.base is not None and self.adapter is not None
        latent = F.pixel_shuffle(latent.to(self.base.conv_in.weight.dtype), self.adapter.settings.unpack)
        return self.base(latent).float()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        text: Tensor | None,
        latent: Tensor | None,
        sigma: Tensor | None,
        how: Execution = PLAIN,
    ) -> Tensor:
        """x_t (B,3,H,W), t (B,) in [0,1], text (B,T,E), normalised latent (B,C,h,w), sigma (B,) -> velocity (B,3,H,W),
        float32.

        text None for a network without text, latent and sigma None for one without an adapter.
        """
        # Where an image is shared by processes, each makes the tokens of its own band.
        condition = None if latent is None else self.condition(latent, tokens=how.context is None)
        return self.velocity(x_t, t, text, condition, sigma, how)

    def velocity(
        self,
        x_t: Tensor,
        t: Tensor,
        text: Tensor | None,
        condition: Condition | None,
        sigma: Tensor | None,
        how: Execution = PLAIN,
    ) -> Tensor:
        """As `forward`, from a condition that was computed before."""
        t4 = t.float()[:, None, None, None]
        here = condition if condition is None or how.context is None else self._band(condition, x_t, how)

        def inject(i: int, tokens: Tensor) -> Tensor:
            if here is None or sigma is None:
                return tokens
            assert self.adapter is not None and self.gates is not None
            last = i == self.settings.backbone.depth
            point, between = (
                (len(self.gates), self.pixel_gate is None) if last else divmod(i, self.adapter.settings.interval)
            )
            if between:
                return tokens
            given = self._injected(here.features, point) if here.tokens is None else here.tokens[point]
            return self._gate(point)(tokens, given, sigma)

        if self.settings.prediction == "residual":
            assert condition is not None and condition.base is not None
            frame = Residual(condition.base, self.settings.residual_std)
            output = self.backbone(frame.inputs(x_t, t4), t, text, inject, how)
            return frame.velocity(x_t, t4, self._deblocked(output, frame, x_t, t, t4, how.chunk).float())
        output = self.backbone(x_t, t, text, inject, how).float()
        if self.settings.prediction == "x0":
            return (x_t - output) / t4.clamp_min(MIN_T)
        return output

    def _deblocked(
        self, output: Tensor, frame: "Residual", x_t: Tensor, t: Tensor, t4: Tensor, chunk: int | None
    ) -> Tensor:
        """The backbone's output (B,3,H,W) through the deblocking filter, if there is one; without gradients about
        `chunk` patches at a time. The backbone's inputs are made again, a band at a time: kept, they would be alive
        beside all that it computes."""
        if self.deblock is None:
            return output
        (height, width), patch = output.shape[-2:], self.settings.backbone.patch
        rows = height if chunk is None or torch.is_grad_enabled() else max(1, chunk // (width // patch)) * patch
        made = list[Tensor]()
        for around, inside in bands(height, rows):
            part = slice(None), slice(None), around
            inputs = Residual(frame.base[part], frame.std).inputs(x_t[part], t4)
            made.append(self.deblock(output[part], inputs, t)[:, :, inside])
        return made[0] if len(made) == 1 else torch.cat(made, 2)

    def _band(self, condition: Condition, x_t: Tensor, how: Execution) -> Condition:
        """The part of a condition that belongs to the rows of patches that the backbone computes here."""
        patch, (height, width) = self.settings.backbone.patch, x_t.shape[-2:]
        rows = how.band(height // patch)
        return condition.crop(rows.start * patch, 0, len(rows) * patch, width, patch)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight (B,) of the squared velocity error that makes the target of the backbone of unit variance at every
        t."""
        if self.settings.prediction != "residual":
            return torch.ones_like(t)
        return Residual.variance(t, self.settings.residual_std) / self.settings.residual_std**2


class Residual:
    """The frame in which a residual network works: the image is a base (a quick decode, upsampled) plus a residual r of
    standard deviation d. With y = x_t − (1−t)·base = (1−t)·r + t·eps, of variance q = (1−t)²d² + t², the best linear
    guess of r is (1−t)d²/q·y with error d·t/sqrt(q); the network F, of unit variance, gives the rest:

        x0 = base + (1−t)·d²/q·y + d·t/sqrt(q)·F
        v  = (x_t − x0)/t = (t − (1−t)·d²)/q·y − base − d/sqrt(q)·F

    which is EDM's preconditioning (Karras et al. 2022, table 1) for this noise path. The velocity has no pole at t = 0.
    """

    def __init__(self, base: Tensor, std: float):
        self.base, self.std = base, std

    @staticmethod
    def variance(t: Tensor, std: float) -> Tensor:
        """q, the variance of y."""
        return (1 - t) ** 2 * std**2 + t**2

    def inputs(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the backbone sees (B,6,H,W): y at unit variance, and the base."""
        y = torch.addcmul(x_t, self.base, t - 1)
        return torch.cat((y * self.variance(t, self.std).rsqrt(), self.base), 1)

    def velocity(self, x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """v from the backbone's output F (B,3,H,W), written in x_t and base instead of y."""
        variance = self.variance(t, self.std)
        slope = (t - (1 - t) * self.std**2) / variance
        v = torch.addcmul(slope * x_t, self.base, slope * (1 - t) + 1, value=-1)
        return torch.addcmul(v, output, self.std * variance.rsqrt(), value=-1)
