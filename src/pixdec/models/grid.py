"""Where an image's tokens and pixels are: what the blocks of a PixelDiT must know besides the tokens themselves.

It depends on the size of the image alone, so it is made once for all calls on images of that size.

B batch · H, W image pixels · p patch side · L = H/p · W/p patch tokens, of which l are computed here
d width of a head · heads of attention · T text tokens
P = p² pixels of a patch · c pixel width
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixdec.layers.attention import merge_heads
from pixdec.layers.sinusoids import pixel_rows
from pixdec.models.execution import Execution

TEXT_THETA = 10000.0


@dataclass(frozen=True)
class Grid:
    """What attention must know of the tokens' places, and how it is computed. With a context the tokens are the band of
    this process; all bands have `sizes` tokens."""

    image: Tensor  # (2, l, d/2) rotary table
    text: Tensor | None  # (2, T, d/2) rotary table of the text
    how: Execution
    sizes: tuple[int, ...] = ()

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, heads, l, d) -> (B,l,heads·d)."""
        k, v = self._keys_and_values(k, v)
        return merge_heads(self.how.kernel(q, k, v))

    def attention_with_text(
        self, q: Tensor, k: Tensor, v: Tensor, text: tuple[Tensor, Tensor, Tensor], *, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `attention`, over [text, image]: the image's (B,l,heads·d), and unless it is the last the text's."""
        k, v = self._keys_and_values(k, v)
        k, v = torch.cat((text[1], k), 2), torch.cat((text[2], v), 2)
        if last:
            return merge_heads(self.how.kernel(q, k, v)), None
        attended = merge_heads(self.how.kernel(torch.cat((text[0], q), 2), k, v))
        words, image = attended.split((text[0].shape[2], q.shape[2]), 1)
        return image, words

    def whole(self, band: Tensor, axis: int) -> Tensor:
        """What lies along `axis` for the tokens that are computed here -> the same for all tokens of the image."""
        return band if self.how.context is None else self.how.context.gather(band, axis, self.sizes)

    def _keys_and_values(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the tokens that are computed here, (B, heads, l, d) -> those that they see."""
        if self.how.context is None:
            return k, v
        k, v = self.whole(torch.stack((k, v)), 3).unbind()
        return k, v


@dataclass(frozen=True)
class Grids:
    """All that depends on the size of the image alone: the grids of the patch blocks and of the pixel blocks, and
    tables whose sum is the position table of the pixels of the rows of patches that are computed here; each broadcasts
    to (B,rows,columns,p,p,c)."""

    patches: Grid
    squeezed: Grid
    rows: int
    columns: int
    positions: Sequence[Tensor]

    def add_positions(self, pixels: Tensor) -> Tensor:
        """Pixels (B,L,P,c) -> the same with their positions added; without gradients in their place."""
        side = math.isqrt(pixels.shape[2])
        each = pixels.view(pixels.shape[0], self.rows, self.columns, side, side, -1)
        if torch.is_grad_enabled():
            for table in self.positions:
                each = each + table
            return each.view_as(pixels)
        for table in self.positions:
            each.add_(table)
        return pixels


def pixel_positions(rows: range, columns: int, side: int, width: int, device: torch.device) -> Sequence[Tensor]:
    """`Grids.positions` of these rows of patches: x has the first half of the channels, y the second."""
    down = pixel_rows(rows.start * side, len(rows) * side, width, device)  # (H,c/2)
    across = pixel_rows(0, columns * side, width, device)
    down = torch.cat((down.new_zeros(down.shape), down), -1)
    across = torch.cat((across, across.new_zeros(across.shape)), -1)
    return across.view(1, 1, -1, 1, side, width), down.view(1, -1, 1, side, 1, width)
