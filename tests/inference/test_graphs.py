from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from battery import randomised
from pixdec.inference.graphs import KEPT, Graphed
from pixdec.models.adapter import AdapterSettings
from pixdec.models.execution import PLAIN
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings

SMALL = PixDiTSettings(
    patch=4, hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=12, text_length=6
)
ADAPTER = AdapterSettings(8, latent_factor=1, width=8, blocks=1, pixel_head=True, gate="token")


@pytest.fixture(scope="module")
def network() -> PiD:
    torch.manual_seed(0)
    return randomised(PiD(PiDSettings(SMALL, ADAPTER))).eval().requires_grad_(False)  # pyright: ignore[reportReturnType]


class Replays:
    """A recorder that computes again, on the same tensors, into the same result, as a graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        result = run()

        def again() -> Tensor:
            self.replayed += 1
            return result.copy_(run())

        return again


@torch.inference_mode()
def test_replayed_calls_see_what_they_are_given(network: PiD):
    record = Replays()
    graphed, sigma, text = Graphed(network.velocity, record), torch.zeros(1), torch.randn(1, 6, 12)
    results = list[tuple[Tensor, Tensor]]()
    for _ in range(2):  # decodes, each with its own condition
        condition = network.condition(torch.randn(1, 8, 4, 4))
        for level in (0.9, 0.5, 0.1):
            given = torch.randn(1, 3, 16, 16), torch.tensor([level]), text, condition, sigma, PLAIN
            results.append((graphed(*given), network.velocity(*given)))
    for found, expected in results:  # also the first ones: replays must not change what was returned before
        assert torch.equal(found, expected)
    assert (record.recorded, record.replayed) == (1, 5)


@torch.inference_mode()
def test_each_size_has_its_graph_and_the_oldest_goes(network: PiD):
    record = Replays()
    graphed = Graphed(network.velocity, record)

    def call(cells: int) -> None:
        condition = network.condition(torch.randn(1, 8, cells, cells), tokens=False)
        graphed(torch.randn(1, 3, 4 * cells, 4 * cells), torch.rand(1), None, condition, torch.zeros(1), PLAIN)

    sizes = range(2, 2 + KEPT + 1)
    for _ in range(2):
        for cells in sizes:
            call(cells)
    assert record.recorded == len(sizes)
    call(sizes[-1])
    assert record.recorded == len(sizes)
    call(sizes[0])  # was dropped
    assert record.recorded == len(sizes), "the first call on a size runs as ever"
    call(sizes[0])
    assert record.recorded == len(sizes) + 1
