import pytest
import torch

from pixdec.sampling.flow import (
    STUDENT_TIMES,
    clean,
    interpolate,
    resolution_shift,
    shift,
    shifted_times,
    student_times,
)


def test_ends_of_the_path():
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([0.0, 1.0])
    x_t = interpolate(x0, noise, t)
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[1], noise[1])


def test_clean_is_exact_to_float32():
    x0, noise, t = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.rand(4)
    exact = interpolate(x0.double(), noise.double(), t)
    estimate = clean(exact.float(), (noise - x0), t)
    assert (estimate - x0).abs().max() < 1e-6
    assert estimate.dtype == torch.float32


def test_fewer_steps_of_the_student():
    assert student_times(STUDENT_TIMES, 4) == list(STUDENT_TIMES)
    assert student_times(STUDENT_TIMES, 3) == [0.999, 0.866, 0.342, 0.0]
    assert student_times(STUDENT_TIMES, 2) == [0.999, 0.634, 0.0]
    assert student_times(STUDENT_TIMES, 1) == [0.999, 0.0]
    for steps in (0, 5):
        with pytest.raises(ValueError, match=f"steps={steps}.*1 to 4"):
            student_times(STUDENT_TIMES, steps)


def test_shifts():
    assert shift(0.0, 6) == 0
    assert shift(1.0, 6) == 1
    assert shift(0.5, 3) == pytest.approx(0.75)
    assert resolution_shift(2048, 2048, "v1.5") == pytest.approx(6)
    assert resolution_shift(4096, 4096, "v1.5") == pytest.approx(6 * 2**0.5)
    assert resolution_shift(1024, 1024, "v1") == pytest.approx(4)
    with pytest.raises(ValueError, match=r"^version 'nano' has no shift.*expected v1 or v1\.5$"):
        resolution_shift(1024, 1024, "nano")
    assert shifted_times(2, 3.0) == pytest.approx([1.0, 0.75, 0.0])
