"""PixelDiT: patch blocks over p x p patches of the image, then pixel blocks over the pixels inside each patch.

B batch · H, W image pixels · p patch side · Hs = H/p, Ws = W/p · L = Hs·Ws patch tokens · D hidden width
T text tokens · E width of the text embeddings
P = p² pixels of a patch · c pixel width · A width of the pixel blocks' attention

Source: PixelDiT as used by PiD (arXiv 2605.23902) and its released checkpoints.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.nn.attention import Windows, attention, merge_heads, split_heads
from pixdec.nn.embeddings import pixel_table, time_sinusoid
from pixdec.nn.norms import RMSNorm, modulate
from pixdec.nn.patching import patch_pixels, patch_vectors, pixels_to_image
from pixdec.nn.rope import image_table, rotate, text_table

TIME_WIDTH = 256
TEXT_THETA = 10000.0


@dataclass(frozen=True)
class PixDiTSettings:
    """Sizes of the backbone; the defaults are the released network's (1.30 B parameters).

    `text_width` None leaves the text stream out. `reference` is the image size (height, width) at which the rotary
    bases are 10 000 (None: at every size). The last three serve small networks that are trained on crops: `rope_stride`
    places token n at n·stride instead of stretching every image over the same range, `pixel_positions` "patch" repeats
    one table in every patch instead of laying one over the whole image, and `window` restricts attention to windows of
    that many tokens a side.
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
    in_channels: int = 3
    rope_stride: float | None = None
    pixel_positions: Literal["image", "patch"] = "image"
    window: int | None = None

    def __post_init__(self):
        for name, width, heads in (
            ("hidden", self.hidden, self.heads),
            ("pixel_hidden", self.pixel_hidden, self.pixel_heads),
        ):
            if width % (4 * heads):
                raise ValueError(
                    f"{name}={width} with {heads} heads: a head must be a multiple of 4 wide; change either"
                )
        if self.window is not None and (self.text_width is not None or self.rope_stride is None or self.window % 2):
            raise ValueError(
                f"window={self.window}: must be even, and needs text_width=None and a rope_stride, "
                f"got text_width={self.text_width}, rope_stride={self.rope_stride}"
            )


@dataclass(frozen=True)
class Context:
    """Processes that share every image: number `rank` of `count` computes a band of its rows of patches, whose queries
    see the keys and values of all bands. The text is computed by each of them.

    `gather(band, axis, sizes)` puts the bands of all processes together along an axis, where they have `sizes`; its
    backward pass adds up what the processes found for each band.
    """

    rank: int
    count: int
    gather: Callable[[Tensor, int, Sequence[int]], Tensor]

    def bands(self, rows: int) -> list[range]:
        """The rows of patches of each process, as even as can be. ValueError for fewer rows than processes."""
        if rows < self.count:
            raise ValueError(
                f"{rows} rows of patches cannot be shared by {self.count} processes; take larger images, or a smaller "
                "machine.context"
            )
        edges = [rows * i // self.count for i in range(self.count + 1)]
        return [range(first, last) for first, last in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Grid:
    """What attention must know of the tokens' places: rotary tables, and windows where attention is windowed. Then the
    tokens may be only some of all, a band of whole windows at `tokens`, for no window sees another. With a `context`
    they are the band of this process; all bands have `sizes` tokens."""

    image: Tensor  # (2, L, d/2) rotary table
    text: Tensor | None = None  # (2, T, d/2)
    windows: Windows | None = None
    tokens: slice = field(default_factory=lambda: slice(None))
    context: Context | None = None
    sizes: tuple[int, ...] = ()

    def whole(self, band: Tensor, axis: int) -> Tensor:
        """What lies along `axis` for the tokens that are computed here -> the same for all tokens of the image."""
        return band if self.context is None else self.context.gather(band, axis, self.sizes)

    def keys_and_values(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the tokens that are computed here, (B, heads, l, d) -> those that they see."""
        if self.context is None:
            return k, v
        k, v = self.whole(torch.stack((k, v)), 3).unbind()
        return k, v


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows | None) -> Tensor:
    """Attention of (B, heads, L, d), inside windows where there are any."""
    if windows is None:
        return attention(q, k, v)
    q, k, v = windows.split(q), windows.split(k), windows.split(v)
    mask = windows.mask(q.shape[0] // windows.count, q.device)
    return windows.join(attention(q, k, v, mask))


def _joined(parts: list[Tensor]) -> Tensor:
    """Bands of tokens (B,l,…) -> (B,L,…)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class SwiGLU(nn.Module):
    """down(SiLU(gate(x))·up(x)), hidden width ⌊2·4D/3⌋, no biases."""

    def __init__(self, width: int):
        super().__init__()
        hidden = 2 * 4 * width // 3
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


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

    def project(self, x: Tensor, modulation: tuple[Tensor, ...], table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B,L,D) -> rotated q, k and v, each (B, heads, L, d)."""
        shift, scale = modulation[:2]
        q, k, v = self.qkv(modulate(self.norm1(x), shift, scale)).chunk(3, -1)
        q, k, v = split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)
        return rotate(self.q_norm(q), table), rotate(self.k_norm(k), table), v

    def finish(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Gated residuals of attention (B, heads, L, d) and MLP."""
        gate1, shift2, scale2, gate2 = modulation[2:]
        x = torch.addcmul(x, gate1, self.proj(merge_heads(attended)))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class PatchBlock(nn.Module):
    """Joint attention over [text, image], then an MLP for each stream."""

    def __init__(self, settings: PixDiTSettings, *, last: bool):
        super().__init__()
        self.last = last  # nobody reads the text that the last block would put out
        self.image = Stream(settings)
        self.text = Stream(settings) if settings.text_width is not None else None

    def forward(self, x: Tensor, text: Tensor | None, c: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
        image_modulation = self.image.modulation(c).chunk(6, -1)  # six of (B,1,D)
        q, k, v = self.image.project(x, image_modulation, grid.image)
        k, v = grid.keys_and_values(k, v)
        if self.text is None or text is None or grid.text is None:
            return self.image.finish(x, windowed_attention(q, k, v, grid.windows), image_modulation), None

        text_modulation = self.text.modulation(c).chunk(6, -1)
        text_q, text_k, text_v = self.text.project(text, text_modulation, grid.text)
        k, v = torch.cat((text_k, k), 2), torch.cat((text_v, v), 2)
        if self.last:
            return self.image.finish(x, attention(q, k, v), image_modulation), None
        attended = attention(torch.cat((text_q, q), 2), k, v)
        text_attended, attended = attended.split((text.shape[1], x.shape[1]), 2)
        return self.image.finish(x, attended, image_modulation), self.text.finish(text, text_attended, text_modulation)


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
        """Pixels (B,L,P,c) with conditions s (B,L,D) -> (B,L,P,c)."""
        before, after = self._modulations(slice(0, 2)), self._modulations(slice(2, 6))
        parts = list(zip(x.split(chunk, 1), s.split(chunk, 1), strict=True))
        tokens = torch.cat([self._compress(part, before(condition)) for part, condition in parts], 1)  # (B,L,A)
        tokens = self._attend(tokens, grid)
        attended = tokens.split(chunk, 1)
        return torch.cat([self._mix(p, a, after(c)) for (p, c), a in zip(parts, attended, strict=True)], 1)

    def _modulations(self, which: slice) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """The part of the modulation layer that gives modulations `which` of the six: s (B,l,D) -> each (B,l,P,c)."""
        weight = self.modulation.weight.unflatten(0, self.shape)[:, which].flatten(0, 2)
        bias = self.modulation.bias.unflatten(0, self.shape)[:, which].flatten()
        pixels, _, width = self.shape

        def modulations(s: Tensor) -> tuple[Tensor, ...]:
            return F.linear(s, weight, bias).unflatten(-1, (pixels, -1, width)).unbind(-2)

        return modulations

    def _compress(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        shift, scale = modulation
        return self.compress(modulate(self.norm1(x), shift, scale).flatten(2))

    def _attend(self, tokens: Tensor, grid: Grid) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, -1))
        q, k = rotate(self.q_norm(q), grid.image), rotate(self.k_norm(k), grid.image)
        k, v = grid.keys_and_values(k, v)
        return self.proj(merge_heads(windowed_attention(q, k, v, grid.windows)))

    def _mix(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        gate1, shift2, scale2, gate2 = modulation
        x = torch.addcmul(x, gate1, self.expand(attended).view_as(x))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


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

    `context` is None unless something outside shares each image out over processes; then tokens, also those that
    `inject` sees, are the rows of patches in `band`, and only what comes out is a whole image.
    """

    def __init__(self, settings: PixDiTSettings):
        super().__init__()
        self.settings = settings
        self.context: Context | None = None
        width = settings.hidden
        self.patch_embed = nn.Linear(settings.in_channels * settings.patch**2, width)
        self.time_in = nn.Linear(TIME_WIDTH, width)
        self.time_out = nn.Linear(width, width)
        self.text_embed = (
            TextEmbedding(settings.text_width, settings.text_length, width) if settings.text_width is not None else None
        )
        self.patch_blocks = nn.ModuleList(
            PatchBlock(settings, last=i == settings.depth - 1) for i in range(settings.depth)
        )
        self.pixel_embed = nn.Linear(settings.in_channels, settings.pixel_width)
        self.pixel_blocks = nn.ModuleList(PixelBlock(settings) for _ in range(settings.pixel_depth))
        self.final_norm = RMSNorm(settings.pixel_width)
        self.final_linear = nn.Linear(settings.pixel_width, 3)

    def forward(
        self,
        images: Tensor,
        t: Tensor,
        text: Tensor | None,
        inject: Callable[[int, Tensor], Tensor] | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """images (B,in_channels,H,W), t (B,) in [0,1], text (B,T,E) -> (B,3,H,W). H and W are multiples of p.

        `chunk` is the number of patches that the pixel blocks, and blocks whose attention is windowed, work on at a
        time; all at once if None.
        """
        side = self.settings.patch
        rows, columns = images.shape[-2] // side, images.shape[-1] // side
        band, dtype = self.band(rows), self.patch_embed.weight.dtype
        images = images[:, :, band.start * side : band.stop * side]  # all of them, without a context
        time = self.time_out(F.silu(self.time_in(time_sinusoid(t).to(dtype))))[:, None]  # (B,1,D)
        x = self.patch_embed(patch_vectors(images.to(dtype), side))  # (B,L,D)
        text = self.text_embed(text.to(dtype)) if self.text_embed is not None and text is not None else None

        grids = self._grids(rows, columns, self.settings.hidden // self.settings.heads, images.device, chunk, text)
        for i, block in enumerate(self.patch_blocks):
            x = x if inject is None else inject(i, x)
            parts = [block(x[:, grid.tokens], text, F.silu(time), grid) for grid in grids[i % 2]]
            x, text = _joined([tokens for tokens, _ in parts]), parts[0][1]
        s = F.silu(time + x)  # (B,L,D)
        s = s if inject is None else inject(len(self.patch_blocks), s)

        pixels = self._embed_pixels(images.to(dtype), band.start * side)  # (B,L,P,c)
        grids = self._grids(
            rows, columns, self.settings.pixel_hidden // self.settings.pixel_heads, images.device, chunk
        )
        for i, block in enumerate(self.pixel_blocks):
            bands = grids[i % 2]
            pixels = _joined([block(pixels[:, g.tokens], s[:, g.tokens], g, chunk or s.shape[1]) for g in bands])
        made = pixels_to_image(self.final_linear(self.final_norm(pixels)), len(band), columns)
        if self.context is None:
            return made
        return self.context.gather(made, 2, [len(each) * side for each in self.context.bands(rows)])

    def band(self, rows: int) -> range:
        """Which of an image's rows of patches are computed here: all of them, without a context."""
        return range(rows) if self.context is None else self.context.bands(rows)[self.context.rank]

    def _grids(
        self,
        rows: int,
        columns: int,
        width: int,
        device: torch.device,
        chunk: int | None,
        text: Tensor | None = None,
    ) -> tuple[list[Grid], list[Grid]]:
        """Places of the tokens for heads of `width`, in even and in odd blocks, whose windows are shifted by half; one
        grid for each band of about `chunk` tokens where attention is windowed, else one."""
        settings = self.settings
        reference = settings.reference and (
            settings.reference[0] // settings.patch,
            settings.reference[1] // settings.patch,
        )
        image = image_table(rows, columns, width, reference=reference, stride=settings.rope_stride, device=device)
        side = settings.window
        if side is None:
            words = None if text is None else text_table(text.shape[1], width, TEXT_THETA, device)
            if self.context is None:
                return [Grid(image, words)], [Grid(image, words)]
            here, sizes = self.band(rows), tuple(len(each) * columns for each in self.context.bands(rows))
            image = image[:, here.start * columns : here.stop * columns]
            shared = Grid(image, words, context=self.context, sizes=sizes)
            return [shared], [shared]
        assert self.context is None, "windows and a context do not go together"

        def bands(shift: int) -> list[Grid]:
            windows = Windows(rows, columns, side, shift, shift)
            if chunk is None:
                return [Grid(image, windows=windows)]
            return [Grid(image[:, part], windows=inside, tokens=part) for part, inside in windows.bands(chunk)]

        return bands(0), bands(side // 2)

    def _embed_pixels(self, images: Tensor, top: int) -> Tensor:
        """(B,in_channels,H,W), rows of pixels from `top` on -> (B,L,P,c): a Linear for each pixel plus the fixed
        position table."""
        side, width = self.settings.patch, self.settings.pixel_width
        whole = self.settings.pixel_positions == "image"
        height, breadth = (images.shape[-2], images.shape[-1]) if whole else (side, side)
        top = top if whole else 0
        table = pixel_table(height, breadth, width, images.device, top=top)[None]  # (1,c,H,W) or (1,c,p,p)
        return self.pixel_embed(patch_pixels(images, side)) + patch_pixels(table, side).to(images.dtype)
