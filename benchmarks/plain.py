"""A call of the network written plainly: the same weights and the same result, nothing for speed or memory.

It is what the formulas say, one after the other, as the original runs them: the adapter, all tables and all modulations
in every call, for the whole image at once. The bench times it, under `torch.autocast` with float32 weights; a test
compares the network with it.

B batch · L patch tokens · D hidden width · P = p² pixels of a patch · c pixel width
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.layers.patching import patch_vectors, pixels_to_image
from pixdec.layers.rope import image_table, text_table
from pixdec.layers.sinusoids import pixel_rows, time_sinusoid
from pixdec.models.adapter import SigmaGate
from pixdec.models.grid import TEXT_THETA
from pixdec.models.nano import Nano
from pixdec.models.network import Network
from pixdec.models.pid import MIN_T, PiD
from pixdec.models.pixdit import PatchBlock, PixDiT, PixelBlock, Stream

EPSILON = 1e-6


def plain_velocity(
    network: Network, x_t: Tensor, t: Tensor, text: Tensor | None, latent: Tensor | None, sigma: Tensor | None
) -> Tensor:
    """As `PiD.forward`; a `Nano` is plain as it is."""
    if isinstance(network, Nano):
        assert latent is not None and sigma is not None
        return network(x_t, t, text, latent, sigma)
    settings, t4 = network.settings, t.float()[:, None, None, None]
    tokens = list[Tensor]()
    if latent is not None and network.adapter is not None:
        tokens = network.adapter(latent)
    output = _backbone(network, x_t, t, text, tokens, sigma).float()
    return (x_t - output) / t4.clamp_min(MIN_T) if settings.prediction == "x0" else output


def _backbone(
    network: PiD, images: Tensor, t: Tensor, text: Tensor | None, tokens: list[Tensor], sigma: Tensor | None
) -> Tensor:
    net, settings = network.backbone, network.backbone.settings
    rows, columns = (side // settings.patch for side in images.shape[-2:])
    time = net.time_out(F.silu(net.time_in(time_sinusoid(t))))[:, None]
    x = net.patch_embed(patch_vectors(images, settings.patch))
    if net.text_embed is not None and text is not None:
        text = net.text_embed.norm(net.text_embed.proj(text)) + net.text_embed.positions[:, : text.shape[1]]
    gates = [] if network.gates is None else [gate for gate in network.gates if isinstance(gate, SigmaGate)]
    interval = 1 if network.adapter is None else network.adapter.settings.interval
    for i in range(len(net.patch_blocks)):
        if tokens and sigma is not None and i % interval == 0:
            x = _gated(gates[i // interval], x, tokens[i // interval], sigma)
        x, text = _patch_block(net, i, x, text, F.silu(time), rows, columns)
    s = F.silu(time + x)
    if tokens and sigma is not None and network.pixel_gate is not None:
        s = _gated(network.pixel_gate, s, tokens[-1], sigma)
    pixels = net.pixel_embed(_pixels(images, settings.patch)) + _positions(net, rows, columns, images.device)
    for i in range(len(net.pixel_blocks)):
        pixels = _pixel_block(net, i, pixels, s, rows, columns)
    return pixels_to_image(net.final_linear(_normed(net.final_norm, pixels)), rows, columns)


def _gated(gate: SigmaGate, x: Tensor, tokens: Tensor, sigma: Tensor) -> Tensor:
    content = gate.content(torch.cat((x, tokens), -1)).float()
    return x + torch.sigmoid(content - gate.log_alpha.exp() * sigma[:, None, None]) * tokens


def _patch_block(
    net: PixDiT, i: int, x: Tensor, text: Tensor | None, c: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor | None]:
    settings, block = net.settings, net.patch_blocks[i]
    assert isinstance(block, PatchBlock)
    width = settings.hidden // settings.heads
    modulation = block.image.modulation(c).chunk(6, -1)
    q, k, v = _projected(block.image, x, modulation, _table(net, rows, columns, width, x.device))
    if block.text is None or text is None:
        return _finished(block.image, x, _attended(q, k, v), modulation), None
    text_modulation = block.text.modulation(c).chunk(6, -1)
    words = text_table(text.shape[1], width, TEXT_THETA, x.device)
    parts = _projected(block.text, text, text_modulation, words)
    q, k, v = (torch.cat(pair, 2) for pair in zip(parts, (q, k, v), strict=True))
    attended = _attended(q, k, v)
    words, attended = attended[:, : text.shape[1]], attended[:, text.shape[1] :]
    return _finished(block.image, x, attended, modulation), _finished(block.text, text, words, text_modulation)


def _projected(stream: Stream, x: Tensor, modulation: tuple[Tensor, ...], table: Tensor) -> list[Tensor]:
    qkv = stream.qkv(_normed(stream.norm1, x) * (1 + modulation[1]) + modulation[0])
    return _heads(qkv, stream.heads, stream.q_norm, stream.k_norm, table)


def _heads(qkv: Tensor, heads: int, q_norm: nn.Module, k_norm: nn.Module, table: Tensor) -> list[Tensor]:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    turn = torch.complex(*table)

    def rotated(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2).to(qkv.dtype)

    return [rotated(_normed(q_norm, q)), rotated(_normed(k_norm, k)), v]


def _finished(stream: Stream, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
    _, _, gate1, shift2, scale2, gate2 = modulation
    x = x + gate1 * stream.proj(attended)
    return x + gate2 * stream.mlp(_normed(stream.norm2, x) * (1 + scale2) + shift2)


def _pixel_block(net: PixDiT, i: int, x: Tensor, s: Tensor, rows: int, columns: int) -> Tensor:
    settings, block = net.settings, net.pixel_blocks[i]
    assert isinstance(block, PixelBlock)
    modulation = block.modulation(s).unflatten(-1, (x.shape[2], 6, x.shape[3]))  # (B,L,P,6,c)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(-2)
    tokens = block.compress((_normed(block.norm1, x) * (1 + scale1) + shift1).flatten(2))
    table = _table(net, rows, columns, settings.pixel_hidden // settings.pixel_heads, x.device)
    q, k, v = _heads(block.qkv(tokens), block.heads, block.q_norm, block.k_norm, table)
    x = x + gate1 * block.expand(block.proj(_attended(q, k, v))).view_as(x)
    return x + gate2 * block.mlp(_normed(block.norm2, x) * (1 + scale2) + shift2)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B,heads,L,d) -> (B,L,heads·d)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    x = x.float()
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight


def _table(net: PixDiT, rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    settings = net.settings
    reference = settings.reference and tuple(side // settings.patch for side in settings.reference)
    assert reference is None or len(reference) == 2
    return image_table(rows, columns, width, reference=reference, device=device)


def _positions(net: PixDiT, rows: int, columns: int, device: torch.device) -> Tensor:
    """(1,L,P,c)"""
    width, height, across = net.settings.pixel_width, rows * net.settings.patch, columns * net.settings.patch
    y = pixel_rows(0, height, width, device)[:, None].expand(-1, across, -1)
    x = pixel_rows(0, across, width, device)[None].expand(height, -1, -1)
    return _pixels(torch.cat((x, y), -1).permute(2, 0, 1)[None], net.settings.patch)


def _pixels(images: Tensor, side: int) -> Tensor:
    """(B,C,H,W) -> (B,L,P,C)."""
    return F.pixel_unshuffle(images, side).flatten(2).unflatten(1, (-1, side * side)).permute(0, 3, 2, 1)
