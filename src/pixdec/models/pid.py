"""PiD: a PixelDiT backbone that decodes a latent, let in by the adapter and its sigma-aware gates.

B batch · H, W output pixels · L patch tokens · D hidden width · C latent channels · h, w latent grid
T text tokens · E their width
x_t = (1−t)·x0 + t·eps, t = 1 is noise; the network gives the velocity v = eps − x0.
"""

from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor, nn

from pixdec.models.adapter import GATE_BIAS, AdapterSettings, Injected, LatentAdapter, SigmaGate
from pixdec.models.execution import PLAIN, Execution
from pixdec.models.pixdit import PixDiT, PixDiTSettings

MIN_T = 0.05
_ZERO_AT_FIRST = (".modulation.", "final_linear", "adapter.heads", "pixel_head")


@dataclass(frozen=True)
class PiDSettings:
    """A whole network. `adapter` None is the text-to-image prior.

    `prediction` says what the backbone's output means: "velocity" the velocity itself; "x0" the clean image,
    v = (x_t − x0)/max(t, 0.05).
    """

    backbone: PixDiTSettings = field(default_factory=PixDiTSettings)
    adapter: AdapterSettings | None = field(default_factory=AdapterSettings)
    prediction: Literal["velocity", "x0"] = "velocity"


@dataclass(frozen=True)
class Condition:
    """What the network makes of a latent once for a whole decode: it depends neither on t nor on sigma.

    `features`: (B,k,Hs,Ws) of the adapter; `tokens`: what is let in at each injection point, made of the features by a
    Linear each, or None to make it in every call.
    """

    features: Tensor
    tokens: list[Injected] | None

    def crop(self, top: int, left: int, height: int, width: int, patch: int) -> "Condition":
        """What belongs to a rectangle of output pixels, all multiples of the patch side. Its tokens are made in every
        call: for a whole large image they would take many times the memory of its features."""
        rows, columns = (slice(a // patch, (a + b) // patch) for a, b in ((top, height), (left, width)))
        return Condition(self.features[:, :, rows, columns], None)


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

    def initialize(self, seed: int = 0) -> Self:
        """Fresh weights, in place: Xavier-uniform Linears; zero modulations, final Linear and adapter heads, so that
        every block starts as the identity and the latent as if it were not there; truncated-normal (0.02)
        convolutions."""
        torch.manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if any(part in name for part in _ZERO_AT_FIRST):
                nn.init.zeros_(parameter)
            if "content.bias" in name:
                nn.init.constant_(parameter, GATE_BIAS)
        return self

    def condition(self, latent: Tensor, *, tokens: bool = True) -> Condition:
        """Normalised latent (B,C,h,w) -> what all steps of a decode share. Without `tokens` a call takes about a
        hundredth longer and a condition a tenth of the memory."""
        assert self.adapter is not None, "a prior takes no latent"
        features = self.adapter.features(latent)
        points = range(len(self.adapter.heads) + (self.pixel_gate is not None))
        return Condition(features, [self._injected(features, i) for i in points] if tokens else None)

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

        output = self.backbone(x_t, t, text, inject, how).float()
        if self.settings.prediction == "x0":
            return (x_t - output) / t4.clamp_min(MIN_T)
        return output

    def _band(self, condition: Condition, x_t: Tensor, how: Execution) -> Condition:
        """The part of a condition that belongs to the rows of patches that the backbone computes here."""
        patch, (height, width) = self.settings.backbone.patch, x_t.shape[-2:]
        rows = how.band(height // patch)
        return condition.crop(rows.start * patch, 0, len(rows) * patch, width, patch)
