"""What the bundled decoder is trained on besides pixels: ST-LPIPS's features, and an adversary."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLICES = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))
_WIDTHS = (64, 128, 256, 512, 512)


class ShiftTolerantVGG(nn.Module):
    """ST-LPIPS (Ghildyal & Liu 2022, arXiv 2207.13686) on VGG-16: the distance, or single levels of it as a loss.

    The weights (BSD-2) are read from the installed package `stlpips-pytorch`.
    """

    shift: Tensor
    scale: Tensor
    blur: Tensor

    def __init__(self, path: Path | None = None):
        super().__init__()
        if path is None:
            spec = find_spec("stlpips_pytorch")
            if spec is None or spec.origin is None:
                raise ValueError("ST-LPIPS's weights are not installed; `pip install --no-deps stlpips-pytorch`")
            path = Path(spec.origin).parent / "weights/vST0.0/vgg_shift_tolerant.pth"
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.register_buffer("shift", state["scaling_layer.shift"])
        self.register_buffer("scale", state["scaling_layer.scale"])
        for level, (layers, width) in enumerate(zip(_SLICES, _WIDTHS, strict=True)):
            for layer in layers:
                for part in ("weight", "bias"):
                    self.register_buffer(f"{part}_{layer}", state[f"net.slice{level + 1}.{layer}.{part}"])
            self.register_buffer(f"mix_{level}", state[f"lin{level}.model.1.weight"].view(1, width, 1, 1))
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", (kernel[:, None] * kernel / 16)[None, None])

    def features(self, images: Tensor, levels: int = 5) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> each level's features, unit length over channels, float32."""
        x, made = (images - self.shift) / self.scale, list[Tensor]()
        for level, layers in enumerate(_SLICES[:levels]):
            if level > 0:
                x = torch.maximum(x[:, :, 1:], x[:, :, :-1])  # a maximum of 2 x 2 places at stride 1, quicker so
                x = torch.maximum(x[..., 1:], x[..., :-1])
                x = F.pad(x, (1, 1, 1, 1), mode="reflect")
                x = F.conv2d(x, self.blur.to(x.dtype).expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])
            for layer in layers:
                x = F.relu(F.conv2d(x, getattr(self, f"weight_{layer}"), getattr(self, f"bias_{layer}"), padding=1))
            wide = x.float()
            made.append(wide / (wide.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return made

    def distance(self, images: Tensor, truth: Tensor, weights: tuple[float, ...] = (1.0,) * 5) -> Tensor:
        """(B,) weighted sum over levels of the mean over places of mix·(f − f')²; all ones is ST-LPIPS itself."""
        with torch.no_grad():
            wanted = self.features(truth, len(weights))
        total = torch.zeros(len(images), device=images.device)
        for level, (f, g) in enumerate(zip(self.features(images, len(weights)), wanted, strict=True)):
            if weights[level]:
                total = total + weights[level] * ((f - g).square() * getattr(self, f"mix_{level}")).sum(1).mean((1, 2))
        return total


class Critic(nn.Module):
    """Images (B,3,H,W) beside the low-resolution image (B,3,H/4,W/4) -> logits (B,N), high for real ones; at two
    scales: 8 pixels across, and 34."""

    def __init__(self, width: int = 32):
        super().__init__()

        def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
            made = nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2)
            nn.init.kaiming_normal_(made.weight, a=0.2)
            return made

        self.enter, self.deeper = conv(3, width, 4, 2), conv(width, 2 * width, 4, 2)
        self.grain = nn.Sequential(conv(width, width, 3), nn.LeakyReLU(0.2), conv(width, 1, 1))
        self.body = nn.Sequential(
            conv(2 * width + 3, 4 * width, 3),
            nn.LeakyReLU(0.2),
            conv(4 * width, 4 * width, 3),
            nn.LeakyReLU(0.2),
            conv(4 * width, 4 * width, 3),
            nn.LeakyReLU(0.2),
            conv(4 * width, 1, 1),
        )

    def forward(self, images: Tensor, low: Tensor) -> Tensor:
        half = F.leaky_relu(self.enter(F.pad(images, (0, 1, 0, 1), mode="replicate")), 0.2)
        quarter = F.leaky_relu(self.deeper(F.pad(half, (0, 1, 0, 1), mode="replicate")), 0.2)
        low = F.interpolate(low, quarter.shape[-2:], mode="nearest")
        body = self.body(torch.cat((quarter, low.to(quarter.dtype)), 1))
        return torch.cat((self.grain(half).flatten(1), body.flatten(1)), 1).float()
