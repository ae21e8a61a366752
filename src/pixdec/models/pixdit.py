"""PixelDiT: patch blocks over p x p patches of the image, then pixel blocks over the pixels inside each patch.

B batch · H, W image pixels · p patch side · Hs = H/p, Ws = W/p · L = Hs·Ws patch tokens · D hidden width
T text tokens · E width of the text embeddings
P = p² pixels of a patch · c pixel width · A width of the pixel blocks' attention

Source: PixelDiT as used by PiD (arXiv 2605.23902) and its released checkpoints.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.layers.attention import queries_keys_values
from pixdec.layers.norms import RMSNorm, modulated_norm
from pixdec.layers.patching import patch_pixels, patch_vectors, pixels_to_image
from pixdec.layers.rope import image_table, text_table
from pixdec.layers.sinusoids import time_sinusoid
from pixdec.models.execution import PLAIN, Execution
from pixdec.models.grid import TEXT_THETA, Grid, Grids, pixel_positions

TIME_WIDTH = 256
TOKENS_AT_ONCE = 8192  # in the MLPs of patch blocks, whose hidden activations would be the most that is alive at once


@dataclass(frozen=True)
class PixDiTSettings:
    """Sizes of the backbone; the defaults are the released network's (1.30 B parameters).

    `text_width` None leaves the text stream out. `reference` is the image size (height, width) at which the rotary
    bases are 10 000 (None: at every size).
    """

    patch: int = 16
    hidden: int = 1536
    heads: int = 24
    depth: int = 14
    pixel_width: int = 16
    pixel_hidden: int = 1152
    pixel_heads: int = 16
    pixel_depth: int = 2
    text_width: int | None = 2304
    text_length: int = 300
    reference: tuple[int, int] | None = (1024, 1024)

    def __post_init__(self):
        for name, width, heads in (
            ("hidden", self.hidden, self.heads),
            ("pixel_hidden", self.pixel_hidden, self.pixel_heads),
        ):
            if width % (4 * heads):
                raise ValueError(
                    f"{name}={width} with {heads} heads: a head must be a multiple of 4 wide; change either"
                )


def parts(length: int, chunk: int) -> Iterator[slice]:
    """`chunk` at a time of so many."""
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def in_place(x: Tensor, places: Iterable[slice], make: Callable[[slice], Tensor]) -> Tensor:
    """What `make` makes of each of these places along the second axis of x, together. Without gradients it takes the
    place of what it was made of, so that a large x does not exist twice."""
    if torch.is_grad_enabled():
        return torch.cat([make(i) for i in places], 1)
    for i in places:
        x[:, i] = make(i)
    return x


class SwiGLU(nn.Module):
    """down(SiLU(gate(x))·up(x)), hidden width ⌊2·4D/3⌋, no biases."""

    def __init__(self, width: int):
        super().__init__()
        hidden = 2 * 4 * width // 3
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        if torch.is_grad_enabled():
            return self.down(F.silu(gate) * up)
        return self.down(F.silu(gate, inplace=True).mul_(up))


Projected = tuple[Tensor, Tensor, Tensor]  # q, k, v, each (B, heads, L, d)


class Stream(nn.Module):
    """One stream's half of a patch block: its modulations, projections and MLP. Attention joins two of them."""

    def __init__(self, settings: PixDiTSettings):
        super().__init__()
        width, self.heads = settings.hidden, settings.heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = RMSNorm(width // settings.heads)
        self.k_norm = RMSNorm(width // settings.heads)
        self.proj = nn.Linear(width, width)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width)

    def modulations(self, c: Tensor) -> tuple[Tensor, ...]:
        """shift1, scale1, gate1, shift2, scale2, gate2, each (B,1,D)."""
        return self.modulation(c).chunk(6, -1)

    def project(
        self,
        x: Tensor,
        modulation: tuple[Tensor, ...],
        table: Tensor,
        *,
        queries: bool = True,
    ) -> Projected:
        """Tokens (B,L,D) -> rotated q, k and v; without `queries` q is of no use."""
        shift, scale = modulation[:2]
        qkv = self.qkv(modulated_norm(x, self.norm1.weight * (1 + scale), shift))
        return queries_keys_values(qkv, self.heads, self.q_norm.weight if queries else None, self.k_norm.weight, table)

    def finish(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Gated residuals of attention (B,L,D) and MLP."""
        gate1, shift2, scale2, gate2 = modulation[2:]
        x, gain2 = torch.addcmul(x, gate1, self.proj(attended)), self.norm2.weight * (1 + scale2)
        if torch.compiler.is_compiling():  # whatever the number of tokens
            return torch.addcmul(x, gate2, self.mlp(modulated_norm(x, gain2, shift2)))
        at_once = parts(x.shape[1], TOKENS_AT_ONCE)
        return in_place(
            x, at_once, lambda i: torch.addcmul(x[:, i], gate2, self.mlp(modulated_norm(x[:, i], gain2, shift2)))
        )


class PatchBlock(nn.Module):
    """Joint attention over [text, image], then an MLP for each stream."""

    def __init__(self, settings: PixDiTSettings, *, last: bool):
        super().__init__()
        self.last = last  # nobody reads the text that the last block would put out
        self.image = Stream(settings)
        self.text = Stream(settings) if settings.text_width is not None else None

    def forward(self, x: Tensor, text: Tensor | None, c: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """Tokens (B,L,D), text (B,T,D), condition c (B,1,D) -> tokens, and the text if anybody reads it."""
        image_modulation = self.image.modulations(c)
        projected = self.image.project(x, image_modulation, grid.image)
        if self.text is None or text is None or grid.text is None:
            return self.image.finish(x, grid.attention(*projected), image_modulation), None

        text_modulation = self.text.modulations(c)
        projected_text = self.text.project(text, text_modulation, grid.text, queries=not self.last)
        attended, text_attended = grid.attention_with_text(*projected, projected_text, last=self.last)
        x = self.image.finish(x, attended, image_modulation)
        return x, None if text_attended is None else self.text.finish(text, text_attended, text_modulation)


class PixelMLP(nn.Module):
    """down(GELU(up(x))), four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class PixelBlock(nn.Module):
    """Attention over patches that are squeezed to one token each, then an MLP for each pixel; every pixel has its own
    modulation.

    The modulations and the pixels' hidden activations are many times larger than the image, so all but the attention
    runs over `chunk` patches at a time.
    """

    def __init__(self, settings: PixDiTSettings):
        super().__init__()
        width, pixels, hidden = settings.pixel_width, settings.patch**2, settings.pixel_hidden
        self.heads, self.shape = settings.pixel_heads, (pixels, 6, width)
        self.modulation = nn.Linear(settings.hidden, pixels * 6 * width)
        self.norm1 = RMSNorm(width)
        self.compress = nn.Linear(pixels * width, hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.q_norm = RMSNorm(hidden // settings.pixel_heads)
        self.k_norm = RMSNorm(hidden // settings.pixel_heads)
        self.proj = nn.Linear(hidden, hidden)
        self.expand = nn.Linear(hidden, pixels * width)
        self.norm2 = RMSNorm(width)
        self.mlp = PixelMLP(width)

    def forward(self, x: Tensor, s: Tensor, grid: Grid, chunk: int) -> Tensor:
        """Pixels (B,L,P,c) with conditions s (B,L,D) -> (B,L,P,c); without gradients in the place of `x`."""
        before, after = self._modulators(0, 2), self._modulators(2, 6)
        tokens = torch.cat([self.squeeze(x[:, i], s[:, i], *before) for i in parts(x.shape[1], chunk)], 1)  # (B,L,A)
        tokens = self.attend(tokens, grid)
        return in_place(x, parts(x.shape[1], chunk), lambda i: self.mix(x[:, i], tokens[:, i], s[:, i], *after))

    def _modulators(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Weight and bias that give modulations `first` to `last` of the six in one product, each over all pixels:
        shift1, gain1, gate1, shift2, gain2, gate2, where gain = norm weight · (1 + scale)."""
        weight = self.modulation.weight.unflatten(0, self.shape).transpose(0, 1)[first:last]  # (k,P,c,D)
        bias = self.modulation.bias.unflatten(0, self.shape).transpose(0, 1)[first:last]
        norm1, norm2 = self.norm1.weight, self.norm2.weight
        one, none = torch.ones_like(norm1), torch.zeros_like(norm1)
        factor = torch.stack((one, norm1, one, one, norm2, one))[first:last, None]  # (k,1,c)
        offset = torch.stack((none, one, none, none, one, none))[first:last, None]
        return (weight * factor[..., None]).flatten(0, 2), ((bias + offset) * factor).flatten()

    def _modulations(self, s: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """Conditions (B,l,D) -> modulations, each (B,l,P,c)."""
        pixels, _, width = self.shape
        return F.linear(s, weight, bias).unflatten(-1, (-1, pixels, width)).unbind(-3)

    def squeeze(self, x: Tensor, s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Pixels (B,l,P,c) of some patches with their conditions (B,l,D) -> a token for each patch, (B,l,A)."""
        shift, gain = self._modulations(s, weight, bias)
        return self.compress(modulated_norm(x, gain, shift).flatten(2))

    def attend(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Attention over the squeezed tokens (B,L,A) of all patches."""
        qkv = self.qkv(tokens)
        projected = queries_keys_values(qkv, self.heads, self.q_norm.weight, self.k_norm.weight, grid.image)
        return self.proj(grid.attention(*projected))

    def mix(self, x: Tensor, attended: Tensor, s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Gated residuals of attention (B,l,A) and of the MLP, for the pixels (B,l,P,c) of some patches."""
        gate1, shift2, gain2, gate2 = self._modulations(s, weight, bias)
        x = torch.addcmul(x, gate1, self.expand(attended).view_as(x))
        return torch.addcmul(x, gate2, self.mlp(modulated_norm(x, gain2, shift2)))


class TextEmbedding(nn.Module):
    """Caption embeddings (B,T,E) -> text tokens (B,T,D): Linear, RMSNorm, plus a learned position table."""

    def __init__(self, text_width: int, text_length: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(text_width, hidden)
        self.norm = RMSNorm(hidden)
        self.positions = nn.Parameter(torch.zeros(1, text_length, hidden))

    def forward(self, text: Tensor) -> Tensor:
        return self.norm(self.proj(text)) + self.positions[:, : text.shape[1]]


class PixDiT(nn.Module):
    """The backbone. `inject` lets a latent in: it is called with (i, tokens) before patch block i, and with i = depth
    on the condition of the pixel blocks, and returns what takes the tokens' place.

    Where processes share each image (`Execution.context`), tokens, also those that `inject` sees, are the rows of
    patches of one band, and only what comes out is a whole image.
    """

    def __init__(self, settings: PixDiTSettings):
        super().__init__()
        self.settings = settings
        width = settings.hidden
        self.patch_embed = nn.Linear(3 * settings.patch**2, width)
        self.time_in = nn.Linear(TIME_WIDTH, width)
        self.time_out = nn.Linear(width, width)
        self.text_embed = (
            TextEmbedding(settings.text_width, settings.text_length, width) if settings.text_width is not None else None
        )
        self.patch_blocks = nn.ModuleList(
            PatchBlock(settings, last=i == settings.depth - 1) for i in range(settings.depth)
        )
        self.pixel_embed = nn.Linear(3, settings.pixel_width)
        self.pixel_blocks = nn.ModuleList(PixelBlock(settings) for _ in range(settings.pixel_depth))
        self.final_norm = RMSNorm(settings.pixel_width)
        self.final_linear = nn.Linear(settings.pixel_width, 3)

    def forward(
        self,
        images: Tensor,
        t: Tensor,
        text: Tensor | None,
        inject: Callable[[int, Tensor], Tensor] | None = None,
        how: Execution = PLAIN,
    ) -> Tensor:
        """images (B,3,H,W), t (B,) in [0,1], text (B,T,E) -> (B,3,H,W). H and W are multiples of p."""
        side = self.settings.patch
        rows, columns = images.shape[-2] // side, images.shape[-1] // side
        band, dtype = how.band(rows), self.patch_embed.weight.dtype
        words = 0 if text is None else text.shape[1]
        grids = grids_of(self.settings, rows, columns, words, images.device, dtype, how)
        images = images[:, :, band.start * side : band.stop * side].to(dtype)  # all of them, without a context
        vectors = patch_vectors(images, side)  # (B,L,3·P)
        s = self._conditions(vectors, t, text, inject, grids.patches)  # (B,L,D)
        chunk = how.chunk or s.shape[1]
        pixels = grids.add_positions(self.pixel_embed(patch_pixels(vectors, side)))  # (B,L,P,c)
        for block in self.pixel_blocks:
            pixels = block(pixels, s, grids.squeezed, chunk)
        made = [self.final_linear(self.final_norm(pixels[:, i])) for i in parts(s.shape[1], chunk)]  # (B,l,P,3)
        whole = pixels_to_image(torch.cat(made, 1), len(band), columns)
        if how.context is None:
            return whole
        return how.context.gather(whole, 2, [len(each) * side for each in how.context.bands(rows)])

    def _conditions(
        self,
        vectors: Tensor,
        t: Tensor,
        text: Tensor | None,
        inject: Callable[[int, Tensor], Tensor] | None,
        grid: Grid,
    ) -> Tensor:
        """Patch vectors (B,L,3·P) through the patch blocks -> conditions of the pixel blocks (B,L,D)."""
        x = self.patch_embed(vectors)  # (B,L,D)
        time = self.time_out(F.silu(self.time_in(time_sinusoid(t).to(x.dtype))))[:, None]  # (B,1,D)
        text = self.text_embed(text.to(x.dtype)) if self.text_embed is not None and text is not None else None
        c = F.silu(time)
        for i, block in enumerate(self.patch_blocks):
            x = x if inject is None else inject(i, x)
            x, text = block(x, text, c, grid)
        s = F.silu(time + x)
        return s if inject is None else inject(len(self.patch_blocks), s)


@lru_cache(maxsize=2)
def grids_of(
    settings: PixDiTSettings,
    rows: int,
    columns: int,
    words: int,
    device: torch.device,
    dtype: torch.dtype,
    how: Execution,
) -> Grids:
    """The places of an image of rows x columns patches beside so many words, kept for the next call of this size."""
    side, band = settings.patch, how.band(rows)
    here = slice(band.start * columns, band.stop * columns)
    reference = settings.reference and (settings.reference[0] // side, settings.reference[1] // side)
    sizes = () if how.context is None else tuple(len(each) * columns for each in how.context.bands(rows))

    def grid(width: int) -> Grid:
        image = image_table(rows, columns, width, reference=reference, device=device)[:, here]
        return Grid(image, text_table(words, width, TEXT_THETA, device) if words else None, how, sizes)

    with torch.inference_mode(False):  # so that training can use them after a decode
        positions = pixel_positions(band, columns, side, settings.pixel_width, device)
        return Grids(
            patches=grid(settings.hidden // settings.heads),
            squeezed=grid(settings.pixel_hidden // settings.pixel_heads),
            rows=len(band),
            columns=columns,
            positions=tuple(each.to(dtype) for each in positions),
        )
