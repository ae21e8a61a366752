"""The bundled decoder's network: the shared battery, tiles, and what it never does."""

import subprocess
import sys

import pytest
import torch

from pixdec.models.nano import Nano, NanoSettings, without_halos
from pixdec.weights.load import load_decoder, save_decoder

SMALL = NanoSettings(width=8, blocks=2, detail=4, embedding=8)


def network(seed: int = 0) -> Nano:
    torch.manual_seed(seed)
    made = Nano(SMALL)
    for parameter in made.parameters():  # not near the identity, where most gradients vanish
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def inputs(height: int = 5, width: int = 7) -> tuple[torch.Tensor, torch.Tensor, None, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    low = torch.rand(2, 3, height, width) * 2 - 1
    return torch.randn(2, 3, 4 * height, 4 * width), torch.tensor([0.9, 0.3]), None, low, torch.tensor([0.0, 0.4])


def test_a_velocity_has_the_image_s_shape_and_every_parameter_a_finite_gradient():
    made = network()
    velocity = made(*inputs())
    assert velocity.shape == (2, 3, 20, 28)
    velocity.square().mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_the_velocity_leads_to_the_estimate_without_halos():
    made, (x_t, t, _, low, sigma) = network(), inputs()
    x0 = x_t - t.view(-1, 1, 1, 1) * made(x_t, t, None, low, sigma)
    expected = without_halos(made.estimate(x_t, t, made.condition(low), sigma), low)
    assert torch.allclose(x0, expected, atol=1e-5)


def test_halos_go_and_what_lies_within_the_range_around_stays():
    low = torch.zeros(1, 3, 6, 8)
    low[..., 4:] = 0.8
    x0 = torch.nn.functional.interpolate(low, scale_factor=4)
    x0[..., 14], x0[..., 17], x0[..., 15], x0[..., 4] = -0.5, 1.0, 0.3, 0.2
    held = without_halos(x0.clone(), low)
    assert torch.allclose(held[0, 0, 0, [14, 17, 15, 4]], torch.tensor([-0.1, 0.9, 0.3, 0.0]))
    changed = (held != x0).any(dim=2).any(dim=1)[0]
    assert changed.nonzero().flatten().tolist() == [4, 14, 17]


def test_a_new_network_enlarges_as_bicubic_does():
    torch.manual_seed(0)
    x_t, t, _, low, _ = inputs()
    plain = torch.nn.functional.interpolate(low, scale_factor=4.0, mode="bicubic")
    made = Nano(SMALL)
    assert (made.estimate(x_t, t, made.condition(low), torch.zeros(2)) - plain).abs().mean() < 0.1


@pytest.mark.parametrize("shift", [1, 3])
def test_what_lies_beyond_the_receptive_field_changes_nothing_wherever_a_crop_begins(shift: int):
    made, reach = network(), SMALL.receptive_field
    x_t, t, _, low, sigma = inputs(12, 3 * reach)
    whole = made.estimate(x_t, t, made.condition(low), sigma)
    part = made.estimate(x_t[..., 4 * shift :], t, made.condition(low[..., shift:]), sigma)
    inner = slice(4 * (shift + reach), None)
    assert torch.allclose(whole[..., inner], part[..., 4 * reach :], atol=1e-5)
    assert not torch.allclose(whole[..., 4 * shift :], part, atol=1e-5)  # nearer, it does


def test_bfloat16_is_near_float32():
    made, (x_t, t, _, low, sigma) = network(), inputs()
    exact = made.estimate(x_t, t, made.condition(low), sigma)
    rounded = made.to(torch.bfloat16).estimate(x_t, t, made.condition(low), sigma)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.03


def test_it_is_loaded_as_it_was_saved(tmp_path):
    made, path = network(), tmp_path / "small.safetensors"
    save_decoder(made, path, name="small", space="rgb", version="nano", licence="Apache-2.0")
    loaded = load_decoder(path)
    assert (loaded.spaces, loaded.scale, loaded.kind, loaded.needs_text) == (("rgb",), 4, "student", False)
    assert torch.equal(loaded.network(*inputs()), made(*inputs()))


def test_making_one_without_values_imports_no_compiler() -> None:
    """It would take 80 MB, and a second of every start."""
    code = (
        "import sys, torch; from pixdec.models.nano import Nano, NanoSettings\n"
        "with torch.device('meta'): Nano(NanoSettings())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
