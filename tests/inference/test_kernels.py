import math

import pytest
import torch
from torch import Tensor

from pixdec.inference import kernels
from pixdec.inference.kernels import NAMES, Shape, choose, error_of, shapes_of, trusted
from pixdec.layers.attention import attention
from pixdec.models.pid import PiD, PiDSettings

CPU = torch.device("cpu")
SHAPES = (Shape(2, 16, 64), Shape(2, 24, 64))


@pytest.mark.parametrize("name", ["math", "flash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_computes_attention_is_trusted(name: kernels.KernelName, dtype: torch.dtype):
    q, k, v = torch.randn(3, 1, 2, 40, 16).to(dtype)
    kernel = choose(name, CPU, dtype, SHAPES)
    torch.testing.assert_close(kernel(q, k, v), attention(q, k, v), rtol=0, atol=1e-5 if q.itemsize == 4 else 0.02)
    assert 0 < trusted(name, CPU, dtype, 16) < kernels.EXACT[dtype]


def test_pytorch_chooses_where_nothing_else_is_asked_for():
    assert choose("torch", CPU, torch.bfloat16, SHAPES) is attention
    assert choose("auto", CPU, torch.bfloat16, SHAPES) is attention


def test_a_wrong_kernel_is_not_trusted(monkeypatch: pytest.MonkeyPatch):
    def forgets_the_last_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k[:, :, :-1], v[:, :, :-1])

    def overflows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * 9).exp() @ v / (q @ k.transpose(-1, -2) * 9).exp().sum(-1, keepdim=True)

    trusted.cache_clear()
    for wrong in (forgets_the_last_key, overflows):
        choose.cache_clear()
        monkeypatch.setattr(kernels, "kernel_of", lambda _name, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"attention='flash': .* the exact one, at most 1e-05 is trusted"):
            choose("flash", CPU, torch.float32, SHAPES)
    trusted.cache_clear()
    choose.cache_clear()
    assert math.isnan(error_of(overflows, CPU, torch.float32, 16))


def test_bad_choices_are_one_line():
    with pytest.raises(ValueError, match=f"attention='fast': expected one of {', '.join(NAMES)}"):
        choose("fast", CPU, torch.float32, SHAPES)  # pyright: ignore[reportArgumentType]
    for name in ("flash3", "sage"):
        with pytest.raises(ValueError, match=f"attention='{name}': the package .* is not installed"):
            choose(name, CPU, torch.float32, SHAPES)
    with pytest.raises(ValueError, match=r"attention='cudnn': does not run on cpu, torch.float32 \("):
        choose("cudnn", CPU, torch.float32, SHAPES)


def test_shapes_of_the_released_network():
    with torch.device("meta"):
        network = PiD(PiDSettings())
    assert shapes_of(network, 2048, 2048) == (Shape(24, 64, 16384 + 300), Shape(16, 72, 16384))
