"""Where runs begin: released priors and decoders, and other runs, strict."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.train.checkpoints import State
from pixdec.train.loop import LoopSettings
from pixdec.train.low_rank import LoraSettings, add_lora, lora_of
from pixdec.train.stages.decoder import DecoderSettings, DecoderStage
from pixdec.train.stages.stage import Conditioner, ConditionSettings
from pixdec.train.start import Start, start_from
from pixdec.weights.keymap import to_original
from pixdec.weights.load import save_decoder
from pixdec.weights.lora import save_lora
from pixdec.weights.network_settings import settings_to_json
from trainset import WORDY, embed, network

PRIOR = dataclasses.replace(WORDY, adapter=None)
LOOP = LoopSettings(steps=4, batch=4)


def changed(settings: PiDSettings, part: str, **changes: Any) -> PiDSettings:
    """`settings` with other fields in their backbone or adapter."""
    return dataclasses.replace(settings, **{part: dataclasses.replace(getattr(settings, part), **changes)})


def fresh(settings: PiDSettings, seed: int = 7) -> PiD:
    return PiD(settings).initialize(seed)


def save(made: PiD, path: Path, dtype: torch.dtype | None = None) -> Path:
    kind, space = ("prior", "") if made.adapter is None else ("teacher", "flux2")
    save_decoder(
        made, path, name=path.stem, space=space, version="v1.5", licence="NSCLv1", kind=kind, times=(), dtype=dtype
    )
    return path


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network(PRIOR), tmp_path_factory.mktemp("prior") / "prior.safetensors")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network(WORDY), tmp_path_factory.mktemp("decoder") / "decoder.safetensors", torch.bfloat16)


def run_of(folder: Path, settings: PiDSettings, *, learns: str = "everything", lora: bool = False) -> State:
    """A run's folder, with one checkpoint, whose present weights, averaged weights and beginning all differ."""
    conditions = ConditionSettings()
    stage = DecoderStage(
        network(settings),
        DecoderSettings(conditions=conditions, learns=learns),  # pyright: ignore[reportArgumentType]
        Conditioner(conditions, [], embed),
    )
    if lora:
        add_lora(stage.network, LoraSettings(2))
    state = State(stage.networks, LOOP)
    for parameter in stage.network.parameters():
        parameter.data.mul_(1.5)
    for average in state.average.weights.values():
        average.mul_(1.25)
    folder.mkdir(exist_ok=True)
    recipe = {"recipe": {"network": json.loads(settings_to_json(settings))}}
    (folder / "settings.json").write_text(json.dumps(recipe))
    state.save(folder / "step-00000004")
    return state


# ---- a decoder from a prior


def test_a_decoder_begins_as_the_prior(prior: Path):
    made, original = fresh(WORDY), network(PRIOR)
    assert start_from(made, prior) == Start("prior", "NSCLv1")
    generator = torch.Generator().manual_seed(0)
    x_t, latent = torch.randn(3, 3, 64, 64, generator=generator), torch.randn(3, 128, 1, 1, generator=generator)
    t, text, sigma = torch.tensor([0.9, 0.5, 0.1]), embed(["a", "bc", ""]), torch.tensor([0.0, 0.3, 1.0])
    with torch.no_grad():
        expected = original(x_t, t, text, None, None)
        assert torch.equal(made(x_t, t, text, latent, sigma), expected)
        made.adapter.heads[0].weight.normal_()
        assert not torch.equal(made(x_t, t, text, latent, sigma), expected), "the adapter is in use"


def test_a_prior_from_the_original_file(tmp_path: Path):
    path = tmp_path / "model_ema_bf16.pth"
    settings = changed(PRIOR, "backbone", reference=(2048, 2048))
    weights = network(settings).state_dict()
    torch.save({f"net.core.{to_original(key)}": value.bfloat16() for key, value in weights.items()}, path)
    made = fresh(changed(WORDY, "backbone", reference=(2048, 2048)))
    own = {key: value.clone() for key, value in made.state_dict().items() if key not in weights}
    start_from(made, str(path))
    for key, value in made.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, own[key] if key in own else weights[key].bfloat16().float()), key


# ---- the same kind


def test_a_decoder_from_a_decoder(decoder: Path):
    made, weights = fresh(WORDY), network(WORDY).state_dict()
    start_from(made, decoder.parent)  # the folder that holds it
    for key, value in made.state_dict().items():
        expected = weights[key] if key.endswith("log_alpha") else weights[key].bfloat16().float()
        assert torch.equal(value, expected), key
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_a_file_that_fits_several_spaces(tmp_path: Path):
    """The recipe says the space; FLUX.1, SD3 and Qwen-Image decoders have the same tensors."""
    backbone = dataclasses.replace(WORDY.backbone, reference=(1024, 1024))
    settings = PiDSettings(backbone, AdapterSettings(width=8, blocks=1))
    original = network(settings)
    torch.save({to_original(key): value for key, value in original.state_dict().items()}, tmp_path / "mine.pth")
    made = fresh(settings)
    start_from(made, tmp_path / "mine.pth")
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in original.state_dict().items())


# ---- runs


@pytest.mark.parametrize("learns", ["everything", "adapter"])
@pytest.mark.parametrize("place", ["", "step-00000004"], ids=["run", "checkpoint"])
def test_from_a_run_that_has_not_ended(tmp_path: Path, learns: str, place: str):
    state = run_of(tmp_path / "mine", WORDY, learns=learns)
    made = fresh(WORDY)
    assert start_from(made, tmp_path / "mine" / place).name == "mine"
    present = state.first.state_dict()
    for key, value in made.state_dict().items():
        assert torch.equal(value, state.average.weights.get(key, present[key])), key
    if learns == "adapter":
        assert "backbone.patch_embed.weight" not in state.average.weights


def test_from_a_run_that_has_ended(tmp_path: Path):
    run_of(tmp_path / "mine", WORDY)
    exported = network(WORDY)
    save(exported, tmp_path / "mine" / "decoder.safetensors")
    made = fresh(WORDY)
    assert start_from(made, tmp_path / "mine") == Start("decoder", "NSCLv1")
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in exported.state_dict().items())


# ---- what does not fit


def lora_file(folder: Path) -> Path:
    made = network(WORDY)
    add_lora(made, LoraSettings(2))
    path = folder / "lora.safetensors"
    facts = {"name": "l", "base": "b", "space": "flux2", "licence": "x"}
    save_lora(lora_of(made.state_dict()), path, alpha=2.0, layers=("qkv",), network=WORDY, **facts)
    return path


def lora_run(folder: Path) -> Path:
    run_of(folder / "run", WORDY, lora=True)
    return folder / "run"


def damaged_run(folder: Path) -> Path:
    run_of(folder / "run", WORDY)
    for file in (folder / "run" / "step-00000004").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:1000])
    return folder / "run"


def without_pixel_head(folder: Path) -> Path:
    return save(network(changed(WORDY, "adapter", pixel_head=False)), folder / "d.safetensors")


def of(settings: PiDSettings) -> Callable[[Path], Path]:
    return lambda folder: save(network(settings), folder / "d.safetensors")


@pytest.mark.parametrize(
    ("settings", "source", "message"),
    [
        (changed(WORDY, "backbone", hidden=32), of(WORDY),
         r"backbone\.patch_embed\.weight is \[24, 768\] there and \[32, 768\]"),
        (changed(WORDY, "backbone", hidden=32), of(PRIOR),
         r"backbone\.patch_embed\.weight is \[24, 768\] there and \[32, 768\]"),
        (PRIOR, of(WORDY), r"this recipe's network has no adapter\."),
        (WORDY, without_pixel_head, r"adapter\.pixel_head\.weight is missing there"),
        (changed(WORDY, "backbone", depth=3), of(PRIOR), r"backbone\.patch_blocks\.2\..* is missing there"),
        (changed(WORDY, "adapter", padding="replicate"), of(WORDY), r"adapter\.padding='zeros'.*'replicate'"),
        (dataclasses.replace(WORDY, prediction="x0"), of(WORDY), r"prediction='velocity'.*'x0'"),
        (dataclasses.replace(WORDY, prediction="x0"), of(PRIOR), r"prediction='velocity'.*'x0'"),
        (WORDY, lora_file, "no decoder but a LoRA"),
        (WORDY, lora_run, "trains a LoRA; begin with what it began with"),
        (WORDY, damaged_run, "not a checkpoint that can be read"),
        (WORDY, lambda folder: folder, "expected one file of weights in this folder, found none"),
        (WORDY, lambda folder: folder / "nothing", "neither a file, a known model nor"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, settings: PiDSettings, source: Callable[[Path], Path], message: str
):
    made = fresh(settings)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refused:
        start_from(made, str(source(tmp_path)))
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_another_rotary_reference_is_said(prior: Path):
    with pytest.warns(UserWarning, match=r"reference \(64, 64\) and goes on with \(128, 128\)"):
        start_from(fresh(changed(WORDY, "backbone", reference=(128, 128))), prior)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start_from(fresh(WORDY), prior)
