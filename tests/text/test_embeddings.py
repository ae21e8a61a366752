"""Cache first, encoder only if something is missing, and nothing of it left afterwards."""

from __future__ import annotations

import gc
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from pixdec.text import (
    GEMMA,
    CaptionEmbeddings,
    CaptionEncoder,
    CaptionSettings,
    EmbeddingCache,
    EncoderUnavailableError,
    source,
)

CAPTIONS = ["a red fox", "", "a harbour full of boats", "a red fox", "snow"]


@pytest.fixture
def embeddings(gemma: Path, settings: CaptionSettings, cache: EmbeddingCache) -> CaptionEmbeddings:
    return CaptionEmbeddings(gemma, cache=cache, settings=settings, batch=2)


class Loads:
    """Counts the encoders that were loaded, remembers what they were asked, and holds none of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[weakref.ref[torch.nn.Module]] = []
        self.batches: list[list[str]] = []
        load, call = CaptionEncoder.from_pretrained, CaptionEncoder.__call__

        def counted_load(*arguments: Any, **options: Any) -> CaptionEncoder:
            encoder = load(*arguments, **options)
            self.models.append(weakref.ref(encoder._model))
            return encoder

        def recorded_call(encoder: CaptionEncoder, captions: list[str]) -> torch.Tensor:
            self.batches.append(list(captions))
            return call(encoder, captions)

        monkeypatch.setattr(CaptionEncoder, "from_pretrained", counted_load)
        monkeypatch.setattr(CaptionEncoder, "__call__", recorded_call)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


def test_captions_become_text(embeddings: CaptionEmbeddings, gemma: Path, settings: CaptionSettings) -> None:
    text = embeddings(CAPTIONS, "cpu", torch.float32)
    assert text.shape == (5, 24, 32)
    assert text.dtype == torch.float32
    assert torch.equal(text[0], text[3])
    encoder = CaptionEncoder.from_pretrained(gemma, settings=settings)
    direct = encoder(["a red fox", ""]).float()  # the first batch of two
    assert torch.equal(text[:2], direct)
    assert embeddings(CAPTIONS).dtype == torch.bfloat16
    assert torch.equal(embeddings(CAPTIONS).float(), text)


def test_each_distinct_caption_is_encoded_once(embeddings: CaptionEmbeddings, loads: Loads) -> None:
    assert embeddings.missing(CAPTIONS) == ["a red fox", "", "a harbour full of boats", "snow"]
    embeddings(CAPTIONS)
    assert loads.batches == [["a red fox", ""], ["a harbour full of boats", "snow"]]
    assert len(loads.models) == 1
    assert embeddings.missing([*CAPTIONS, "new"]) == ["new"]
    embeddings(["new", *CAPTIONS])
    assert loads.batches[2:] == [["new"]]


def test_a_cached_caption_needs_no_encoder(
    embeddings: CaptionEmbeddings,
    gemma: Path,
    settings: CaptionSettings,
    cache: EmbeddingCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = embeddings(CAPTIONS)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(CaptionEncoder, "from_pretrained", lambda *_, **__: pytest.fail("loaded the encoder"))
    fresh = CaptionEmbeddings(gemma, cache=EmbeddingCache(cache.folder), settings=settings)
    assert torch.equal(fresh(CAPTIONS), text)
    assert torch.equal(fresh([""])[0], text[1])


def test_the_encoder_is_released(embeddings: CaptionEmbeddings, loads: Loads) -> None:
    text = embeddings(CAPTIONS)
    assert loads.models[0]() is None
    assert text.shape[0] == 5


def test_the_encoder_is_released_after_an_error(
    embeddings: CaptionEmbeddings, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(EmbeddingCache, "store", fail)
    with pytest.raises(MemoryError):
        embeddings(["a red fox"])
    gc.collect()
    assert loads.models[0]() is None


def test_a_damaged_entry_is_encoded_again(embeddings: CaptionEmbeddings, loads: Loads) -> None:
    text = embeddings(["a red fox", ""])
    path = embeddings.cache.path(embeddings.key(""))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.warns(UserWarning, match="ignoring the cached caption embedding"):
        again = embeddings(["a red fox", ""])
    assert loads.batches[1:] == [[""]]
    assert path.stat().st_size == len(content)
    torch.testing.assert_close(again, text, atol=0.1, rtol=0.02)
    assert torch.equal(embeddings(["a red fox", ""]), again)


def test_a_cache_that_cannot_be_written_costs_only_time(gemma: Path, settings: CaptionSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    embeddings = CaptionEmbeddings(gemma, cache=EmbeddingCache(tmp_path / "file" / "cache"), settings=settings)
    with pytest.warns(UserWarning, match="is not cached"):
        assert embeddings(["a red fox"]).shape == (1, 24, 32)


def test_a_key_depends_on_all_that_determines_an_embedding(
    gemma: Path, settings: CaptionSettings, cache: EmbeddingCache, tmp_path: Path
) -> None:
    def key(
        encoder: str | Path = GEMMA, revision: str = "main", of: CaptionSettings = settings, caption: str = "a"
    ) -> str:
        return CaptionEmbeddings(encoder, revision=revision, cache=cache, settings=of).key(caption)

    copy = Path(shutil.copytree(gemma, tmp_path / "copy"))
    assert key() == key()
    assert key(copy) == key(gemma) == key(str(gemma), revision="another")
    (copy / "README.md").write_text("not read by the encoder")
    assert key(copy) == key(gemma)
    keys = {
        key(),
        key("someone/gemma-2-2b-it"),
        key(revision="another"),
        key(caption="b"),
        key(caption="a "),
        key(of=CaptionSettings(settings.chi_prompt + " ", settings.tokens, settings.width)),
        key(of=CaptionSettings(settings.chi_prompt, settings.tokens + 1, settings.width)),
        key(of=CaptionSettings(settings.chi_prompt, settings.tokens, settings.width + 1)),
        key(gemma),
    }
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        keys.add(key(copy))
    assert len(keys) == 12


def test_large_weights_are_sampled_to_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_WHOLE", 1000), ("_BLOCK", 10), ("_BLOCKS", 5)):
        monkeypatch.setattr(f"pixdec.io.files.{name}", value)
    path = tmp_path / "model.safetensors"

    def identity_with(position: int | None) -> str:
        content = bytearray(2001)
        if position is not None:
            content[position] = 1
        path.write_bytes(content)
        return source.identity(tmp_path)

    unchanged = identity_with(None)
    assert all(identity_with(position) != unchanged for position in (0, 497, 995, 2000))
    assert identity_with(100) == unchanged  # between two samples: the documented limit


def test_without_an_encoder_one_line_says_what_to_do(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(EncoderUnavailableError) as caught:
        CaptionEmbeddings(cache=cache)(["", "a red fox"])
    line = str(caught.value)
    assert line.startswith(
        f"the caption '' has no embedding in {cache.folder} yet, and the caption encoder: cannot fetch"
    )
    for part in ("no connection", GEMMA, "a local folder", "that folder copied here"):
        assert part in line
    assert "\n" not in line
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EncoderUnavailableError, match=r"has no embedding in .* run `pip install 'pixdec\[pipelines\]'"):
        CaptionEmbeddings(cache=cache)([""])


def test_captions_are_checked(embeddings: CaptionEmbeddings, loads: Loads) -> None:
    with pytest.raises(ValueError, match="single string 'a red fox': expected a list"):
        embeddings("a red fox")
    with pytest.raises(ValueError, match="captions is empty"):
        embeddings([])
    with pytest.raises(ValueError, match="a caption is None: expected a string"):
        embeddings(["a", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch is 0"):
        CaptionEmbeddings(batch=0)
    assert loads.models == []
