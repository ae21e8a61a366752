import math

import pytest
import torch

from pixdec.layers.attention import attention, merge_heads, queries_keys_values, split_heads
from pixdec.layers.norms import RMSNorm, modulated_norm
from pixdec.layers.patching import patch_pixels, patch_vectors, pixels_to_image
from pixdec.layers.rope import image_table, rotate, text_table
from pixdec.layers.sinusoids import pixel_rows, time_sinusoid


def test_attention_is_softmax_attention():
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.float64) for _ in range(3))
    by_hand = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8), -1) @ v
    assert torch.allclose(attention(q, k, v), by_hand)


def test_heads_round_trip():
    x = torch.randn(2, 7, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 7, 4)
    assert torch.equal(heads[:, 1], x[..., 4:8])
    assert torch.equal(merge_heads(heads), x)


def test_attention_in_training_equals_attention_without_gradients():
    q, k, v = torch.randn(3, 2, 3, 20, 8, dtype=torch.bfloat16)
    without = attention(q, k, v)
    trained = attention(q.requires_grad_(), k, v)
    assert trained.requires_grad
    assert (trained - without).norm() / without.norm() < 0.01


def test_queries_and_keys_are_normed_and_rotated():
    heads, table = 3, text_table(5, 4, 100.0)
    qkv, q_weight, k_weight = torch.randn(2, 5, 36), torch.rand(4), torch.rand(4)
    q, k, v = queries_keys_values(qkv, heads, q_weight, k_weight, table)
    by_hand = [split_heads(part, heads) for part in qkv.chunk(3, -1)]
    norms = [RMSNorm(4), RMSNorm(4)]
    for norm, weight in zip(norms, (q_weight, k_weight), strict=True):
        norm.weight.data = weight
    torch.testing.assert_close(q, rotate(norms[0](by_hand[0]), table))
    torch.testing.assert_close(k, rotate(norms[1](by_hand[1]), table))
    assert torch.equal(v, by_hand[2])


def test_rotation_makes_attention_relative():
    """q·k depends on the difference of positions alone."""
    table = text_table(20, 16, 10000.0)
    q, k = torch.randn(16), torch.randn(16)
    rotated_q = rotate(q.expand(1, 1, 20, 16), table)[0, 0]
    rotated_k = rotate(k.expand(1, 1, 20, 16), table)[0, 0]
    products = rotated_q @ rotated_k.T
    assert torch.allclose(products[2, 5], products[12, 15], atol=1e-4)
    assert torch.allclose(rotated_q.norm(dim=-1), q.norm().expand(20), atol=1e-4)


def test_image_table():
    table = image_table(4, 6, 16, reference=(4, 6))
    assert table.shape == (2, 24, 8)
    angles = torch.atan2(table[1], table[0]).view(4, 6, 8)
    assert torch.allclose(angles[0, :, 1], torch.zeros(6))  # y of the first row
    assert torch.allclose(table[0, 23, 0], torch.tensor(math.cos(16.0)), atol=1e-5)  # positions end at 16
    same = image_table(4, 6, 16, reference=None)
    assert torch.equal(table, same)  # NTK changes nothing at the reference size
    wider = image_table(4, 12, 16, reference=(4, 6))
    theta = 10000.0 * 2 ** (8 / 6)
    angle = 16.0 * theta ** (-4 / 16)
    assert wider[0, 11, 2] == pytest.approx(math.cos(angle), abs=1e-5)
    assert torch.equal(wider[:, ::12, 1::2], image_table(4, 1, 16, reference=(4, 1))[:, :, 1::2])  # y is left alone


def test_time_sinusoid():
    table = time_sinusoid(torch.tensor([0.0, 0.25]))
    assert table.shape == (2, 256)
    assert torch.equal(table[0], torch.cat((torch.ones(128), torch.zeros(128))))
    frequency = 10 ** (-100 / 128)
    assert table[1, 100] == pytest.approx(math.cos(250 * frequency), abs=1e-4)
    assert table[1, 228] == pytest.approx(math.sin(250 * frequency), abs=1e-4)


def test_pixel_rows():
    rows = pixel_rows(2, 3, 8)
    assert rows.shape == (3, 4)
    assert rows[1, 1] == pytest.approx(math.sin(3 / 100))  # place 3, second frequency, sine
    assert rows[2, 2] == pytest.approx(math.cos(4))  # place 4, first frequency, cosine


def test_rms_norm_is_computed_in_float32():
    norm = RMSNorm(64).to(torch.bfloat16)
    x = (1000 + torch.randn(4, 64)).to(torch.bfloat16)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(norm(x), exact.to(torch.bfloat16))


def test_modulated_norm():
    norm, (x, shift, scale) = RMSNorm(6), torch.randn(3, 2, 5, 6)
    norm.weight.data.uniform_(0.5, 1.5)
    torch.testing.assert_close(modulated_norm(x, norm.weight * (1 + scale), shift), norm(x) * (1 + scale) + shift)


def test_patches():
    images = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).view(2, 3, 8, 12)
    vectors = patch_vectors(images, 4)
    pixels = patch_pixels(vectors, 4)
    assert vectors.shape == (2, 6, 48)
    assert torch.equal(vectors[1, 4], images[1, :, 4:8, 4:8].flatten())  # (channel, row, column)
    assert torch.equal(pixels[1, 4], images[1, :, 4:8, 4:8].flatten(1).T)  # pixel by pixel
    assert torch.equal(pixels_to_image(pixels, 2, 3), images)
