"""The losses of the three stages: pure functions of tensors.

B batch · images (B,3,H,W) in [-1,1] · v velocity = eps − x0 · t, sigma (B,) noise levels of image and latent
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pixdec.sampling.flow import expand

# Y, Cb, Cr of full-range RGB (JFIF 1.02), and how much a difference in each counts in `alignment`.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
YCBCR_WEIGHTS = (0.25, 1.0, 1.0)
CHARBONNIER = 1e-3
EASE = 0.25  # keeps crops without detail from weighing without bound
STEP = 0.01  # about one level of 255: smaller steps are not seen


def flow_matching(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """mean ‖v̂ − (eps − x0)‖²: a scalar. Networks that predict x0 are compared as velocities too, so that every noise
    level weighs as the sampler uses it (specification §9)."""
    return (velocity.float() - (noise - x0).float()).square().mean()


def velocity_errors(error: Tensor, weight: Tensor, *, coarse: float = 0.0, difficulty: Tensor | None = None) -> Tensor:
    """w·(mean e² + coarse·mean ē²) (B,) of velocity errors e (B,3,H,W), where ē are their means over 8 x 8 pixels and
    w (B,) weights; divided by `difficulty` (B,) + 0.25 if that is given."""
    error = error.float() * expand(weight.sqrt(), error)
    each = error.square().mean((1, 2, 3))
    if coarse:
        each = each + coarse * F.avg_pool2d(error, 8).square().mean((1, 2, 3))
    return each if difficulty is None else each / (difficulty + EASE)


def distribution_matching(student: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """A scalar whose gradient with respect to the student's image x is DMD2's,

        g = (x0_fake − x0_teacher) / mean|x − x0_teacher| / N,

    the mean over one image, N the values of the batch (Yin et al. 2024, eq. 7; specification §9). Its value is
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
    """mean (D(x) − D(x + 0.1·noise))², R1 without second derivatives (specification §9), of logits."""
    return (real - perturbed).square().mean()


def charbonnier(difference: Tensor) -> Tensor:
    """sqrt(d² + eps²) − eps, eps 1e-3: |d| with a round bottom, value by value."""
    return (difference.square() + CHARBONNIER**2).sqrt() - CHARBONNIER


def alignment(prediction: Tensor, target: Tensor, sigma: Tensor, keep: Tensor) -> Tensor:
    """How far the adapter's auxiliary image is from the low-resolution image it should be: a scalar.

    `charbonnier` of the weighted differences in YCbCr of images in [0,1], mean over channels and pixels; mean over the
    batch with weights (1 − sigma)·keep. prediction, target (B,3,h,w) in [-1,1]; keep (B,) is 0 where the latent was
    dropped. Zero if nothing is kept. (Specification §9.)
    """
    rgb_to_ycbcr = (
        torch.tensor(YCBCR, device=target.device) * torch.tensor(YCBCR_WEIGHTS, device=target.device)[:, None]
    )
    difference = torch.einsum("cr,brhw->bchw", rgb_to_ycbcr, (prediction.float() - target.float()) / 2)
    distance = charbonnier(difference).mean((1, 2, 3))
    weight = (1 - sigma.float()) * keep.float()
    return (distance * weight).sum() / weight.sum().clamp_min(1e-8)


def seams(images: Tensor, side: int) -> Tensor:
    """How far the steps across the borders of side x side patches are from those inside: the mean square of
    log(border / inside), each a mean absolute difference of neighbouring pixels over places of about 64 pixels a side.

    Images (B,3,H,W) in [-1,1], of more than one patch a side -> a scalar, about 0 for photographs.
    """
    found = list[Tensor]()
    for turned in (images, images.mT):
        steps = turned.float().diff(dim=2).abs().mean(1)  # (B,H-1,W)
        rows = steps.shape[1] // side
        steps = steps[:, : rows * side].unflatten(1, (rows, side))  # the last of each is across a border
        place = (min(64 // side, rows), min(64, steps.shape[3]))
        border, inside = (F.avg_pool2d(each, place) for each in (steps[:, :, -1], steps[:, :, :-1].mean(2)))
        found.append(((border + STEP) / (inside + STEP)).log().square().mean())
    return torch.stack(found).mean()
