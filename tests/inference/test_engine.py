"""Requests, batches and calls; and that no call leaves anything behind for the next."""

import copy
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from battery import randomised
from pixdec.decoder import InferenceConfig, PixelDecoder
from pixdec.inference import arrangement, engine
from pixdec.inference.engine import TEACHER_STEPS, times_for
from pixdec.inference.offload import blocks_of, numbers_of, offload_blocks
from pixdec.inference.requests import batches_of, levels_for, requests_for, sizes_for
from pixdec.latents import Latent, get_space
from pixdec.models.adapter import AdapterSettings
from pixdec.models.execution import PLAIN
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.sampling.samplers import NoiseSource, student
from pixdec.weights.load import save_decoder

BACKBONE = PixDiTSettings(
    patch=8, hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=None
)
SETTINGS = PiDSettings(BACKBONE, AdapterSettings(latent_channels=16, width=8, blocks=1))
SPACE = get_space("flux1")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    network = randomised(PiD(SETTINGS).initialize())
    save_decoder(network, path, name="small", space="flux1", version="v1", licence="Apache-2.0")
    return path


@pytest.fixture(scope="module")
def decoder(file: Path) -> PixelDecoder:
    return PixelDecoder.from_pretrained(file, "cpu")


def latent(batch: int = 1, height: int = 4, width: int = 6, sigma: float = 0.0) -> Latent:
    return Latent(torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(height)), SPACE, sigma)


@pytest.fixture(scope="module")
def expected(decoder: PixelDecoder) -> torch.Tensor:
    return decoder.decode(latent(), output="pt")


def test_every_image_is_one_request_in_order(decoder: PixelDecoder):
    given = [latent(2, 2, 3, 0.25), latent(1, 4, 4), latent(1, 2, 3)]
    decoder = copy.copy(decoder)
    requests = requests_for(decoder.model, given, "", None, 7, [None, (64, 64), None])
    assert [each.seed for each in requests] == [7, 8, 9, 10]
    assert [each.size for each in requests] == [None, None, (64, 64), None]
    assert [each.latent.sigma.tolist() for each in requests] == [[0.25], [0.25], [0], [0]]
    assert torch.equal(requests[1].latent.tensor, given[0].tensor[1:])
    assert [each.frame.size for each in requests] == [(64, 96), (64, 96), (128, 128), (64, 96)]


def test_batches_have_one_size_and_at_most_so_many(decoder: PixelDecoder):
    given = [latent(1, 2, 3), latent(1, 4, 4), latent(3, 2, 3, 0.5), latent(1, 4, 4)]
    requests = requests_for(decoder.model, given, size=[None, None, None, (64, 64)])
    made = list(batches_of(requests, lambda size: 3))
    assert [each.places for each in made] == [[0, 2, 3], [4], [1], [5]]
    assert made[0].latent(torch.device("cpu")).shape == (3, 16, 2, 3)
    assert made[0].sigma(torch.device("cpu")).tolist() == [0, 0.5, 0.5]
    assert [each.places for each in made[0].halves()] == [[0], [2, 3]]


def test_sizes_are_one_for_all_or_one_for_each_latent():
    assert sizes_for(None, 2) == [None, None]
    assert sizes_for((3, 4), 2) == sizes_for([3, 4], 2) == [(3, 4), (3, 4)]
    assert sizes_for([(3, 4), None], 2) == [(3, 4), None]
    for wrong, words in (
        ((3, 4, 5), r"size=\(3, 4, 5\)"),
        ((3, 0), "size"),
        ([(3, 4)], "1 sizes for 2"),
        ("x", "size"),
    ):
        with pytest.raises(ValueError, match=words):
            sizes_for(wrong, 2)  # type: ignore[arg-type]


def test_noise_levels_are_dealt_out():
    given = [torch.zeros(2, 16, 2, 2), latent(1, 2, 2, 0.5)]
    assert levels_for(None, given) == [None, None]
    assert [each.tolist() for each in levels_for(0.5, given) if each is not None] == [[0.5, 0.5], [0.5]]
    assert [each.tolist() for each in levels_for([0, 0.25, 1], given) if each is not None] == [[0, 0.25], [1]]
    with pytest.raises(ValueError, match="3 latents"):
        levels_for([0, 0.5], given)


def test_levels_are_the_students_own_or_follow_the_size_a_teacher_sees(decoder: PixelDecoder):
    model = decoder.model
    assert times_for(model, None, 64, 64) == times_for(model, 4, 999, 1) == list(model.times)
    with pytest.raises(ValueError, match="steps=5"):
        times_for(model, 5, 64, 64)
    teacher = replace(model, kind="teacher", times=())
    assert len(times_for(teacher, None, 64, 64)) == TEACHER_STEPS + 1
    assert times_for(teacher, 3, 2048, 2048)[1] > times_for(teacher, 3, 1024, 1024)[1]


@torch.no_grad()
def test_the_steps_are_the_samplers_on_the_networks_velocity(decoder: PixelDecoder):
    given = latent(2, 2, 3)
    made = list(decoder.stream(given, seed=[3, 4], sigma=[0.0, 0.5]))
    sigma = torch.tensor([0.0, 0.5])
    by_hand = student(
        lambda x, t: decoder.network(x, t, None, given.tensor, sigma),
        NoiseSource([3, 4], torch.device("cpu")),
        (2, 3, 64, 96),
        decoder.model.times,
    )
    assert all(torch.allclose(a.x0, b.x0, atol=1e-5) for a, b in zip(made, by_hand, strict=True))


# Nothing is left behind


def test_the_network_is_the_same_after_any_call(decoder: PixelDecoder, expected: torch.Tensor):
    """Its weights' very storage, what modules hold beside them, and what it decodes."""
    before = {name: (p.data_ptr(), p.dtype) for name, p in decoder.network.named_parameters()}
    attributes = [set(vars(module)) for module in decoder.network.modules()]
    for config in (
        InferenceConfig(dtype=torch.bfloat16),
        InferenceConfig(memory="4GB"),
        InferenceConfig(attention="math"),
        InferenceConfig(tile=64),
        InferenceConfig(offload=True),
    ):
        assert decoder.decode(latent(), output="pt", config=config).shape == expected.shape
        assert {name: (p.data_ptr(), p.dtype) for name, p in decoder.network.named_parameters()} == before
        assert [set(vars(module)) for module in decoder.network.modules()] == attributes
        assert torch.equal(decoder.decode(latent(), output="pt"), expected)
    assert decoder.dtype == torch.float32


CONFIGS = [
    InferenceConfig(),
    InferenceConfig(dtype=torch.bfloat16),
    InferenceConfig(tile=64),
    InferenceConfig(attention="math", dtype=torch.bfloat16),
]


def test_interleaved_streams_give_the_bytes_of_one_after_the_other(decoder: PixelDecoder):
    cases = [(latent(1, 2 + i, 3), i, config) for i, config in enumerate(CONFIGS)]
    alone = [[step.x0 for step in decoder.stream(z, seed=seed, config=how)] for z, seed, how in cases]
    mixed = list(zip(*(decoder.stream(z, seed=seed, config=how) for z, seed, how in cases), strict=True))
    for step, row in enumerate(mixed):
        assert all(torch.equal(found.x0, wanted[step]) for found, wanted in zip(row, alone, strict=True))


def test_twenty_threads_give_the_bytes_of_one(decoder: PixelDecoder):
    cases = [(latent(1, 2 + i % 3, 3), i, config) for i, config in zip(range(20), itertools.cycle(CONFIGS))]

    def run(case: tuple[Latent, int, InferenceConfig]) -> bytes:
        z, seed, config = case
        return decoder.decode(z, seed=seed, output="np", config=config).tobytes()

    alone = [run(case) for case in cases]
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(run, cases)) == alone


def test_moving_a_decoder_is_its_own(file: Path, expected: torch.Tensor):
    decoder = PixelDecoder.from_pretrained(file, "cpu")
    assert decoder.to(dtype=torch.bfloat16) is decoder
    assert decoder.dtype == torch.bfloat16
    low = decoder.decode(latent(), output="pt")
    assert not torch.equal(low, expected)
    as_call = PixelDecoder.from_pretrained(file, "cpu").decode(
        latent(), output="pt", config=InferenceConfig(dtype=torch.bfloat16)
    )
    assert torch.equal(as_call, low)


# How it is run


def test_a_step_says_how_it_was_made(decoder: PixelDecoder):
    def record(**config: object) -> dict[str, object]:
        *_, last = decoder.stream(latent(), steps=1, config=InferenceConfig(**config))  # type: ignore[arg-type]
        return last.how.record()

    assert record() == {"dtype": "float32"}
    assert record(dtype=torch.bfloat16, tile=64) == {"dtype": "bfloat16", "tile": 64}
    assert record(memory="auto", attention="math") == {"dtype": "float32", "attention": "math"}


def test_a_limit_that_all_fits_in_changes_nothing(file: Path, expected: torch.Tensor):
    for memory in ("4GB", 4_000_000_000, "auto"):
        decoder = PixelDecoder.from_pretrained(file, "cpu", config=InferenceConfig(memory=memory))
        assert torch.equal(decoder.decode(latent(), output="pt"), expected)
        assert decoder.plan(128, 192).tile is None


def test_a_decode_that_does_not_fit_is_refused_before_it_begins(decoder: PixelDecoder):
    with pytest.raises(ValueError, match=r"192x128 does not fit in 0\.10 GB: the least that would do is"):
        decoder.decode(latent(), config=InferenceConfig(memory="100MB"))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"memory": "lots"}, "memory='lots': expected an amount"),
        ({"attention": "fast"}, "attention='fast': expected one of auto, torch"),
        ({"compile": "graphs"}, "compile='graphs' on cpu: CUDA graphs need a CUDA device"),
        ({"compile": "twice"}, "compile='twice': expected one of default, graphs"),
        ({"quantize": "int2"}, "quantize='int2': expected one of int8"),
        ({"quantize": "fp8"}, "quantize='fp8' on cpu"),
        ({"dtype": torch.int8}, "dtype=torch.int8: expected one of torch.float32"),
        ({"compile": "default", "offload": True}, "compile='default' with offload"),
        ({"quantize": "int8", "offload": True}, "quantize='int8' with offload"),
        ({"tile": 63}, "tile=63: expected a multiple of 8"),
    ],
)
def test_what_cannot_be_is_one_line(decoder: PixelDecoder, how: dict[str, object], line: str):
    with pytest.raises(ValueError, match=f"^{line}"):
        decoder.decode(latent(), config=InferenceConfig(**how))  # type: ignore[arg-type]


def test_old_names_warn_and_go_with_the_config(file: Path):
    with pytest.warns(FutureWarning, match=r"quantise= goes with the config now: config=InferenceConfig\(quantize=…\)"):
        decoder = PixelDecoder.from_pretrained(file, "cpu", quantise="int8-weights")
    assert decoder.config == InferenceConfig(quantize="int8-weights")
    with pytest.raises(TypeError, match="'quick'"):
        PixelDecoder.from_pretrained(file, "cpu", quick=True)


def test_a_kernel_that_is_not_there_is_refused(decoder: PixelDecoder, expected: torch.Tensor):
    with pytest.raises(ValueError, match="attention='sage': the package sageattention is not installed"):
        decoder.decode(latent(), config=InferenceConfig(attention="sage"))
    found = decoder.decode(latent(), output="pt", config=InferenceConfig(attention="math"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_many_tokens_are_made_in_every_call(
    decoder: PixelDecoder, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    points, tokens, both = 1, 16 * 24, 2  # one injection point; (128/8)·(192/8) tokens; with what they add to the gates
    monkeypatch.setattr(engine, "KEPT_CONDITION", tokens * (points * 24 * both + 8) * 4 - 1)
    *_, last = decoder.stream(latent())
    assert not last.how.keep_tokens
    assert torch.equal((last.x0 + 1) / 2, expected)


def test_a_callback_is_called_as_diffusers_would(decoder: PixelDecoder):
    seen = list[tuple[int, float, tuple[int, ...]]]()

    def look(which: PixelDecoder, step: int, t: float, tensors: dict[str, torch.Tensor]) -> None:
        assert which is decoder
        seen.append((step, t, tuple(tensors["x0"].shape)))

    decoder.decode(latent(2, 2, 2), batch_size=1, steps=2, callback_on_step_end=look)
    assert seen == [(0, decoder.model.times[0], (1, 3, 64, 64)), (1, decoder.model.times[2], (1, 3, 64, 64))] * 2


# Without memory


class Hungry:
    """A network whose calls on too many pixels at once find no memory."""

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch):
        self.calls = list[tuple[int, ...]]()
        plain = PiD.velocity

        def velocity(network, x_t, t, text, condition, sigma, how=PLAIN):
            self.calls.append((x_t.shape[0], *x_t.shape[2:], how.chunk))
            if x_t.shape[0] * x_t.shape[2] * x_t.shape[3] * how.chunk > most:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            return plain(network, x_t, t, text, condition, sigma, how)

        monkeypatch.setattr(PiD, "velocity", velocity)


def test_without_memory_less_is_done_at_a_time(
    file: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    decoder = PixelDecoder.from_pretrained(file, "cpu")
    hungry = Hungry(128 * 192 * 256, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(decoder.decode(latent(), output="pt"), expected), "smaller chunks, and nothing else"
    assert [call[-1] for call in hungry.calls] == [1024, 256, 256, 256, 256]
    assert "192x128: out of memory" in caplog.text
    hungry.calls.clear()
    both = decoder.decode(latent(2), seed=[0, 0], output="pt")
    assert [call[0] for call in hungry.calls] == [2, 2, *[1] * 10], "then fewer images"
    assert torch.allclose(both[:1], expected, atol=1e-5)


def test_without_memory_tiles_come_last(file: Path, monkeypatch: pytest.MonkeyPatch):
    decoder = PixelDecoder.from_pretrained(file, "cpu")
    monkeypatch.setattr(arrangement, "TILES", (96, 64))
    Hungry(64 * 64 * 256, monkeypatch)
    *_, last = decoder.stream(latent())
    assert last.how.record() == {"dtype": "float32", "tile": 64}
    decoder = PixelDecoder.from_pretrained(file, "cpu")
    Hungry(64 * 64, monkeypatch)
    with pytest.raises(ValueError, match=r"^192x128 does not fit in the memory that cpu has left .*memory=$"):
        decoder.decode(latent())


def test_other_errors_pass(file: Path, monkeypatch: pytest.MonkeyPatch):
    decoder = PixelDecoder.from_pretrained(file, "cpu")

    def broken(*_: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(PiD, "velocity", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        decoder.decode(latent())


# Offload


@torch.inference_mode()
def test_offloaded_blocks_compute_the_same_and_weigh_nothing_between_calls(decoder: PixelDecoder):
    network = engine.sharing_copy(decoder.network)
    given = torch.rand(1, 3, 64, 64), torch.tensor([0.5]), None, torch.randn(1, 16, 2, 2), torch.zeros(1)
    offload_blocks(network, torch.device("cpu"))
    assert torch.equal(network(*given), decoder.network(*given))
    inside = sum(p.numel() for block in blocks_of(network) for p in block.parameters())
    assert numbers_of(network) - inside < numbers_of(network, offloaded=True) <= numbers_of(network)


def test_images_leave_as_asked_and_are_put_together_again(decoder: PixelDecoder):
    given = [latent(2, 2, 3), latent(1, 4, 4)]
    tensors = decoder.decode(given, output="pt")
    arrays = decoder.decode(given, output="np")
    assert [tuple(each.shape) for each in tensors] == [(2, 3, 64, 96), (1, 3, 128, 128)]
    assert all(np.array_equal(a, t.permute(0, 2, 3, 1).numpy()) for a, t in zip(arrays, tensors, strict=True))
    assert [picture.size for picture in decoder.decode(given)] == [(96, 64)] * 2 + [(128, 128)]
