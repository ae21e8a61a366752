"""Every tensor of every reference case, within 5e-6 in float32."""

import pytest
import torch
from reference import CASES, distance, needs_reference, network, replay, tensors

from pixdec.sampling.flow import STUDENT_TIMES
from pixdec.sampling.samplers import student

TOLERANCE = 5e-6
WITH_LATENT = [case for case in CASES if not case.startswith("prior")]
pytestmark = needs_reference


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_velocity(case: str):
    given = tensors(case)
    velocity = network(case)(given["x"], given["t"], given["text"], given.get("latent"), given.get("sigma"))
    assert distance(velocity, given["velocity"]) < TOLERANCE


@pytest.mark.parametrize("case", WITH_LATENT)
@torch.no_grad()
def test_adapter_tokens(case: str):
    given = tensors(case)
    tokens = network(case).condition(given["latent"]).tokens
    assert len(tokens) == sum(key.startswith("latent_tokens.") for key in given)
    for i, token in enumerate(tokens):
        assert distance(token.tokens, given[f"latent_tokens.{i}"]) < TOLERANCE


@pytest.mark.parametrize("case", WITH_LATENT)
@torch.no_grad()
def test_hidden_states(case: str):
    given, net = tensors(case), network(case)
    seen: dict[int, torch.Tensor] = {}
    for i in (1, 3):
        net.backbone.patch_blocks[i].register_forward_hook(lambda _m, _a, output, i=i: seen.update({i: output[0]}))
    net(given["x"], given["t"], given["text"], given["latent"], given["sigma"])
    for i, hidden in seen.items():
        reference = given[f"hidden_after_block_{i}"]
        assert distance(hidden.transpose(1, 2).view_as(reference), reference) < TOLERANCE


@pytest.mark.parametrize("case", WITH_LATENT)
@torch.no_grad()
def test_four_step_image(case: str):
    given, net = tensors(case), network(case)
    condition = net.condition(given["latent"])

    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return net.velocity(x_t, t, given["text"], condition, given["sigma"])

    noise = replay(given["noise"], given["eps"])
    *_, last = student(denoise, noise, given["image"].shape, STUDENT_TIMES)
    assert distance(last.x0, given["image"]) < TOLERANCE


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("v1_5")])
@torch.no_grad()
def test_auxiliary_image(case: str):
    given, net = tensors(case), network(case)
    assert net.adapter is not None
    assert distance(net.adapter.low_resolution(given["latent"]), given["aux_rgb"]) < TOLERANCE


def test_a_wrong_rotary_reference_would_be_noticed():
    """The commonest silent mistake: 1024 for 2048 gives a plausible picture."""
    import dataclasses

    from pixdec.models.pid import PiD

    given, net = tensors("prior-ntk"), network("prior-ntk")
    wrong = dataclasses.replace(net.settings.backbone, reference=(2048, 2048))
    other = PiD(dataclasses.replace(net.settings, backbone=wrong))
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert distance(other(given["x"], given["t"], given["text"], None, None), given["velocity"]) > 100 * TOLERANCE
