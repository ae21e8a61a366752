"""Embeddings on disk: whole ones come back, others are noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixdec.text import EmbeddingCache
from pixdec.text.cache import default_folder

SHAPE = (6, 4)


@pytest.fixture
def embedding() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()


def test_what_was_stored_comes_back(cache: EmbeddingCache, embedding: Tensor) -> None:
    assert cache.load("key", SHAPE) is None
    cache.store("key", embedding)
    again = EmbeddingCache(cache.folder).load("key", SHAPE)
    assert again is not None
    assert again.dtype == torch.bfloat16
    assert torch.equal(again, embedding)
    assert [path.name for path in cache.folder.iterdir()] == ["key.safetensors"]  # and no temporary file


def test_a_view_of_a_batch_is_stored_alone(cache: EmbeddingCache, embedding: Tensor) -> None:
    cache.store("key", torch.stack([embedding, embedding + 1, embedding], dim=1)[:, 1])
    assert torch.equal(cache.load("key", SHAPE), embedding + 1)
    assert cache.path("key").stat().st_size < 1000


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def swap_with_another(path: Path) -> None:
    other = EmbeddingCache(path.parent)
    other.store("other", torch.zeros(SHAPE, dtype=torch.bfloat16))
    other.path("other").replace(path)


def replace_with_a_foreign_file(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def replace_with_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_a_bit, swap_with_another, replace_with_a_foreign_file, replace_with_a_folder]
)
def test_damage_is_noticed(damage: Callable[[Path], None], cache: EmbeddingCache, embedding: Tensor) -> None:
    cache.store("key", embedding)
    damage(cache.path("key"))
    with pytest.warns(UserWarning, match="ignoring the cached caption embedding .*key.safetensors: "):
        assert cache.load("key", SHAPE) is None


@pytest.mark.parametrize("wrong", [torch.zeros(7, 4, dtype=torch.bfloat16), torch.zeros(SHAPE)])
def test_another_shape_or_dtype_is_noticed(wrong: Tensor, cache: EmbeddingCache) -> None:
    cache.store("key", wrong)
    with pytest.warns(UserWarning, match=r"expected torch\.bfloat16 \(6, 4\)"):
        assert cache.load("key", SHAPE) is None


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, embedding: Tensor) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="is not cached: .*PIXDEC_CACHE"):
        EmbeddingCache(tmp_path / "file" / "cache").store("key", embedding)


def test_a_full_disk_leaves_no_half_file(
    cache: EmbeddingCache, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        cache.store("key", embedding)
    assert list(cache.folder.iterdir()) == []


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.delenv("PIXDEC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / "home/.cache/pixdec/captions"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_folder() == tmp_path / "home/.cache/pixdec/captions"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg/pixdec/captions"
    monkeypatch.setenv("PIXDEC_CACHE", str(tmp_path / "chosen"))
    assert default_folder() == tmp_path / "chosen/captions"
    assert EmbeddingCache().folder == tmp_path / "chosen/captions"
    assert not (tmp_path / "chosen").exists()
