"""The losses of the three stages: pure functions of tensors.

B batch · images (B,3,H,W) in [-1,1] · v velocity = eps − x0 · t, sigma (B,) noise levels of image and latent
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Y, Cb, Cr of full-range RGB (JFIF 1.02), and how much a difference in each counts in `alignment`.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
YCBCR_WEIGHTS = (0.25, 1.0, 1.0)
CHARBONNIER = 1e-3


def velocity_errors(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """‖v̂ − (eps − x0)‖² (B,), each image's mean. Networks that predict x0 are compared as velocities too, so that every
    noise level weighs as the sampler uses it."""
    return (velocity.float() - (noise - x0).float()).square().mean((1, 2, 3))


def flow_matching(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """The mean of `velocity_errors`: a scalar."""
    return velocity_errors(velocity, x0, noise).mean()


def distribution_matching(student: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """A scalar whose gradient with respect to the student's image x is DMD2's,

        g = (x0_fake − x0_teacher) / mean|x − x0_teacher| / N,

    the mean over one image, N the values of the batch (Yin et al. 2024, eq. 7). Its value is
    mean g²·N²/2.

    student (B,3,H,W): what the student made. teacher, fake: what the teacher and the fake score make, without gradient,
    of the same noised version of it. Zero where they agree. What is not finite stays so. In float64, on devices without
    it in float32.
    """
    precise = torch.float32 if student.device.type == "mps" else torch.float64
    with torch.no_grad():
        x, real = student.to(precise), teacher.to(precise)
        scale = (x - real).abs().mean((1, 2, 3), keepdim=True)
        direction = (fake.to(precise) - real) / scale.clamp_min(1e-12)
    return (0.5 * F.mse_loss(student.to(precise), x - direction)).to(student.dtype)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(−real) + mean softplus(fake), of logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """mean softplus(−fake), of logits."""
    return F.softplus(-fake).mean()


def approximate_r1(real: Tensor, perturbed: Tensor) -> Tensor:
    """mean (D(x) − D(x + 0.1·noise))², R1 without second derivatives, of logits."""
    return (real - perturbed).square().mean()


def charbonnier(difference: Tensor) -> Tensor:
    """sqrt(d² + eps²) − eps, eps 1e-3: |d| with a round bottom, value by value."""
    return (difference.square() + CHARBONNIER**2).sqrt() - CHARBONNIER


def alignment(prediction: Tensor, target: Tensor, sigma: Tensor, keep: Tensor) -> Tensor:
    """How far the adapter's auxiliary image is from the low-resolution image it should be: a scalar.

    `charbonnier` of the weighted differences in YCbCr of images in [0,1], mean over channels and pixels; mean over the
    batch with weights (1 − sigma)·keep. prediction, target (B,3,h,w) in [-1,1]; keep (B,) is 0 where the latent was
    dropped. Zero if nothing is kept. Source: the released v1.5 recipe.
    """
    rgb_to_ycbcr = (
        torch.tensor(YCBCR, device=target.device) * torch.tensor(YCBCR_WEIGHTS, device=target.device)[:, None]
    )
    difference = torch.einsum("cr,brhw->bchw", rgb_to_ycbcr, (prediction.float() - target.float()) / 2)
    distance = charbonnier(difference).mean((1, 2, 3))
    weight = (1 - sigma.float()) * keep.float()
    return (distance * weight).sum() / weight.sum().clamp_min(1e-8)
