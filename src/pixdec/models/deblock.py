"""A learned deblocking filter: what lies on both sides of a patch's border is seen together.

The pixel blocks work inside patches, whose pixels meet those of the next patch only as squeezed tokens. In a small
network that shows as a faint grid. Three convolutions over the finished output, at a quarter of its resolution, see
twelve pixels across each border and take the grid out, as the deblocking filters of video codecs do.

B batch · H, W pixels
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.models.pixdit import parts

BLOCK = 4  # pixels a side of what is one position for the convolutions
REACH = 3 * BLOCK  # pixels that a pixel's neighbourhood reaches beyond its own position


class Deblock(nn.Module):
    """output + conv(SiLU(conv(SiLU(conv([output, inputs]) + Linear(logit t))))), 3 x 3 positions of 4 x 4 pixels."""

    def __init__(self, channels: int, width: int):
        """`channels` of output and inputs together, `width` of the hidden layer."""
        super().__init__()
        self.conv = nn.Conv2d(channels * BLOCK**2, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.mid = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 3 * BLOCK**2, 3, padding=1)

    def forward(self, output: Tensor, inputs: Tensor, t: Tensor) -> Tensor:
        """The network's output (B,3,H,W), what it was made of (B,C,H,W), t (B,) -> the output without its grid,
        (B,3,H,W)."""
        dtype = self.conv.weight.dtype
        time = torch.logit(t.float(), eps=1e-3)[:, None] / 4
        x = self.conv(F.pixel_unshuffle(torch.cat((output.to(dtype), inputs.to(dtype)), 1), BLOCK))
        x = F.silu(self.mid(F.silu(x + self.time(time.to(dtype))[:, :, None, None])))
        return output + F.pixel_shuffle(self.out(x), BLOCK)


def bands(height: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """An image of so many rows of pixels in bands of `rows`, a multiple of BLOCK: where each is together with the
    neighbourhood that its pixels need, and where it is inside that."""
    for band in parts(height, rows):
        first = max(0, band.start - REACH)
        yield slice(first, min(height, band.stop + REACH)), slice(band.start - first, band.stop - first)
