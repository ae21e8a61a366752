"""The discriminator of distillation: a small head on the features of a frozen teacher.

B batch · D feature channels · Hs, Ws patch grid
Source: PiD (arXiv 2605.23902), after DMD2 (arXiv 2405.14867).
"""

from torch import Tensor, nn
from torch.nn import functional as F

NEGATIVE_SLOPE = 0.2
CHANNELS_PER_GROUP = 4
MOST_GROUPS = 32


class Discriminator(nn.Module):
    """Teacher features (B,D,Hs,Ws) -> logits (B,1), positive for real images: 4 x 4 convolution of stride 2 to D/2
    channels, group norm, leaky ReLU, 1 x 1 convolution, mean over places."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv = nn.Conv2d(width, half, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(min(MOST_GROUPS, half // CHANNELS_PER_GROUP), half)
        self.logit = nn.Conv2d(half, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.conv(features)), NEGATIVE_SLOPE)
        return self.logit(x).mean((2, 3))
