"""The adversary of the bundled decoder's training."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Critic(nn.Module):
    """Images (B,3,H,W) beside the low-resolution image (B,3,H/4,W/4) -> logits, high for real ones, at two scales:
    (B,N) of places 8 pixels across, and (B,M) of places 34 across."""

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

    def forward(self, images: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        grain, body, _ = self.with_features(images, low)
        return grain, body

    def with_features(self, images: Tensor, low: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The logits, and what the layers on the way to them made."""
        half = F.leaky_relu(self.enter(F.pad(images, (0, 1, 0, 1), mode="replicate")), 0.2)
        quarter = F.leaky_relu(self.deeper(F.pad(half, (0, 1, 0, 1), mode="replicate")), 0.2)
        low = F.interpolate(low, quarter.shape[-2:], mode="nearest")
        features, body = [half, quarter], torch.cat((quarter, low.to(quarter.dtype)), 1)
        for layer in self.body:
            body = layer(body)
            if isinstance(layer, nn.LeakyReLU):
                features.append(body)
        return self.grain(half).flatten(1).float(), body.flatten(1).float(), features
