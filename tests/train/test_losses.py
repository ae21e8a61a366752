"""Losses of the three stages, against cases worked by hand; the reference's are in tests/parity."""

import math
from pathlib import Path

import pytest
import torch

from battery import battery
from pixdec.models.discriminator import Discriminator
from pixdec.train.losses import (
    alignment,
    approximate_r1,
    charbonnier,
    discriminator_loss,
    distribution_matching,
    flow_matching,
    generator_loss,
    velocity_errors,
)


def test_discriminator(tmp_path: Path):
    features = torch.randn(2, 48, 8, 6, generator=torch.Generator().manual_seed(0))
    battery(
        lambda: Discriminator(48),
        lambda network: network(features.to(network.conv.weight.dtype)),
        (2, 1),
        tmp_path,
    )


def test_flow_matching_by_hand():
    """eps − x0 is 3 and 1; the velocity is 1 off on one pixel of four."""
    x0, noise = torch.tensor([[[[-1.0, 0.0]]], [[[1.0, 0.5]]]]), torch.tensor([[[[2.0, 3.0]]], [[[2.0, 1.5]]]])
    velocity = torch.tensor([[[[3.0, 3.0]]], [[[1.0, 2.0]]]])
    assert flow_matching(velocity, x0, noise) == pytest.approx(0.25)


def test_distribution_matching_by_hand():
    """One image of two values: |x − teacher| is 1 and 3, so the scale is 2; fake − teacher is 2 and −4."""
    student = torch.tensor([[[[1.0, 3.0]]]], requires_grad=True)
    teacher, fake = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[2.0, -4.0]]]])
    loss = distribution_matching(student, teacher, fake)
    assert loss.item() == pytest.approx((1**2 + 2**2) / 2 / 2)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.allclose(gradient, torch.tensor([[[[0.5, -1.0]]]]))


def test_each_image_has_its_own_scale():
    generator = torch.Generator().manual_seed(0)
    student, teacher, fake = torch.randn(3, 2, 3, 4, 4, generator=generator)
    loud = student.clone()
    loud[1] = teacher[1] + 10 * (student[1] - teacher[1])

    def gradient(x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(distribution_matching(x, teacher, fake), x)[0]

    assert torch.allclose(gradient(loud)[0], gradient(student)[0])
    assert torch.allclose(gradient(loud)[1], gradient(student)[1] / 10)


def test_no_gradient_where_teacher_and_fake_score_agree():
    student = torch.randn(2, 3, 8, 8, requires_grad=True)
    teacher = torch.randn(2, 3, 8, 8)
    loss = distribution_matching(student, teacher, teacher.clone())
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student)[0].abs().max() == 0


def test_a_broken_teacher_reaches_the_gradient():
    """The loop looks at the gradient's norm, on all processes alike."""
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    teacher = torch.zeros(2, 3, 4, 4)
    teacher[0, 0, 0, 0] = math.nan
    loss = distribution_matching(student, teacher, torch.ones(2, 3, 4, 4))
    gradient = torch.autograd.grad(loss, student)[0]
    assert loss.isnan()
    assert gradient[0].isnan().any()
    assert gradient[1].isfinite().all()


def test_velocity_errors_by_hand():
    """Errors of 2 on one half of an image and −1 on the other; of 1 everywhere."""
    error = torch.ones(2, 3, 16, 8)
    error[0, :, :8], error[0, :, 8:] = 2.0, -1.0
    x0, noise = torch.rand(2, 2, 3, 16, 8)
    assert velocity_errors(noise - x0 + error, x0, noise).tolist() == pytest.approx([2.5, 1.0], rel=1e-5)


def test_charbonnier_is_round_at_zero():
    assert charbonnier(torch.tensor([0.0, 1e-3, 3.0])).tolist() == pytest.approx(
        [0.0, (math.sqrt(2) - 1) * 1e-3, 3.0 - 1e-3], rel=1e-3
    )


def test_adversarial_losses_by_hand():
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [-1.0]])
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2 + (math.log(2) + math.log1p(math.exp(-1))) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)
    assert generator_loss(fake).item() == pytest.approx((math.log(2) + math.log1p(math.e)) / 2)
    assert approximate_r1(real, torch.tensor([[1.0], [2.0]])).item() == pytest.approx(0.5)


def test_alignment_by_hand():
    """A grey of 0.2 in [0,1] differs in Y alone, which counts a quarter; the noisier image counts less, the dropped
    one nothing."""
    target = torch.zeros(3, 3, 2, 2)
    prediction = torch.stack([torch.full((3, 2, 2), 0.4), torch.full((3, 2, 2), 0.8), torch.full((3, 2, 2), 9.0)])
    one, two = (math.sqrt((0.25 * grey) ** 2 + 1e-6) - 1e-3 for grey in (0.2, 0.4))
    sigma, keep = torch.tensor([0.0, 0.5, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    assert alignment(prediction, target, sigma, keep).item() == pytest.approx((one + 0.5 * two) / 3 / 1.5, rel=1e-4)
    assert alignment(prediction, target, sigma, torch.zeros(3)).item() == 0
