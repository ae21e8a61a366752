"""TAEF2, Ollin Boer Bohan's tiny autoencoder of the FLUX.2 latent space (MIT): teacher and baseline of our own.

Its weights are not part of this package; `load_taef2` reads the two original files. Latents are the FLUX.2 ones after
the VAE's batch norm, unpacked: (B,32,H/8,W/8). The original works on images in [0,1]; here images are in [-1,1] like
everywhere else.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

WIDTH = 64
LATENT_CHANNELS = 32


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Block(nn.Module):
    """relu(conv-relu-conv-relu-conv (x) + x); a pooled block first adds a wide 1 x 1 bottleneck with group norm."""

    def __init__(self, *, pooled: bool = False):
        super().__init__()
        self.conv = nn.Sequential(_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH))
        wide = 4 * WIDTH
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:  # (B,64,h,w) -> (B,64,h,w)
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    """3·tanh(x/3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, WIDTH), Block()]
    for level in range(3):
        layers.append(_conv(WIDTH, WIDTH, stride=2, bias=False))
        layers += [Block(pooled=level == 2) for _ in range(3)]
    return nn.Sequential(*layers, _conv(WIDTH, LATENT_CHANNELS))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [SoftClamp(), _conv(LATENT_CHANNELS, WIDTH), nn.ReLU()]
    for level in range(3):
        layers += [Block(pooled=level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(), _conv(WIDTH, 3))


class TAEF2(nn.Module):
    """Both halves of TAEF2."""

    def __init__(self):
        super().__init__()
        self.encoder_layers = _encoder()
        self.decoder_layers = _decoder()

    def encode(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> normalised, unpacked FLUX.2 latents (B,32,H/8,W/8)."""
        return self.encoder_layers((images + 1) / 2)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (B,32,h,w) -> images (B,3,8h,8w), clamped to [-1,1]."""
        return (self.decoder_layers(latent) * 2 - 1).clamp(-1, 1)


def load_taef2(folder: str | Path) -> TAEF2:
    """TAEF2 in float32 from a folder that holds `taef2_encoder.pth` and `taef2_decoder.pth`.

    Raises ValueError if a file is missing or does not fit.
    """
    network = TAEF2()
    for half, layers in (("encoder", network.encoder_layers), ("decoder", network.decoder_layers)):
        path = Path(folder) / f"taef2_{half}.pth"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected TAEF2's original weights taef2_{half}.pth in this folder")
        layers.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
