"""Where an image's tokens and pixels are: what the blocks of a PixelDiT must know besides the tokens themselves.

It depends on the size of the image alone, so it is made once for all calls on images of that size.

B batch · H, W image pixels · p patch side · L = H/p · W/p patch tokens, of which l are computed here
d width of a head · heads of attention · T text tokens
P = p² pixels of a patch · c pixel width
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pixdec.layers.attention import Windows, merge_heads
from pixdec.layers.embeddings import pixel_rows
from pixdec.layers.rope import image_table, text_table
from pixdec.models.execution import Execution

TEXT_THETA = 10000.0


@dataclass(frozen=True)
class Grid:
    """What attention must know of the tokens' places: rotary tables, how it is computed, and windows where it is
    windowed. Then the tokens may be only some of all, a band of whole windows at `tokens`, for no window sees another.
    With a context they are the band of this process; all bands have `sizes` tokens."""

    image: Tensor  # (2, l, d/2) rotary table; (2, windows, side², d/2) where there are windows
    how: Execution
    text: Tensor | None = None  # (2, T, d/2) rotary table of the text
    windows: Windows | None = None
    mask: Tensor | None = None  # (windows, 1, 1, side²) where windows stick out of the image
    tokens: slice = field(default_factory=lambda: slice(None))
    sizes: tuple[int, ...] = ()

    def split(self, x: Tensor) -> Tensor:
        """Tokens (B,l,n) -> those that see each other: (B,l,n), or (B·windows, side², n)."""
        return x if self.windows is None else self.windows.split(x)

    def table(self, batch: int) -> Tensor:
        """The rotary table of tokens that `split` made of a batch: (2, l, d/2) or (2, B·windows, side², d/2)."""
        return self.image if self.windows is None or batch == 1 else self.image.repeat(1, batch, 1, 1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, heads, l, d), as `split` left them -> (B,l,heads·d)."""
        if self.windows is None:
            k, v = self._keys_and_values(k, v)
            return merge_heads(self.how.kernel(q, k, v, None))
        batch = q.shape[0] // self.windows.count
        mask = self.mask if self.mask is None or batch == 1 else self.mask.repeat(batch, 1, 1, 1)
        return self.windows.join(merge_heads(self.how.kernel(q, k, v, mask)))

    def attention_with_text(
        self, q: Tensor, k: Tensor, v: Tensor, text: tuple[Tensor, Tensor, Tensor], *, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `attention`, over [text, image]: the image's (B,l,heads·d), and unless it is the last the text's."""
        k, v = self._keys_and_values(k, v)
        k, v = torch.cat((text[1], k), 2), torch.cat((text[2], v), 2)
        if last:
            return merge_heads(self.how.kernel(q, k, v, None)), None
        attended = merge_heads(self.how.kernel(torch.cat((text[0], q), 2), k, v, None))
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


Bands = list[Grid]


@dataclass(frozen=True)
class Places:
    """All that depends on the size of the image alone.

    `patches`, `squeezed`: the bands of tokens of even and of odd blocks, whose windows are shifted by half, in the
    patch blocks and in the attention of the pixel blocks; one band where attention is not windowed. `positions`: the
    sum of these tables is the position table of the pixels of the rows of patches that are computed here; each
    broadcasts to (B,rows,columns,p,p,c).
    """

    patches: tuple[Bands, Bands]
    squeezed: tuple[Bands, Bands]
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


@dataclass(frozen=True)
class Attending:
    """How a group of blocks attends: heads of `width`; `reference` rows and columns of the rotary bases, `stride`, and
    `window` as in the backbone's settings; so many `words` of text beside the image; on `device`."""

    width: int
    reference: tuple[int, int] | None
    stride: float | None
    window: int | None
    words: int
    device: torch.device

    def grids(self, rows: int, columns: int, how: Execution) -> tuple[Bands, Bands]:
        """The bands of an image of rows x columns patches, of about a chunk of tokens each if attention is windowed."""
        image = image_table(rows, columns, self.width, reference=self.reference, stride=self.stride, device=self.device)
        if self.window is None:
            return (only := [self._whole(image, rows, columns, how)]), only
        assert how.context is None, "windows and a context do not go together"
        return self._windows(image, rows, columns, 0, how), self._windows(image, rows, columns, self.window // 2, how)

    def _whole(self, image: Tensor, rows: int, columns: int, how: Execution) -> Grid:
        text = text_table(self.words, self.width, TEXT_THETA, self.device) if self.words else None
        if how.context is None:
            return Grid(image, how, text)
        here, sizes = how.band(rows), tuple(len(each) * columns for each in how.context.bands(rows))
        return Grid(image[:, here.start * columns : here.stop * columns], how, text, sizes=sizes)

    def _windows(self, image: Tensor, rows: int, columns: int, shift: int, how: Execution) -> Bands:
        assert self.window is not None
        windows = Windows(rows, columns, self.window, shift, shift)
        found = Bands()
        for part, inside in windows.bands(how.chunk or rows * columns):
            table = torch.stack([inside.split(each[None]) for each in image[:, part]])
            mask = inside.mask(1, self.device)
            found.append(Grid(table, how, windows=inside, mask=mask, tokens=part))
        return found


def pixel_positions(
    rows: range, columns: int, side: int, width: int, device: torch.device, dtype: torch.dtype, *, whole: bool
) -> Sequence[Tensor]:
    """`Places.positions` of these rows of patches: one table over the whole image, or the same one in every patch."""
    first, last = (rows.start * side, rows.stop * side) if whole else (0, side)
    down = pixel_rows(first, last - first, width, device)  # (H,c/2)
    across = pixel_rows(0, columns * side if whole else side, width, device)
    none = across.new_zeros
    down = torch.cat((none(down.shape), down), -1).to(dtype)  # x has the first half of the channels, y the second
    across = torch.cat((across, none(across.shape)), -1).to(dtype)
    down, across = down.view(1, -1, 1, side, 1, width), across.view(1, 1, -1, 1, side, width)
    return (across, down) if whole else (across + down,)
