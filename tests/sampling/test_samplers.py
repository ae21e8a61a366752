"""Samplers against a case that can be solved by hand: the exact denoiser of Gaussian data."""

import math

import pytest
import torch

from pixdec.sampling.flow import STUDENT_TIMES, clean, shifted_times
from pixdec.sampling.samplers import NoiseSource, dpm_solver, guided, student

MEAN, STD = 0.3, 0.2


def gaussian(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Velocity of the exact denoiser for data N(MEAN, STD²): E[x0 | x_t] by Bayes' rule."""
    t = t.double()[:, None, None, None]
    x = x_t.double()
    variance = ((1 - t) * STD) ** 2 + t**2
    x0 = MEAN + (1 - t) * STD**2 / variance * (x - (1 - t) * MEAN)
    return ((x - x0) / t).float()


def exact(x: torch.Tensor, start: float) -> torch.Tensor:
    """Where the probability-flow ODE takes x from noise level `start` to 0: it keeps the quantile."""
    spread = math.sqrt(((1 - start) * STD) ** 2 + start**2)
    return MEAN + STD * (x - (1 - start) * MEAN) / spread


def test_dpm_solver_reaches_the_exact_solution():
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = exact(x, 0.999)
    errors = []
    for steps in (10, 20, 40):
        *_, last = dpm_solver(gaussian, x, shifted_times(steps, 1.0, 0.999))
        errors.append(float((last.x0 - target).norm() / target.norm()))
    assert errors[-1] < 0.01
    assert errors[0] > errors[1] > errors[2]


def test_dpm_solver_agrees_with_diffusers():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep")
    steps, factor = 12, 3.0
    scheduler = scheduling.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=factor, solver_order=2, euler_at_final=True
    )
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = list(dpm_solver(gaussian, x, [float(s) for s in scheduler.sigmas]))[-1].x0
    theirs = x
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        theirs = scheduler.step(gaussian(theirs, sigma[None]), timestep, theirs, return_dict=False)[0]
    assert (ours - theirs).abs().max() < 1e-4


def test_student_keeps_the_distribution_of_gaussian_data():
    """Each renoised state has the right variance only if x0, t' and the noise are combined as specified."""
    source = NoiseSource([0], torch.device("cpu"))
    steps = list(student(gaussian, source, (1, 3, 128, 128), STUDENT_TIMES))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    # By hand: x0 has std s_k = (1−t)·STD²/v·sd(x_t); x_t of the next step has variance ((1−t')·s_k)² + t'².
    deviation = 1.0
    for step, following in zip(steps, STUDENT_TIMES[1:], strict=True):
        gain = (1 - step.t) * STD**2 / (((1 - step.t) * STD) ** 2 + step.t**2)
        deviation = gain * deviation
        assert float(step.x0.std()) == pytest.approx(deviation, rel=0.03, abs=1e-5)
        deviation = math.hypot((1 - following) * deviation, following)


def test_the_last_step_is_the_result_and_is_clamped():
    *_, last = student(lambda x, t: torch.full_like(x, -9.0), torch.randn, (1, 3, 4, 4), (0.999, 0.0))
    assert last.x0.max() == 1


def test_noise_is_the_same_alone_and_in_a_batch():
    together = NoiseSource([3, 7], torch.device("cpu"))
    alone = NoiseSource([7], torch.device("cpu"))
    for _ in range(2):
        assert torch.equal(together((2, 3, 5, 5))[1], alone((1, 3, 5, 5))[0])


def test_noise_of_large_images_is_the_same_however_many_threads_draw_it():
    shape, cpu, threads = (2, 3, 640, 640), torch.device("cpu"), torch.get_num_threads()
    drawn = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            source = NoiseSource([3, 7], cpu)
            drawn.append([source(shape) for _ in range(2)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    parts = torch.cat([each.flatten(1)[:, :: 2**20] for each in drawn[0]]).flatten()
    assert len(parts.unique()) == len(parts), "every part of every image in every call is another"
    assert abs(float(drawn[0][0].mean())) < 0.003
    assert float(drawn[0][0].std()) == pytest.approx(1, abs=0.002)
    beginning = torch.randn(2**20, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn[0][0][1].flatten()[: 2**20], beginning)


def test_noise_for_another_device_is_drawn_ahead():
    ahead = NoiseSource([3], torch.device("meta"), calls=3)
    here = NoiseSource([3], torch.device("cpu"), calls=3)
    shape = (1, 3, 8, 8)
    for _ in range(2):
        assert ahead(shape).device.type == "meta"
        here(shape)
    assert ahead._next is not None
    assert torch.equal(ahead._next[1].result(), here(shape))
    ahead(shape)
    assert ahead._next is None, "nothing is drawn that nobody asks for"


def test_guidance():
    calls: list[str] = []

    def conditional(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append("c")
        return x + 1

    def unconditional(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append("u")
        return x

    x, t = torch.zeros(1, 3, 2, 2), torch.ones(1)
    assert guided(conditional, unconditional, 5.0)(x, t).unique().item() == 5
    assert guided(conditional, unconditional, 1)(x, t).unique().item() == 1
    assert calls.count("u") == 1


def test_clean_in_batches_of_different_levels():
    x, v, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.2, 0.9])
    assert torch.allclose(clean(x, v, t)[1], x[1] - 0.9 * v[1], atol=1e-6)
