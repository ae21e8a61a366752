"""The caption encoder against a computation by hand on the same tiny Gemma-2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from torch import Tensor

from pixdec.text import GEMMA, CaptionEncoder, CaptionSettings, EncoderUnavailableError

SHORT = "a red fox"
LONG = "a harbour full of boats in the snow at dusk, " * 8


@pytest.fixture
def encoder(gemma: Path, settings: CaptionSettings) -> CaptionEncoder:
    return CaptionEncoder.from_pretrained(gemma, settings=settings)


@pytest.fixture(scope="session")
def tokenizer(gemma: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gemma)


@pytest.fixture(scope="session")
def model(gemma: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(gemma, dtype=torch.bfloat16, attn_implementation="eager").eval()


def hidden_states(model: Any, token_ids: list[int], mask: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids]), attention_mask=torch.tensor([mask])).last_hidden_state[0]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@pytest.mark.parametrize("caption", ["", SHORT])
def test_prefix_right_padding_and_chosen_positions(
    caption: str, encoder: CaptionEncoder, model: Any, tokenizer: Any, settings: CaptionSettings
) -> None:
    assert tokenizer.padding_side == "left"  # what the encoder must not follow
    chi_tokens = tokenizer(settings.chi_prompt)["input_ids"]
    tokens = tokenizer(settings.chi_prompt + caption)["input_ids"]
    assert tokens[0] == tokenizer.bos_token_id
    length = len(chi_tokens) + settings.tokens - 2
    padding = length - len(tokens)
    assert padding > 0
    by_hand = hidden_states(
        model, tokens + [tokenizer.pad_token_id] * padding, [1] * len(tokens) + [0] * padding
    )  # (L, E)
    kept = [0, *range(length - settings.tokens + 1, length)]
    embedding = encoder([caption])
    assert embedding.shape == (1, settings.tokens, settings.width)
    assert embedding.dtype == torch.bfloat16
    assert torch.equal(embedding[0], by_hand[kept])
    # And the two mistakes this would not survive: padding on the left, padding not masked.
    left = hidden_states(model, [tokenizer.pad_token_id] * padding + tokens, [0] * padding + [1] * len(tokens))
    unmasked = hidden_states(model, tokens + [tokenizer.pad_token_id] * padding, [1] * length)
    assert relative(left[kept], by_hand[kept]) > 0.1
    assert relative(unmasked[kept], by_hand[kept]) > 0.1


def test_the_caption_is_read_as_if_nothing_followed(
    encoder: CaptionEncoder, model: Any, tokenizer: Any, settings: CaptionSettings
) -> None:
    tokens = tokenizer(settings.chi_prompt + SHORT)["input_ids"]
    alone = hidden_states(model, tokens, [1] * len(tokens))
    first = encoder.length - settings.tokens + 1  # the position behind row 1 of the embedding
    count = len(tokens) - first
    assert count > 2
    embedding = encoder([SHORT])[0]
    assert relative(embedding[1 : 1 + count], alone[first:]) < 0.02
    assert relative(embedding[:1], alone[:1]) < 0.02


def test_long_captions_are_cut_with_a_warning(
    encoder: CaptionEncoder, model: Any, tokenizer: Any, settings: CaptionSettings
) -> None:
    tokens = tokenizer(settings.chi_prompt + LONG)["input_ids"]
    assert len(tokens) > encoder.length
    with pytest.warns(UserWarning, match=rf"is {len(tokens) - encoder.length} tokens too long.*at most 22 tokens"):
        embedding = encoder([SHORT, LONG])[1]
    by_hand = hidden_states(model, tokens[: encoder.length], [1] * encoder.length)
    assert relative(embedding, by_hand[[0, *range(encoder.length - settings.tokens + 1, encoder.length)]]) < 0.01


def test_an_embedding_does_not_depend_on_its_batch(encoder: CaptionEncoder) -> None:
    captions = ["", SHORT, "a harbour full of boats at dusk"]
    together = encoder(captions)
    for index, caption in enumerate(captions):
        assert relative(encoder([caption])[0], together[index]) < 0.01
    assert relative(together[0], together[1]) > 0.1


def test_the_released_lengths(gemma: Path, model: Any, tokenizer: Any) -> None:
    settings = CaptionSettings(width=32)
    encoder = CaptionEncoder.from_pretrained(gemma, settings=settings)
    tokens = tokenizer(settings.chi_prompt + SHORT)["input_ids"]
    assert encoder.length == len(tokenizer.encode(settings.chi_prompt)) + 298
    padding = encoder.length - len(tokens)
    by_hand = hidden_states(model, tokens + [0] * padding, [1] * len(tokens) + [0] * padding)
    embedding = encoder([SHORT])[0]
    assert embedding.shape == (300, 32)
    assert torch.equal(embedding[0], by_hand[0])
    assert torch.equal(embedding[1:], by_hand[-299:])


def test_the_states_are_those_after_the_final_norm(encoder: CaptionEncoder) -> None:
    # Its weight is at its initial value, one, so every state has a mean square of one.
    mean_square = encoder([SHORT, ""]).float().square().mean(dim=-1)
    torch.testing.assert_close(mean_square, torch.ones_like(mean_square), atol=0.01, rtol=0)


def test_root_mean_square_norms_compute_in_float32(encoder: CaptionEncoder) -> None:
    norms = [module for module in encoder._model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert len(norms) == 3 * 4 + 1
    x = (torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 300).bfloat16()
    weight = torch.randn(32, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) * (1 + weight.float())
    narrow = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + weight)
    assert not torch.equal(wide.bfloat16(), narrow)
    for norm in norms:
        norm.weight.data.copy_(weight)
        assert torch.equal(norm(x), wide.bfloat16())


def test_the_callers_autocast_has_no_say(encoder: CaptionEncoder) -> None:
    expected = encoder([SHORT])
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(encoder([SHORT]), expected)


def test_embeddings_can_feed_a_training_step(encoder: CaptionEncoder) -> None:
    embedding = encoder([SHORT])
    assert not embedding.requires_grad
    layer = torch.nn.Linear(32, 4)
    layer(embedding.float()).sum().backward()
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()


def test_values_that_are_not_finite_are_refused(encoder: CaptionEncoder) -> None:
    for parameter in encoder._model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite on cpu"):
        encoder([SHORT])


# What cannot be loaded, and what the line says.


def copy(gemma: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gemma, tmp_path / "copy"))


def test_a_hub_repository_is_fetched_without_pickles(
    gemma: Path, settings: CaptionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, *, revision: str, allow_patterns: list[str], **_: object) -> str:
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(gemma)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    encoder = CaptionEncoder.from_pretrained(GEMMA, revision="refs/pr/1", settings=settings)
    assert encoder([""]).shape == (1, 24, 32)
    assert asked == {
        "repository": "google/gemma-2-2b-it",
        "revision": "refs/pr/1",
        "patterns": ["*.json", "tokenizer.model", "*.safetensors"],
    }


def test_a_repository_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        response = SimpleNamespace(status_code=403, headers={}, request=None)
        raise GatedRepoError("Access to model google/gemma-2-2b-it is restricted.\nmore lines", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(EncoderUnavailableError) as caught:
        CaptionEncoder.from_pretrained()
    line = str(caught.value)
    for part in ("cannot fetch google/gemma-2-2b-it", "gated", "accept its terms at", "`hf auth login`", "HF_TOKEN"):
        assert part in line
    assert "local folder" in line
    assert "\n" not in line


def test_transformers_not_installed_is_said_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(EncoderUnavailableError, match=r"not installed: run `pip install 'pixdec\[pipelines\]'`"):
        CaptionEncoder.from_pretrained()


def test_no_such_folder(tmp_path: Path) -> None:
    for source in (tmp_path / "none", str(tmp_path / "none"), "./none", "gemma"):
        with pytest.raises(EncoderUnavailableError, match=r"expected a folder that holds Gemma-2 or a hub id"):
            CaptionEncoder.from_pretrained(source)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(
        EncoderUnavailableError, match=r"expected Gemma-2's config\.json, tokenizer and \*\.safetensors"
    ):
        CaptionEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "gemma"}', "is a 'gemma' model; expected 'gemma2'"),
        ("{}", "not the configuration of a model"),
        ("[]", "not the configuration of a model"),
        ("{", "not the configuration of a model"),
    ],
)
def test_another_model(gemma: Path, tmp_path: Path, config: str, message: str) -> None:
    folder = copy(gemma, tmp_path)
    (folder / "config.json").write_text(config)
    with pytest.raises(EncoderUnavailableError, match=message):
        CaptionEncoder.from_pretrained(folder)


def test_another_width(gemma: Path) -> None:
    with pytest.raises(EncoderUnavailableError, match="is 32 wide; expected 2304"):
        CaptionEncoder.from_pretrained(gemma)


def test_weights_that_lack_a_tensor(gemma: Path, tmp_path: Path, settings: CaptionSettings) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(gemma, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderUnavailableError, match=r"lacks 1 tensors, the first is 'layers\.1\.mlp\.up_proj"):
        CaptionEncoder.from_pretrained(folder, settings=settings)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file(name: str, gemma: Path, tmp_path: Path, settings: CaptionSettings) -> None:
    folder = copy(gemma, tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes()[:500])
    with pytest.raises(EncoderUnavailableError, match="cannot be loaded") as caught:
        CaptionEncoder.from_pretrained(folder, settings=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("token", "message"), [("pad_token", "no padding token"), ("bos_token", "expected <bos>")])
def test_a_tokenizer_that_is_not_gemmas(
    token: str, message: str, gemma: Path, tmp_path: Path, settings: CaptionSettings
) -> None:
    folder = copy(gemma, tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {token: None}))
    with pytest.raises(ValueError, match=message):
        CaptionEncoder.from_pretrained(folder, settings=settings)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="chi_prompt is empty"):
        CaptionSettings(chi_prompt="")
    with pytest.raises(ValueError, match="tokens is 2: expected at least 3"):
        CaptionSettings(tokens=2)
