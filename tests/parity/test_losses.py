"""Training's losses and the discriminator against the reference, within 1e-5."""

import torch
from reference import distance, needs_reference, tensors

from pixdec.models.discriminator import Discriminator
from pixdec.models.pid import MIN_T
from pixdec.sampling.flow import expand
from pixdec.train.losses import alignment, discriminator_loss, distribution_matching, flow_matching, generator_loss

pytestmark = needs_reference
HEAD = "disc.weights.cls_pred_heads.0."
NAMES = {"0": "conv", "1": "norm", "3": "logit"}


def test_flow_matching_of_a_velocity_and_of_an_image():
    given = tensors("training")
    x_t, x0, noise, prediction, t = (given[f"flow.{name}"] for name in ("x_t", "x0", "noise", "prediction", "t"))
    assert distance(flow_matching(prediction, x0, noise)[None], given["flow.loss_velocity"]) < 1e-6
    velocity = (x_t - prediction) / expand(t, x_t).clamp_min(MIN_T)
    assert distance(flow_matching(velocity, x0, noise)[None], given["flow.loss_x0"]) < 1e-6


def test_distribution_matching():
    given = tensors("training")
    student = given["dm.student"].requires_grad_()
    loss = distribution_matching(student, given["dm.teacher"], given["dm.fake"])
    assert distance(loss.detach()[None], given["dm.loss"]) < 1e-5
    assert distance(torch.autograd.grad(loss, student)[0], given["dm.grad"]) < 1e-5


def test_adversarial_losses():
    given = tensors("training")
    logits, real = given["gan.logits"], given["gan.real_logits"]
    assert distance(generator_loss(logits)[None], given["gan.generator_loss"]) < 1e-6
    assert distance(discriminator_loss(real, logits)[None], given["gan.discriminator_loss"]) < 1e-6


def test_alignment():
    given = tensors("training")
    loss = alignment(*(given[f"align.{name}"] for name in ("prediction", "target", "sigma", "keep")))
    assert distance(loss[None], given["align.loss"]) < 1e-6


def test_discriminator():
    given = tensors("training")
    network = Discriminator(given["disc.features"].shape[1])
    weights = {
        f"{NAMES[key[len(HEAD)]]}.{key.rsplit('.', 1)[1]}": value
        for key, value in given.items()
        if key.startswith(HEAD)
    }
    network.load_state_dict(weights)
    with torch.no_grad():
        assert distance(network(given["disc.features"]), given["disc.logits"]) < 1e-5
