"""Plans: counted work against formulas, PyTorch's own counter and published figures; counted bytes against real
steps."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pixdec.devices import has_bfloat16_units
from pixdec.models.cost import Cost, Meter, decode_cost, random_inputs
from pixdec.models.pid import PiD, PiDSettings
from pixdec.train import recipes
from pixdec.train.draws import Draws
from pixdec.train.hardware import GIB, PRESETS, Hardware, hardware
from pixdec.train.loop import LoopSettings, new_state, train
from pixdec.train.parallel import MachineSettings, World, precision, prepare
from pixdec.train.passes import passes
from pixdec.train.plan import plan
from pixdec.train.recipes import DataSettings, DecoderRecipe, PriorRecipe, Recipe, StudentRecipe
from pixdec.train.trial import random_examples, trial
from trainset import NANO, WORDY

SIDE = 192
TOLERANCE = 0.15  # of memory, measured against planned
PLAIN = MachineSettings(precision="float32", shard=False, recompute=False)
LOOP = LoopSettings(steps=2, batch=2)
SMALL_DATA = DataSettings(base=SIDE)
STUDENT = replace(recipes.student_paper_2k().objective, block=1, ratio=2)


def decoder(network: PiDSettings = WORDY, **changes: object) -> DecoderRecipe:
    made = DecoderRecipe("small", network, LOOP, data=SMALL_DATA, machine=PLAIN)
    return replace(made, **changes)


def prior(**changes: object) -> PriorRecipe:
    made = PriorRecipe("small", replace(WORDY, adapter=None), LOOP, space="", data=SMALL_DATA, machine=PLAIN)
    return replace(made, **changes)


def student(**changes: object) -> StudentRecipe:
    made = StudentRecipe(
        "small", WORDY, LOOP, times=(0.999, 0.5, 0.0), data=SMALL_DATA, machine=PLAIN, objective=STUDENT
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def released() -> tuple[Cost, Cost]:
    return decode_cost(PiDSettings(), 2048, 2048)


def forward_flops(settings: PiDSettings, height: int, width: int) -> Mapping[tuple[str, str], int]:
    """The backbone's matrix products, two FLOPs for each multiplication, from specification §2."""
    b = settings.backbone
    grid, wide, pixels, text = (height // b.patch) * (width // b.patch), b.hidden, b.patch**2, b.text_length
    both, mlp = grid + text, 2 * 4 * b.hidden // 3
    stream = 3 * wide * wide + wide * wide + 3 * wide * mlp
    blocks = b.depth * 2 * (both * stream + 2 * wide * 6 * wide)
    blocks -= 2 * text * (stream - 3 * wide * wide)  # of the text, the last block makes keys, values and queries only
    squeezed, inner = pixels * b.pixel_width, b.pixel_hidden
    per_patch = wide * 6 * squeezed + squeezed * inner + 3 * inner**2 + inner**2 + inner * squeezed
    mixing = 2 * 4 * b.pixel_width**2 * pixels
    return {
        ("patch blocks", "products"): blocks,
        ("patch blocks", "attention"): 4 * wide * ((b.depth - 1) * both * both + grid * both),
        ("pixel blocks", "products"): b.pixel_depth * 2 * grid * (per_patch + mixing),
        ("pixel blocks", "attention"): b.pixel_depth * 4 * grid * grid * inner,
    }


def test_released_network_counts_as_the_formulas_say(released: tuple[Cost, Cost]):
    counted = released[1].flops_by_part()
    for key, flops in forward_flops(PiDSettings(), 2048, 2048).items():
        assert counted[key] == flops, key
    assert counted["patch blocks", "products"] / 14 == pytest.approx(0.93e12, rel=0.02)
    assert counted["patch blocks", "attention"] / 14 == pytest.approx(1.71e12, rel=0.01)
    assert counted["pixel blocks", "products"] + counted["pixel blocks", "attention"] == pytest.approx(6e12, rel=0.02)
    # Version 1 gates every channel, which is another 1.1 TFLOP: half of it in every call, half once for a decode.
    gates = counted["adapter", "products"]
    assert released[1].flops - gates == pytest.approx(43e12, rel=0.01)
    assert gates == 7 * 16384 * 2 * 1536 * 1536


def test_shares_give_back_the_published_times(released: tuple[Cost, Cost]):
    work = [*released[0].work, *(4 * list(released[1].work))]
    for name, compiled, eager in (("h100", 0.446, 0.797), ("rtx-5090", 0.979, 1.389)):
        assert PRESETS[name].seconds(work, compiled=True) == pytest.approx(compiled, rel=0.03)
        assert compiled < PRESETS[name].seconds(work) < eager  # uncompiled, ours moves a quarter less than the original
    gb200 = replace(PRESETS["b200"], low=2500e12, bandwidth=8e12)
    assert gb200.seconds(work, compiled=True) == pytest.approx(0.211, rel=0.03)
    assert 0.211 < gb200.seconds(work) < 0.505


@pytest.mark.parametrize("settings", [WORDY, NANO, replace(WORDY, adapter=None)], ids=["wordy", "nano", "prior"])
def test_counts_what_pytorch_counts_on_a_real_network(settings: PiDSettings):
    given = random_inputs(settings, 128, SIDE, 2, device=torch.device("cpu"))
    network = PiD(settings)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(given.x_t, given.t, given.text, given.latent, given.sigma)
    first, second = decode_cost(settings, 128, SIDE, batch=2, dtype=torch.float32)
    assert first.flops + second.flops == counter.get_total_flops()


def test_chunks_cost_the_same_work_in_less_memory():
    whole, parts = (decode_cost(WORDY, 256, 256, chunk=chunk)[1] for chunk in (None, 32))
    assert parts.flops == whole.flops
    assert parts.peak < 0.8 * whole.peak


def real_pass(recipe: Recipe, kernel: SDPBackend) -> tuple[int, int, int]:
    """Of a pass on the CPU: bytes that wait for the way back, FLOPs of the way forward and of both."""
    run = trial(recipe, torch.device("cpu"))
    examples = random_examples(recipe, SIDE, SIDE, 2, torch.device("cpu"))
    there = {p.untyped_storage().data_ptr() for n in run.modules().values() for p in n.parameters()}
    there.add(examples.images.untyped_storage().data_ptr())
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    low = recipe.machine.precision == "bfloat16"
    with FlopCounterMode(display=False) as counter, sdpa_kernel(kernel):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", enabled=low):
            total = run.stage.losses(0, examples, Draws(0, 0, range(2), 2))["total"]
        forward = counter.get_total_flops()
        total.backward()
    return sum(kept.values()), forward, counter.get_total_flops()


RECIPES = {
    "decoder": decoder(),
    "bfloat16": decoder(machine=replace(PLAIN, precision="bfloat16")),
    "windows": decoder(NANO),
    "adapter": decoder(objective=recipes.decoder_v1_5().objective),
    "prior": prior(),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_pass_keeps_and_computes_what_a_real_one_does(recipe: Recipe):
    (planned,) = passes(recipe, SIDE, SIDE, 2, sharded=False)
    kept, _, _ = real_pass(recipe, SDPBackend.FLASH_ATTENTION)
    assert planned.forward.kept == pytest.approx(kept, rel=TOLERANCE)
    _, forward, both = real_pass(recipe, SDPBackend.MATH)
    assert planned.forward.flops == forward
    # A kernel that keeps no scores computes them again: half of attention's way forward.
    attention = sum(each.flops for each in planned.forward.work if each.kind == "attention")
    assert planned.flops - attention / 2 == both


def real_steps(recipe: Recipe) -> tuple[int, Mapping[str, float]]:
    """The most bytes of tensors in two real training steps on the CPU, and what there is of them after the steps."""
    loop, machine = recipe.loop, recipe.machine
    with Meter() as meter:
        run = trial(recipe, torch.device("cpu"))
        prepare(run.learning(), run.frozen, machine, World())
        examples = random_examples(recipe, SIDE, SIDE, loop.batch // loop.parts, torch.device("cpu"))
        state = new_state(run.stage.networks, loop)

        def losses_at(step: int, part: int) -> Mapping[str, Tensor]:
            with precision(machine, torch.device("cpu")):
                return run.stage.losses(step, examples, Draws(0, step, range(len(examples.images)), loop.batch))

        for _ in train(state, losses_at, loop, run.stage.turn):
            pass
    moments = [
        value
        for optimizer in state.optimizers.values()
        for values in optimizer.state.values()
        for value in values.values()
    ]
    return meter.most, {
        "weights, float32": _bytes(p for network in run.stage.networks.values() for p in network.parameters()),
        "AdamW's moments, float32": _bytes(moments),
        "averaged weights, float32": _bytes(state.average.weights.values()),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.nbytes for each in tensors)


@pytest.mark.parametrize(
    "recipe",
    [
        decoder(NANO),
        decoder(machine=replace(PLAIN, recompute=True)),
        prior(loop=replace(LOOP, parts=2)),
        student(machine=replace(PLAIN, recompute=True, precision="bfloat16" if has_bfloat16_units() else "float32")),
    ],
    ids=["windows", "recomputed", "parts", "student"],
)
def test_memory_of_real_steps(recipe: Recipe):
    most, parts = real_steps(recipe)
    memory = plan(recipe, PRESETS["cpu-core"], 1, (SIDE, SIDE)).memory
    assert memory.counted == pytest.approx(most, rel=TOLERANCE)
    for name, size in parts.items():
        assert memory.held[name] == pytest.approx(size, rel=0.03)  # a few weights never have a gradient


def test_student_turns_are_weighted_by_ratio_and_rollout():
    recipe = student(objective=replace(STUDENT, ratio=6))
    found = plan(recipe, PRESETS["cpu-core"], 1, (SIDE, SIDE))
    assert {turn.learning: turn.share for turn in found.turns} == pytest.approx(
        {("fake", "discriminator"): 5 / 6, ("student",): 1 / 6}
    )
    call = sum(cost.flops for cost in decode_cost(WORDY, SIDE, SIDE, batch=LOOP.batch, dtype=torch.float32))
    critic, learner = found.turns
    # Critic: none or one call of the student on its way, one that makes the image, the fake score, and the teacher at
    # the made, the real and the moved image.
    assert critic.forward == pytest.approx((0.5 + 1 + 1 + 3) * call, rel=0.05)
    # Student: the same way, teacher (and back, to the image, from its second block), teacher without text, fake score.
    assert learner.forward > (0.5 + 1 + 2 + 1) * call
    assert found.flops == pytest.approx(5 / 6 * critic.flops + 1 / 6 * learner.flops)
    noised = passes(student(objective=replace(STUDENT, rollout="noised")), SIDE, SIDE, LOOP.batch, sharded=False)
    assert critic.forward - noised[0].forward.flops == pytest.approx(0.5 * call, rel=0.05)


def test_recomputation_repeats_the_blocks_and_keeps_less():
    (plain,), (again,) = (
        passes(decoder(machine=replace(PLAIN, recompute=yes)), SIDE, SIDE, 2, sharded=False) for yes in (False, True)
    )
    blocks = sum(forward_flops(WORDY, SIDE, SIDE).values()) * 2
    assert plain.recomputed == 0
    assert again.recomputed == blocks
    assert again.flops == plain.flops + again.recomputed
    assert again.forward.kept < 0.3 * plain.forward.kept
    found = plan(decoder(), PRESETS["cpu-core"], 1, (SIDE, SIDE))
    assert found.otherwise == again.peak


def test_context_and_shards_divide_the_work():
    machine = replace(PLAIN, shard=True)
    alone, shared = (
        plan(decoder(machine=replace(machine, context=context)), PRESETS["h100"], 2, (256, 256)) for context in (1, 2)
    )
    assert (alone.images, shared.images) == (1, 2)
    assert alone.memory.held["weights, float32"] == pytest.approx(2 * sum(p.count for p in alone.parameters))
    # Two processes with half of two images each do what two with one each do, but for the text, which both see.
    assert alone.flops < shared.flops < 1.15 * alone.flops
    single = plan(decoder(loop=replace(LOOP, parts=2)), PRESETS["h100"], 1, (256, 256))
    assert single.flops == pytest.approx(alone.flops)
    assert single.turns[0].seconds == pytest.approx(2 * alone.turns[0].seconds)
    parts = plan(decoder(machine=machine, loop=LoopSettings(steps=2, batch=4, parts=2)), PRESETS["h100"], 2, (256, 256))
    waiting = parts.memory.held["gradients of all parts, not yet exchanged, float32"]
    assert waiting == 4 * sum(p.learning for p in parts.parameters)


def small_hardware(memory: float) -> Hardware:
    return replace(PRESETS["h100"], memory=memory)


def test_advice_is_the_change_that_costs_least():
    recipe = decoder(machine=replace(PLAIN, shard=True), loop=LoopSettings(steps=2, batch=4))
    much = plan(recipe, PRESETS["h100"], 2, (256, 256))
    assert much.fits
    assert much.advice is None
    need = much.memory.counted / 0.92  # what is left besides the reserve must hold it
    halved = plan(recipe, small_hardware(0.9 * need), 2, (256, 256))
    assert not halved.fits
    assert halved.advice is not None
    assert halved.advice.words == "--loop.parts 2"
    assert plan(halved.advice.recipe, small_hardware(0.9 * need), halved.advice.ranks, (256, 256)).fits
    smaller = replace(recipe, machine=replace(recipe.machine, recompute=True), loop=replace(LOOP, batch=4, parts=2))
    enough = 1.01 * plan(smaller, PRESETS["h100"], 2, (256, 256)).memory.counted / 0.92
    recomputed = plan(recipe, small_hardware(enough), 2, (256, 256))
    assert recomputed.advice is not None
    assert recomputed.advice.words == "--loop.parts 2 --machine.recompute"
    assert any("To make it fit: --loop.parts 2" in line for line in recomputed.lines())
    hopeless = plan(recipe, small_hardware(0.001 * need), 2, (256, 256))
    assert hopeless.advice is None
    assert any("lower data.base" in line for line in hopeless.lines())


def test_lines_say_what_was_planned():
    found = plan(decoder(), PRESETS["h100"], 2)
    text = "\n".join(found.lines())
    assert text.startswith("# decoder small on 2 x h100")
    assert "| 192x192 (planned for) | 144 | 5 | 128x3x3 |" in text
    assert f"needs {found.memory.total / GIB:.1f} GiB and has 79" in text
    assert "| decoder | adapter |" in text
    assert all(line.count("|") == 0 or line.startswith("|") for line in found.lines())


def test_size_is_the_largest_bucket_or_the_crops():
    assert plan(decoder(), PRESETS["h100"], 1).size.tokens == (SIDE // 16) ** 2
    crops = replace(SMALL_DATA, crops=replace(SMALL_DATA.crops, size=128))
    found = plan(decoder(NANO, data=crops), PRESETS["h100"], 1)
    assert (found.size.width, found.size.height) == (128, 128)


def test_bad_numbers():
    with pytest.raises(ValueError, match="h1000"):
        hardware("h1000")
    with pytest.raises(ValueError, match="above 0"):
        hardware("h100:0")
    assert hardware("h100:0.3").products == 0.3
    own = hardware("312:40:0.4")
    assert (own.low, own.memory) == (312e12, 40 * GIB)
    with pytest.raises(ValueError, match="a batch of 2 on 3"):
        plan(decoder(), PRESETS["h100"], 3, (SIDE, SIDE))
    with pytest.raises(ValueError, match="expected a multiple"):
        plan(decoder(machine=replace(PLAIN, context=2)), PRESETS["h100"], 3, (SIDE, SIDE))
    with pytest.raises(ValueError, match="windowed"):
        plan(decoder(NANO, machine=replace(PLAIN, context=2)), PRESETS["h100"], 2, (SIDE, SIDE))
    with pytest.raises(ValueError, match="multiples of 64"):
        plan(decoder(), PRESETS["h100"], 1, (SIDE, 100))
