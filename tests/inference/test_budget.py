"""Plans of decodes: they predict what the decoder takes, and fit in what is allowed."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from battery import randomised
from meter import Meter
from pixdec.decoder import InferenceConfig, PixelDecoder
from pixdec.inference.budget import Asked, DecodePlan, plan_decode
from pixdec.inference.quantize import quantize_blocks, stored_bytes
from pixdec.models.adapter import AdapterSettings
from pixdec.models.nano import Nano, NanoSettings
from pixdec.models.network import Network
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.catalog import TWO_TO_FOUR_K
from pixdec.weights.load import LoadedDecoder

GIANT = 10**15
SMALL = PiDSettings(
    PixDiTSettings(
        hidden=96, heads=4, depth=3, pixel_width=8, pixel_hidden=96, pixel_heads=4, text_width=32, text_length=20
    ),
    AdapterSettings(width=32, blocks=2),
)


V1_5 = replace(SMALL, adapter=AdapterSettings(width=64, padding="replicate", gate="token", pixel_head=True))
CPU = Asked((256, 256), torch.float32, GIANT, "cpu")
CUDA = Asked((1024, 1024), torch.float32, GIANT, "cuda", may_offload=True)


def network_of(settings: PiDSettings | NanoSettings) -> Network:
    with torch.device("meta"):
        return Nano(settings) if isinstance(settings, NanoSettings) else PiD(settings)


def a_decoder(settings: PiDSettings | NanoSettings, dtype: torch.dtype, *, teacher: bool = False) -> PixelDecoder:
    network = Nano(settings) if isinstance(settings, NanoSettings) else PiD(settings).initialize()
    network = randomised(network).requires_grad_(False).to(dtype)
    space, reads = ("rgb", False) if isinstance(settings, NanoSettings) else ("flux1", True)
    times = () if teacher else (0.999, 0.5, 0.2, 0.0)
    kind = "teacher" if teacher else "student"
    model = LoadedDecoder(
        settings=network.settings,
        name="test",
        space=space,
        kind=kind,
        version="v1",
        times=times,
        licence="none",
        network=network,
    )
    embed = lambda captions, device, dtype: torch.ones(len(captions), 20, 32, device=device, dtype=dtype)  # noqa: E731
    return PixelDecoder(model, embed if reads else None)


@pytest.mark.parametrize(
    ("settings", "dtype", "change"),
    [
        (SMALL, torch.float32, {"size": (128, 128), "batch": 2}),
        (SMALL, torch.bfloat16, {"size": (128, 192)}),
        (V1_5, torch.bfloat16, {}),
        (SMALL, torch.float32, {"size": (128, 192), "tile": 96}),
        (SMALL, torch.float32, {"size": (128, 128), "teacher": True}),
        (NanoSettings(), torch.float32, {}),
        (NanoSettings(width=128), torch.bfloat16, {"batch": 2}),
        (NanoSettings(), torch.bfloat16, {"tile": 128}),
    ],
)
def test_a_decode_takes_what_was_predicted(
    settings: PiDSettings | NanoSettings, dtype: torch.dtype, change: dict[str, object]
):
    asked = replace(CPU, dtype=dtype, **change)
    decoder = a_decoder(settings, dtype, teacher=asked.teacher)
    plan = plan_decode(decoder.network, asked)
    assert (plan.images, plan.tile, plan.keep_tokens) == (asked.batch, asked.tile, asked.tile is None)
    side = decoder.space.factor * decoder.scale
    latent = torch.randn(asked.batch, decoder.space.channels, *(each // side for each in asked.size)).clamp(-1, 1)
    with Meter() as meter:
        decoder.decode(latent, steps=3, output="pt", config=InferenceConfig(tile=asked.tile))
    assert meter.most == pytest.approx(plan.peak - plan.parts["weights"], rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_eight_bits_are_counted_as_they_are_kept(dtype: torch.dtype):
    pytest.importorskip("torchao")
    backbone = replace(SMALL.backbone, hidden=128, pixel_hidden=128)
    network = randomised(PiD(replace(SMALL, backbone=backbone)).initialize()).requires_grad_(False).to(dtype)
    asked = replace(CUDA, dtype=dtype, quantize="int8-weights")
    own, beside = (plan_decode(network, replace(asked, loaded=loaded)).parts["weights"] for loaded in (None, dtype))
    exact = stored_bytes(network)
    quantize_blocks(network, "int8-weights")
    assert own == pytest.approx(stored_bytes(network), rel=0.005)
    assert own < exact < beside < exact + own
    least = plan_decode(network_of(PiDSettings()), replace(asked, size=(64, 64)))
    assert least.peak == pytest.approx(1.36e9 * dtype.itemsize, rel=0.05)  # before they are rounded


def test_a_plan_costs_no_time():
    network = network_of(PiDSettings())
    taken = list[float]()  # of the processor, which others may keep busy
    for _ in range(3):
        began = time.process_time()
        plan_decode(network, replace(CUDA, size=(2048, 2048), limit=6 * 10**9))
        taken.append(time.process_time() - began)
    assert min(taken) < 0.05


@pytest.fixture(scope="module")
def ladder() -> list[DecodePlan]:
    """Plans for ever less memory: each is allowed a byte less than the one before takes."""
    plans, limit = list[DecodePlan](), GIANT
    while True:
        try:
            plans.append(planned(limit))
        except ValueError as error:
            least = float(str(error).split("the least that would do is ")[1].split()[0])
            assert plans[-1].total / 1e9 <= least < 1.01 * plans[-1].total / 1e9 + 0.01
            return plans
        limit = plans[-1].total - 1


def planned(limit: int) -> DecodePlan:
    return plan_decode(network_of(SMALL), replace(CUDA, batch=4, low=torch.bfloat16, limit=limit))


def test_plans_fit_and_less_memory_gives_more_frugal_ones(ladder: list[DecodePlan]):
    totals = [plan.total for plan in ladder]
    assert totals == sorted(set(totals), reverse=True)
    assert all(plan.total <= plan.limit for plan in ladder)


def test_what_keeps_the_image_is_given_up_last(ladder: list[DecodePlan]):
    first = ladder[0]
    assert (first.images, first.chunk, first.keep_tokens) == (4, 1024, True)
    assert (first.offload, first.dtype, first.tile) == (False, torch.float32, None)
    picture = [(plan.tile is not None, plan.dtype != torch.float32) for plan in ladder]
    assert picture == sorted(picture), "tiles come last, and lower precision before them"
    assert {plan.images for plan in ladder} == {4, 2, 1}
    assert {plan.offload for plan in ladder} == {False, True}
    assert {plan.tile for plan in ladder} == {None, 512}
    last = ladder[-1]
    assert (last.images, last.keep_tokens, last.offload, last.dtype, last.tile) == (
        1,
        False,
        True,
        torch.bfloat16,
        512,
    )


def test_a_plan_says_what_changes_the_image(ladder: list[DecodePlan]):
    for plan in ladder:
        text = "\n".join(plan.lines())
        assert ("tiles of 512: smaller" in text) == (plan.tile == 512)
        assert ("bfloat16 in the place of float32" in text) == (plan.dtype == torch.bfloat16)
        assert ("blocks' weights in host memory" in text) == plan.offload
        numbers = [float(part.split()[-1]) for part in plan.lines()[1].split(" = ")[1].split(" + ")]
        assert sum(numbers) == pytest.approx(plan.peak / 1e9, abs=0.03)


def test_beyond_the_trained_sizes_there_are_tiles_to_begin_with():
    asked = replace(CUDA, size=(4608, 4096), dtype=torch.bfloat16, sizes=TWO_TO_FOUR_K)
    plan = plan_decode(network_of(SMALL), asked)
    assert (plan.tile, plan.keep_tokens, plan.notes[1:]) == (2048, False, ())


def test_a_side_that_is_asked_for_is_kept():
    asked = replace(CUDA, size=(768, 768), tile=512)
    assert plan_decode(network_of(SMALL), asked).tile == 512
    with pytest.raises(ValueError, match="does not fit in 0"):
        plan_decode(network_of(SMALL), replace(asked, limit=10**8))


def test_weights_that_are_there_anyway_count():
    plain, beside = (
        plan_decode(network_of(SMALL), replace(CPU, dtype=torch.bfloat16, loaded=loaded))
        for loaded in (torch.bfloat16, torch.float32)
    )
    assert beside.parts["weights"] == 3 * plain.parts["weights"]


def test_the_released_network_fits_in_8_gigabytes():
    """Whole at 2048 x 2048, with weights that stay; captions are embedded on the host."""
    asked = Asked((2048, 2048), torch.bfloat16, 8 * 10**9, "cuda", sizes=TWO_TO_FOUR_K)
    plan = plan_decode(network_of(PiDSettings()), asked)
    assert (plan.tile, plan.offload, plan.keep_tokens) == (None, False, True)
    assert 2.6e9 < plan.parts["weights"] < 2.8e9
    assert plan.parts["weights"] + 0.5e9 < plan.peak < 5e9
    assert "embedded on the CPU" in plan.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (100, 256)}, "256x100: expected sides that are multiples of 32"),
        ({"batch": 0}, "batch=0"),
        ({"tile": 40}, "tile=40"),
        ({"device_type": "xpu"}, "memory on xpu: can be planned on cpu, cuda, mps only"),
        ({"limit": 10**6}, "the least that would do is"),
    ],
)
def test_plans_that_cannot_be(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message) as error:
        plan_decode(network_of(SMALL), replace(CPU, **change))
    assert "\n" not in str(error.value)


# Not ru_maxrss, which a process inherits from the one that started it.
CHILD = """
import re, torch
from pathlib import Path
from pixdec.decoder import PixelDecoder
decoder = PixelDecoder.from_pretrained(device="cpu", dtype=torch.float32)
decoder.decode(0.3 * torch.randn(1, 3, 128, 128), steps=2)
print(re.search("VmHWM: *(.*) kB", Path("/proc/self/status").read_text().replace(chr(9), ""))[1])
"""


@pytest.mark.skipif(
    sys.platform != "linux" or torch.version.cuda is not None, reason="the allowance was measured there"
)
def test_a_process_takes_what_was_predicted():
    plan = PixelDecoder.from_pretrained(device="cpu", dtype=torch.float32).plan(512, 512)
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout) == pytest.approx(plan.total, rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("tile", [None, 256])
def test_cuda_takes_what_was_predicted(tile: int | None):
    decoder = a_decoder(SMALL, torch.bfloat16).to("cuda")
    plan = plan_decode(decoder.network, replace(CUDA, dtype=torch.bfloat16, tile=tile))
    torch.cuda.reset_peak_memory_stats()
    decoder.decode(torch.randn(1, 16, 32, 32), steps=3, output="pt", config=InferenceConfig(tile=tile))
    assert torch.cuda.max_memory_allocated() == pytest.approx(plan.peak, rel=0.1, abs=70e6)  # workspaces
