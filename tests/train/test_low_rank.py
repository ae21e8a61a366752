"""LoRA: what learns, what the file holds, and the dial of a decoder that takes it."""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn

from pixdec.decoder import PixelDecoder
from pixdec.models.pid import PiD, PiDSettings
from pixdec.train.checkpoints import State
from pixdec.train.data.degrade import DegradeSettings
from pixdec.train.draws import Draws
from pixdec.train.loop import LoopSettings, train
from pixdec.train.low_rank import LoraSettings, add_lora, chosen_layers, lora_of
from pixdec.train.parallel import MachineSettings, World, prepare, whole_tensor
from pixdec.train.stages.decoder import DecoderSettings, DecoderStage
from pixdec.train.stages.stage import Conditioner, ConditionSettings
from pixdec.weights.load import save_decoder
from pixdec.weights.lora import read_lora, save_lora, shapes_of
from trainset import SILENT, WORDY, embed, examples, network, tiny_encoder

LOOP = LoopSettings(steps=12, batch=4, learning_rate=1e-2, warmup=1, seed=3)
LORA = LoraSettings(rank=3, alpha=6.0, layers=("qkv", "proj", "image.modulation"))
OBJECTIVE = DecoderSettings(conditions=ConditionSettings(DegradeSettings(scale=4), clean=0.6, drop_latent=0.0))
ALL = (
    "qkv", "proj", "mlp.*", "image.modulation", "compress", "expand", "heads.*", "pixel_head",
    "patch_embed", "pixel_embed", "time_in", "time_out", "final_linear",
)  # fmt: skip


def lively(settings: PiDSettings) -> PiD:
    """A network whose attention reaches far into the image, so that a LoRA on it has something to do."""
    made = network(settings)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in made.named_parameters():
        if ".modulation." in name or "final_linear" in name:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def stage_of(settings: PiDSettings, lora: LoraSettings | None = LORA) -> DecoderStage:
    texts = None if settings.backbone.text_width is None else embed
    stage = DecoderStage(lively(settings), OBJECTIVE, Conditioner(OBJECTIVE.conditions, [tiny_encoder()], texts))
    if lora is not None:
        add_lora(stage.network, lora)
    return stage


def run(stage: DecoderStage, state: State, steps: int) -> list[float]:
    def losses_at(step: int, part: int) -> dict[str, torch.Tensor]:
        return stage.losses(step, examples(step % 2), Draws(LOOP.seed, step % 2, range(4), 4))

    return [progress.losses["total"] for _, progress in zip(range(steps), train(state, losses_at, LOOP), strict=False)]


def velocity(made: PiD) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    text = None if made.settings.backbone.text_width is None else embed(["a", "bc"])
    images, latent = torch.randn(2, 3, 64, 64, generator=generator), torch.randn(2, 128, 1, 1, generator=generator)
    return made(images, torch.tensor([0.3, 0.9]), text, latent, torch.tensor([0.0, 0.4]))


def bits(made: nn.Module | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = made.state_dict() if isinstance(made, nn.Module) else made
    return {name: tensor.detach().flatten().view(torch.uint8).clone() for name, tensor in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@dataclass(frozen=True)
class Trained:
    """A decoder's file, its LoRA's file, and the network that was trained, with the averaged LoRA in it."""

    decoder: Path
    lora: Path
    network: PiD
    tensors: dict[str, torch.Tensor]
    losses: list[float]


def save(tensors: dict[str, torch.Tensor], path: Path, settings: PiDSettings = WORDY, **changes: str) -> Path:
    facts = {"name": "mine", "base": "small", "space": "flux2", "licence": "Apache-2.0", **changes}
    save_lora(tensors, path, alpha=LORA.factor, layers=LORA.layers, network=settings, **facts)
    return path


def save_base(made: PiD, path: Path, space: str = "flux2") -> Path:
    save_decoder(made, path, name="small", space=space, version="v1.5", licence="Apache-2.0")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("lora")
    stage = stage_of(WORDY, None)
    weight = stage.network.backbone.patch_blocks[0].image.qkv.weight
    weight.data[0] = -0.0  # whose sign an addition would lose
    decoder = save_base(stage.network, folder / "small.safetensors")
    add_lora(stage.network, LORA)
    state = State(stage.networks, LOOP)
    losses = run(stage, state, LOOP.steps)
    stage.network.load_state_dict(state.average.weights, strict=False)
    tensors = lora_of(stage.network.state_dict())
    return Trained(decoder, save(tensors, folder / "lora.safetensors"), stage.network.eval(), tensors, losses)


def open_decoder(trained: Trained, dtype: torch.dtype | None = None) -> PixelDecoder:
    decoder = PixelDecoder.from_pretrained(trained.decoder, device="cpu", dtype=dtype)
    decoder.captions = lambda captions, device, dtype: embed(captions).to(device, dtype)
    return decoder


# ---- training


@pytest.mark.parametrize("settings", [WORDY, SILENT], ids=["text", "silent"])
def test_a_new_lora_changes_nothing(settings: PiDSettings):
    made = network(settings)
    before = velocity(made)
    add_lora(made, LORA)
    assert torch.equal(velocity(made), before)


@pytest.mark.parametrize("settings", [WORDY, SILENT], ids=["text", "silent"])
def test_every_layer_that_can_be_chosen_works(settings: PiDSettings):
    """A Linear whose weight is used without calling it, or not at all, would show as a gradient that is missing."""
    layers = ALL if settings is SILENT else (*ALL, "text.modulation")
    made = network(settings)
    linears = {name for name, each in made.named_modules() if isinstance(each, nn.Linear)}
    chosen = set(chosen_layers(made, LoraSettings(1, layers=layers)))
    left = {name.removeprefix("backbone.") for name in linears - chosen if not name.startswith("adapter.aux_rgb")}
    assert left == {
        "gates.0.content", "pixel_gate.content", "pixel_blocks.0.modulation",
        *(["patch_blocks.1.text.proj", *(f"patch_blocks.1.text.mlp.{own}" for own in ("gate", "up", "down"))]
          if settings is WORDY else []),
    }  # fmt: skip
    add_lora(made, LoraSettings(2, layers=layers))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=generator)
    velocity(made).square().mean().backward()
    learning = {name: p for name, p in made.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * len(chosen)
    for name, parameter in learning.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_only_the_lora_learns():
    stage = stage_of(WORDY)
    state = State(stage.networks, LOOP)
    before = {name: parameter.detach().clone() for name, parameter in stage.network.named_parameters()}
    run(stage, state, 2)
    after = dict(stage.network.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(state.average.weights)
    assert moved == {name for name in before if ".lora_A." in name or ".lora_B." in name}
    assert all(parameter.grad is None for name, parameter in after.items() if name not in moved)


def test_it_learns(trained: Trained):
    first, last = trained.losses[:2], trained.losses[-2:]
    assert all(b < 0.99 * a for a, b in zip(first, last, strict=True)), trained.losses


def test_its_start_follows_from_the_seed():
    torch.manual_seed(1)
    one, two, three = network(WORDY), network(WORDY), network(WORDY)
    add_lora(one, LORA, seed=5)
    drawn = torch.rand(1)
    add_lora(two, LORA, seed=5)
    add_lora(three, LORA, seed=6)
    assert same(bits(one), bits(two))
    assert not same(bits(one), bits(three))
    torch.manual_seed(1)
    network(WORDY)  # as initialising does
    network(WORDY)
    network(WORDY)
    assert torch.equal(torch.rand(1), drawn), "adding a LoRA draws nothing from the common generator"


def test_a_resumed_run_takes_the_same_trajectory(tmp_path: Path):
    stage = stage_of(WORDY)
    straight = State(stage.networks, LOOP)
    losses = run(stage, straight, 4)
    stage = stage_of(WORDY)
    first = State(stage.networks, LOOP)
    head = run(stage, first, 2)
    first.save(tmp_path / "step-2")
    stage = stage_of(WORDY)
    second = State(stage.networks, LOOP)
    second.load(tmp_path / "step-2")
    assert head + run(stage, second, 2) == losses
    assert same(lora_of(straight.average.weights), lora_of(second.average.weights))


def test_recomputed_and_sharded_blocks(tmp_path: Path):
    """What is done to a network from outside changes neither the gradients of its LoRA nor the names in the file."""

    def gradients(made: PiD) -> dict[str, torch.Tensor]:
        velocity(made).square().mean().backward()
        learning = {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}
        return lora_of({name: whole_tensor(parameter.grad) for name, parameter in learning.items()})

    plain, recomputed, sharded = (stage_of(WORDY).network for _ in range(3))
    expected = gradients(plain)
    machine = MachineSettings(precision="float32", shard=True, recompute=True)
    prepare({"decoder": recomputed}, [], machine, World())
    found = gradients(recomputed)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        prepare({"decoder": sharded}, [], machine, World())
        found = gradients(sharded)
        assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
        state = State({"decoder": sharded}, LOOP)
        assert same(bits(lora_of(state.full_average())), bits(lora_of(plain.state_dict())))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LoraSettings(2, layers=("qkv", "nothing")), r"'nothing' ends no layer's name.*compress.*heads\.\*.*qkv"),
        (LoraSettings(2, layers=("modulation",)), r"pixel_blocks\.0\.modulation is not called.*image\.modulation"),
        (LoraSettings(2, layers=("gates.0.content",)), "content is not called"),
        (LoraSettings(2, layers=("kv",)), "'kv' ends no layer's name"),
        (LoraSettings(2, layers=()), "layers is empty"),
        (LoraSettings(0), r"rank=0"),
    ],
)
def test_layers_that_cannot_be(settings: LoraSettings, message: str):
    made = network(WORDY)
    before = bits(made)
    with pytest.raises(ValueError, match=message):
        add_lora(made, settings)
    assert same(bits(made), before)
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_one_lora_for_a_network():
    made = stage_of(WORDY).network
    with pytest.raises(ValueError, match="has a LoRA already"):
        add_lora(made, LORA)
    with pytest.raises(ValueError, match="no LoRA"):
        lora_of(network(WORDY).state_dict())


@pytest.mark.parametrize("change", [{"rank": -1}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_settings_that_cannot_be(change: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(change))):
        LoraSettings(**{"rank": 4, **change})  # pyright: ignore[reportArgumentType]


# ---- the file


def test_the_file(trained: Trained):
    lora = read_lora(trained.lora)
    assert (lora.name, lora.base, lora.space, lora.licence) == ("mine", "small", "flux2", "Apache-2.0")
    assert (lora.rank, lora.alpha, lora.layers) == (3, 6.0, LORA.layers)
    assert lora.shapes == shapes_of(network(WORDY))
    assert set(lora.pairs) == set(chosen_layers(network(WORDY), LORA))
    assert load_file(trained.lora).keys() == trained.tensors.keys()


def test_peft_reads_the_file(trained: Trained):
    import peft

    made = PixelDecoder.from_pretrained(trained.decoder, device="cpu").network
    weights = load_file(trained.lora)
    config = peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=list(read_lora(trained.lora).pairs))
    peft.inject_adapter_in_model(config, made)
    result = peft.set_peft_model_state_dict(made, weights)
    assert not result.unexpected_keys
    assert torch.allclose(velocity(made), velocity(trained.network), atol=1e-6)
    assert same(bits(peft.get_peft_model_state_dict(made)), bits(weights))


# ---- the dial


def test_full_strength_is_what_was_trained(trained: Trained):
    decoder = open_decoder(trained)
    plain = velocity(decoder.network)
    decoder.load_lora(trained.lora)
    assert decoder.lora is not None
    assert (decoder.lora.name, decoder.lora_strength) == ("mine", 1.0)
    with torch.no_grad():
        expected = velocity(trained.network)
    assert torch.allclose(velocity(decoder.network), expected, atol=5e-5)
    assert (plain - expected).abs().max() > 1e-2, "the LoRA does something"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_dial_turns_back_to_the_bit(trained: Trained, dtype: torch.dtype):
    decoder = open_decoder(trained, dtype)
    name = "backbone.patch_blocks.0.image.qkv"
    a, b = read_lora(trained.lora).pairs[name]
    original = decoder.network.get_parameter(f"{name}.weight").detach().clone()
    before = bits(decoder.network)
    decoder.load_lora(trained.lora, strength=0.7)
    once = bits(decoder.network)
    assert {key.removesuffix(".weight") for key in before if not torch.equal(before[key], once[key])} == set(
        read_lora(trained.lora).pairs
    )
    merged = decoder.network.get_parameter(f"{name}.weight")
    assert merged.dtype == dtype
    exact = original.double() + 0.7 * 6 / 3 * (b.double() @ a.double())
    assert torch.allclose(merged.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)
    decoder.lora_strength = 0
    assert same(bits(decoder.network), before)
    for strength in (-3.0, 1e4, 0.7):
        decoder.lora_strength = strength
    assert same(bits(decoder.network), once), "a strength does not depend on those before it"
    decoder.unload_lora()
    assert same(bits(decoder.network), before)
    assert (decoder.lora, decoder.lora_strength) == (None, 0.0)


def test_images_follow_the_dial(trained: Trained):
    decoder = open_decoder(trained)
    latent = 0.5 * torch.randn(1, 128, 2, 2, generator=torch.Generator().manual_seed(0))
    plain = decoder.decode(latent, output="pt")
    decoder.load_lora(trained.lora, strength=0)
    assert torch.equal(decoder.decode(latent, output="pt"), plain)
    distances = []
    for strength in (0.25, 0.5, 1.0):
        decoder.lora_strength = strength
        distances.append(float((decoder.decode(latent, output="pt") - plain).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_dial_of_a_network_that_was_moved(trained: Trained):
    decoder = open_decoder(trained)
    decoder.load_lora(trained.lora)
    decoder.network.to(torch.bfloat16)
    decoder.lora_strength = 0
    assert same(bits(decoder.network), bits(open_decoder(trained, torch.bfloat16).network))


def test_a_decoder_loaded_in_inference_mode(trained: Trained):
    with torch.inference_mode():
        decoder = open_decoder(trained)
    before = bits(decoder.network)
    decoder.load_lora(trained.lora)
    decoder.lora_strength = 0
    assert same(bits(decoder.network), before)


def test_another_lora_takes_the_place(trained: Trained, tmp_path: Path):
    doubled = {key: value * 2 if "lora_B" in key else value for key, value in trained.tensors.items()}
    decoder, other = open_decoder(trained), open_decoder(trained)
    decoder.load_lora(trained.lora)
    decoder.load_lora(save(doubled, tmp_path / "other.safetensors", name="other"), 0.5)
    other.load_lora(trained.lora)
    assert decoder.lora is not None
    assert decoder.lora.name == "other"
    assert torch.allclose(velocity(decoder.network), velocity(other.network), atol=1e-6)


def test_a_hollow_decoder_tells_whether_a_lora_fits(trained: Trained, tmp_path: Path):
    decoder = PixelDecoder.from_pretrained(trained.decoder, device="meta")
    decoder.load_lora(trained.lora, 0.5)
    assert decoder.lora_strength == 0.5
    with pytest.raises(ValueError, match="a LoRA for small"):
        decoder.load_lora(save(trained.tensors, tmp_path / "x.safetensors", space="sd3"))


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strengths_that_cannot_be(trained: Trained, strength: float):
    decoder = open_decoder(trained)
    with pytest.raises(ValueError, match=r"strength (nan|inf): expected a finite number"):
        decoder.load_lora(trained.lora, strength)
    assert decoder.lora is None
    with pytest.raises(ValueError, match="no LoRA is loaded"):
        decoder.lora_strength = 1.0
    decoder.load_lora(trained.lora, 0.5)
    before = bits(decoder.network)
    with pytest.raises(ValueError, match="expected a finite number"):
        decoder.lora_strength = strength
    assert decoder.lora_strength == 0.5
    assert same(bits(decoder.network), before)


def wider(settings: PiDSettings) -> PiDSettings:
    return dataclasses.replace(settings, backbone=dataclasses.replace(settings.backbone, hidden=32))


def deeper(settings: PiDSettings) -> PiDSettings:
    assert settings.adapter is not None
    return dataclasses.replace(settings, adapter=dataclasses.replace(settings.adapter, blocks=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (wider(WORDY), r"a LoRA for small, where .*image.modulation is \[144, 24\]; in small it is \[192, 32\]"),
        (SILENT, r"where .*text.* is \[.*\]; in small it is missing"),
        (deeper(WORDY), "of other shapes than small, though not in the layers it changes"),
    ],
    ids=["wider", "no text", "deeper adapter"],
)
def test_another_base_is_refused(trained: Trained, tmp_path: Path, settings: PiDSettings, message: str):
    decoder = PixelDecoder.from_pretrained(save_base(network(settings), tmp_path / "d.safetensors"), device="cpu")
    before = bits(decoder.network)
    with pytest.raises(ValueError, match=message) as refused:
        decoder.load_lora(trained.lora)
    assert "\n" not in str(refused.value)
    assert decoder.lora is None
    assert same(bits(decoder.network), before)


def test_training_only_heads_do_not_matter(trained: Trained, tmp_path: Path):
    settings = dataclasses.replace(WORDY, adapter=dataclasses.replace(WORDY.adapter, aux_rgb=False))
    decoder = PixelDecoder.from_pretrained(save_base(network(settings), tmp_path / "d.safetensors"), device="cpu")
    decoder.load_lora(trained.lora)
    assert decoder.lora_strength == 1


Damage = Callable[[Trained, Path], object]


def damages() -> Iterator[tuple[str, Damage, str]]:
    def resave(change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> Damage:
        def damage(trained: Trained, path: Path) -> None:
            tensors, lora = dict(trained.tensors), read_lora(trained.lora)
            settings = {"rank": lora.rank, "alpha": lora.alpha, "layers": list(lora.layers)}
            facts = {name: getattr(lora, name) for name in ("name", "base", "space", "shapes", "licence")}
            metadata = {"pixdec": "lora", **facts, "settings": json.dumps(settings)}
            change(tensors, metadata)
            save_file(tensors, path, metadata)

        return damage

    first, second = "backbone.patch_blocks.0.image.qkv.lora_A.weight", "backbone.patch_blocks.0.image.qkv.lora_B.weight"
    yield "cut", lambda t, path: path.write_bytes(t.lora.read_bytes()[:-9]), "damaged or cut short"
    yield "missing", lambda t, path: None, "no such file"
    yield "decoder", lambda t, path: path.write_bytes(t.decoder.read_bytes()), "no LoRA but 'decoder'"
    yield "foreign", lambda t, path: save_file({"a": torch.zeros(1)}, path), "a file without pixdec's facts"
    yield "half", resave(lambda tensors, _: tensors.pop(second)), f"missing {second}"
    yield "more", resave(lambda tensors, _: tensors.update(x=torch.zeros(1))), "unexpected x"
    yield "none", resave(lambda tensors, _: tensors.clear()), "missing …"
    yield "rank", resave(lambda tensors, _: tensors.update({first: torch.zeros(2, 24)})), r"expected rank 3"
    yield "nan", resave(lambda tensors, _: tensors.update({first: torch.full((3, 24), torch.nan)})), "not finite"
    yield "ints", resave(lambda tensors, _: tensors.update({first: torch.ones(3, 24, dtype=torch.int)})), "not finite"
    yield "facts", resave(lambda _, metadata: metadata.pop("shapes")), "lack shapes"
    yield "settings", resave(lambda _, metadata: metadata.update(settings="[]")), "expected rank, alpha and layers"
    endless = '{"rank":3,"alpha":"inf","layers":[]}'
    yield "alpha", resave(lambda _, metadata: metadata.update(settings=endless)), "a finite alpha"


DAMAGES = list(damages())


@pytest.mark.parametrize(("damage", "message"), [each[1:] for each in DAMAGES], ids=[each[0] for each in DAMAGES])
def test_damaged_files_are_refused(trained: Trained, tmp_path: Path, damage: Damage, message: str):
    path = tmp_path / "bad.safetensors"
    damage(trained, path)
    with pytest.raises(ValueError, match=message) as refused:
        read_lora(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_what_is_no_lora_is_not_saved(trained: Trained, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="no Linear of the network"):
        save(trained.tensors, path, wider(WORDY))
    with pytest.raises(ValueError, match="tensors are no LoRA's"):
        save(dict(itertools.islice(trained.tensors.items(), 1)), path)
    assert not path.exists()


def test_decoding_needs_no_peft(trained: Trained):
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from pixdec import PixelDecoder\n"
        f"decoder = PixelDecoder.from_pretrained({str(trained.decoder)!r}, device='cpu')\n"
        f"decoder.load_lora({str(trained.lora)!r}, 0.5)\n"
        "assert decoder.lora_strength == 0.5\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
