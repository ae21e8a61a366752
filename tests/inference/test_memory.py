"""Plans of decodes: they predict what the decoder takes, and fit in what is allowed."""

import subprocess
import sys

import pytest
import torch

from battery import randomised
from nano import nano_network
from pixdec.decoder import PixelDecoder
from pixdec.inference.config import InferenceConfig
from pixdec.inference.counting import count_call
from pixdec.inference.memory import DecodePlan, plan_decode
from pixdec.inference.offload import offload_blocks
from pixdec.models.adapter import AdapterSettings
from pixdec.models.cost import Meter, random_inputs
from pixdec.models.execution import Execution
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


def a_decoder(settings: PiDSettings, space: str, *, dtype: torch.dtype, teacher: bool = False) -> PixelDecoder:
    network = randomised(PiD(settings).initialise()).requires_grad_(False).to(dtype)
    reads = settings.backbone.text_width is not None
    times = () if teacher else (0.999, 0.5, 0.2, 0.0)
    kind = "teacher" if teacher else "student"
    model = LoadedDecoder(network, "test", (space,), 4, kind, times, "v1", reads, "none", None)
    embed = lambda captions, device, dtype: torch.ones(len(captions), 20, 32, device=device, dtype=dtype)  # noqa: E731
    return PixelDecoder(model, embed if reads else None)


@pytest.mark.parametrize(
    ("settings", "space", "dtype", "teacher", "size", "batch", "tile"),
    [
        (SMALL, "flux1", torch.float32, False, (256, 256), 2, None),
        (SMALL, "flux1", torch.bfloat16, False, (256, 384), 1, None),
        (SMALL, "flux1", torch.float32, False, (256, 384), 1, 128),
        (SMALL, "flux1", torch.float32, True, (256, 256), 1, None),
        (nano_network(), "flux2", torch.float32, False, (256, 256), 1, None),
        (nano_network(), "flux2", torch.bfloat16, False, (192, 256), 2, 128),
    ],
)
def test_a_decode_takes_what_was_predicted(
    settings: PiDSettings,
    space: str,
    dtype: torch.dtype,
    teacher: bool,
    size: tuple[int, int],
    batch: int,
    tile: int | None,
):
    plan = plan_decode(
        settings, *size, batch=batch, dtype=dtype, limit=GIANT, device_type="cpu", tile=tile, teacher=teacher
    )
    assert (plan.images, plan.tile, plan.keep_tokens, plan.offload) == (batch, tile, tile is None, "none")
    decoder = a_decoder(settings, space, dtype=dtype, teacher=teacher)
    decoder.config = InferenceConfig(tile=tile)
    side = decoder.space.factor * decoder.scale
    latent = torch.randn(batch, decoder.space.channels, size[0] // side, size[1] // side)
    with Meter() as meter:
        images = decoder.decode(latent, steps=3, output="pt")
    assert images.isfinite().all(), "planning has left something in the decoder's way"
    assert sum(p.nbytes for p in decoder.network.parameters()) == plan.weights
    assert meter.most == pytest.approx(plan.peak - plan.weights, rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize(("settings", "chunk"), [(SMALL, 16), (nano_network(), 64)])
def test_a_call_in_many_chunks_takes_what_few_of_them_tell(settings: PiDSettings, chunk: int):
    """2048 patches: 512 x 256 pixels of nano, 1024 x 512 of the small one."""
    height, width = 64 * settings.backbone.patch, 32 * settings.backbone.patch
    network = randomised(PiD(settings).initialise()).requires_grad_(False)
    given = random_inputs(settings, height, width, device=torch.device("cpu"))
    condition = network.condition(given.latent)
    with Meter() as meter:
        network.velocity(given.x_t, given.t, given.text, condition, given.sigma, Execution(chunk=chunk))
    found = count_call(
        settings, height, width, 1, torch.float32, chunk=chunk, tokens=True, tile=False, device_type="cpu"
    )
    assert meter.most == pytest.approx(found.peak, rel=0.02)
    assert 0 <= found.kept < found.peak / 2


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
    return plan_decode(
        SMALL, 1024, 1024, batch=4, dtype=torch.float32, low=torch.bfloat16, limit=limit, device_type="cuda"
    )


def test_plans_fit_and_less_memory_gives_more_frugal_ones(ladder: list[DecodePlan]):
    totals = [plan.total for plan in ladder]
    assert totals == sorted(set(totals), reverse=True)
    assert all(plan.total <= plan.limit for plan in ladder)


def test_what_keeps_the_image_is_given_up_last(ladder: list[DecodePlan]):
    first = ladder[0]
    assert (first.images, first.chunk, first.keep_tokens) == (4, 1024, True)
    assert (first.offload, first.dtype, first.tile) == ("none", torch.float32, None)
    picture = [(plan.tile is not None, plan.dtype != torch.float32) for plan in ladder]
    assert picture == sorted(picture), "tiles come last, and lower precision before them"
    assert {plan.images for plan in ladder} == {4, 2, 1}
    assert {plan.offload for plan in ladder} == {"none", "blocks"}
    assert {plan.tile for plan in ladder} == {None, 512}
    last = ladder[-1]
    assert (last.images, last.keep_tokens, last.offload, last.dtype, last.tile) == (
        1,
        False,
        "blocks",
        torch.bfloat16,
        512,
    )


def test_a_plan_says_what_changes_the_image(ladder: list[DecodePlan]):
    for plan in ladder:
        text = "\n".join(plan.lines())
        assert ("tiles of 512: smaller" in text) == (plan.tile == 512)
        assert ("bfloat16 in the place of float32" in text) == (plan.dtype == torch.bfloat16)
        assert ("blocks' weights in host memory" in text) == (plan.offload == "blocks")
        numbers = [float(part.split()[-1]) for part in plan.lines()[1].split(" = ")[1].split(" + ")]
        assert sum(numbers) == pytest.approx(plan.peak / 1e9, abs=0.03)


def test_the_weights_of_an_offloaded_plan_are_those_that_stay(ladder: list[DecodePlan]):
    plan = next(plan for plan in ladder if plan.offload == "blocks")
    with offload_blocks(PiD(SMALL).requires_grad_(False), "cpu") as offloaded:
        assert plan.weights == offloaded.resident


def test_beyond_the_trained_sizes_there_are_tiles_to_begin_with():
    plan = plan_decode(SMALL, 4608, 4096, dtype=torch.bfloat16, limit=GIANT, device_type="cuda", sizes=TWO_TO_FOUR_K)
    assert (plan.tile, plan.keep_tokens, plan.notes[1:]) == (2048, False, ())


def test_a_side_that_is_asked_for_is_kept():
    wanted = {"dtype": torch.float32, "device_type": "cuda", "tile": 512}
    least = plan_decode(SMALL, 768, 768, limit=GIANT, **wanted)
    assert least.tile == 512
    with pytest.raises(ValueError, match="does not fit in 0"):
        plan_decode(SMALL, 768, 768, limit=10**8, **wanted)


def test_the_released_network_fits_in_8_gigabytes():
    """Whole at 2048 x 2048, with weights that stay; captions are embedded on the host."""
    plan = plan_decode(
        PiDSettings(), 2048, 2048, dtype=torch.bfloat16, limit=8 * 10**9, device_type="cuda", sizes=TWO_TO_FOUR_K
    )
    assert (plan.tile, plan.offload, plan.keep_tokens, plan.captions) == (None, "none", True, "host")
    assert 2.6e9 < plan.weights < 2.8e9
    assert plan.weights + 0.5e9 < plan.peak < 5e9
    assert "embedded on the CPU" in plan.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 100}, "256x100: expected sides that are multiples of 32"),
        ({"batch": 0}, "batch=0"),
        ({"tile": 40}, "tile=40"),
        ({"settings": PiDSettings(SMALL.backbone, None)}, "prior"),
        ({"limit": 10**6}, "the least that would do is"),
    ],
)
def test_plans_that_cannot_be(change: dict[str, object], message: str):
    given = {"settings": SMALL, "height": 256, "width": 256, "batch": 1, "limit": GIANT, **change}
    with pytest.raises(ValueError, match=message) as error:
        plan_decode(**given, dtype=torch.float32, device_type="cpu")
    assert "\n" not in str(error.value)


# Not ru_maxrss, which a process inherits from the one that started it.
CHILD = """
import re, torch
from pathlib import Path
from pixdec.decoder import PixelDecoder
decoder = PixelDecoder.from_pretrained(device="cpu", dtype=torch.float32)
decoder.decode(torch.randn(1, 128, 8, 8), steps=2)
print(re.search("VmHWM: *(.*) kB", Path("/proc/self/status").read_text().replace(chr(9), ""))[1])
"""


@pytest.mark.skipif(
    sys.platform != "linux" or torch.version.cuda is not None, reason="the allowance was measured there"
)
def test_a_process_takes_what_was_predicted():
    plan = plan_decode(nano_network(), 512, 512, dtype=torch.float32, limit=GIANT, device_type="cpu")
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout) == pytest.approx(plan.total, rel=0.15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("tile", [None, 256])
def test_cuda_takes_what_was_predicted(tile: int | None):
    plan = plan_decode(SMALL, 1024, 1024, dtype=torch.bfloat16, limit=GIANT, device_type="cuda", tile=tile)
    decoder = a_decoder(SMALL, "flux1", dtype=torch.bfloat16)
    decoder.network.cuda()
    decoder.config = InferenceConfig(tile=tile)
    torch.cuda.reset_peak_memory_stats()
    decoder.decode(torch.randn(1, 16, 32, 32), steps=3, output="pt")
    assert torch.cuda.max_memory_allocated() == pytest.approx(plan.peak, rel=0.1, abs=70e6)  # workspaces
