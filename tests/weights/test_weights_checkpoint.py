"""Files of weights: told by their content, in parts with an index, and the keys of the network in them."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixdec.io.tensor_files import write_safetensors
from pixdec.weights.checkpoint import open_checkpoint, places_of
from pixdec.weights.state import network_keys

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.0, dtype=torch.bfloat16)}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value, right[key]) and value.dtype == right[key].dtype for key, value in left.items()
    )


def refusal(path: Path) -> str:
    """What opening the file is refused with: one line that names the file."""
    with pytest.raises(ValueError, match=str(path)) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_told_by_their_content(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a")
    save_file(STATE, tmp_path / "b.pth", {"key": "value"})
    archive, safetensors = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b.pth")
    assert equal(dict(archive.tensors), STATE)
    assert equal(dict(safetensors.tensors), STATE)
    assert safetensors.metadata == {"key": "value"}


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_state_dict_may_lie_one_level_down(tmp_path: Path, wrapper: str) -> None:
    torch.save({wrapper: STATE, "epoch": 3}, tmp_path / "a.ckpt")
    assert equal(dict(open_checkpoint(tmp_path / "a.ckpt").tensors), STATE)


def test_a_folder_stands_for_the_one_file_in_it(tmp_path: Path) -> None:
    assert "found none" in refusal(tmp_path)
    (tmp_path / "README.md").touch()
    torch.save(STATE, tmp_path / "one.pth")
    assert open_checkpoint(tmp_path).path == tmp_path / "one.pth"
    torch.save(STATE, tmp_path / "two.pth")
    assert "found one.pth, two.pth; name the file" in refusal(tmp_path)
    torch.save(STATE, tmp_path / "model_ema_bf16.pth")
    assert open_checkpoint(tmp_path).path == tmp_path / "model_ema_bf16.pth"


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    assert "no such file" in refusal(path)
    path.touch()
    assert "the file is empty" in refusal(path)
    path.write_bytes(b"\x00" * 100)
    assert "neither safetensors nor an archive" in refusal(path)
    torch.save(torch.zeros(3), path)
    assert "no state dict" in refusal(path)
    torch.save(STATE, tmp_path / "a.safetensors")
    assert "rename it to .pth" in refusal(tmp_path / "a.safetensors")
    for content, held in (([1.0], "list"), ({"a": 1.0}, "entries such as a"), ({**STATE, "n": 3}, "entries such as n")):
        torch.save(content, path)
        assert f"not a state dict: it holds {held}" in refusal(path)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
def test_a_file_that_was_cut_short(tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / f"a.{kind}"
    weights = {"weight": torch.randn(100, 100)}
    torch.save(weights, path) if kind == "pth" else save_file(weights, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "damaged or cut short" in refusal(path)


class Code:
    """What a hostile checkpoint holds: unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({**STATE, "c": Code(tmp_path / "ran")}, tmp_path / "archive.pth")
    assert "posix.mkdir" in refusal(tmp_path / "archive.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"c": Code(tmp_path / "ran")}))
    assert "a bare pickle" in refusal(tmp_path / "bare.pth")
    torch.save(STATE, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    assert "a bare pickle" in refusal(tmp_path / "legacy.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>log in</html>", "web page.*hf auth login"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page.*hf auth login"),
        (b"Access to model someone/else is restricted.\n", "text file that begins 'Access to model.*hf auth login"),
        (b'{"error": "Invalid credentials"}', "JSON"),
        (b"GGUF\3\0\0\0" + bytes(64), "GGUF.*take the safetensors"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG image"),
        (b"\x1f\x8b\x08" + bytes(64), "gzip; unpack it"),
        (b"\x93NUMPY\1\0" + bytes(64), "array of numpy that is damaged"),
        (b"PK\3\4" + bytes(64), "torch archive that is damaged"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_what_is_taken_for_weights_is_recognized(tmp_path: Path, start: bytes, what: str) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(start)
    assert re.search(what, refusal(path))


def in_parts(folder: Path, count: int = 2) -> list[str]:
    """STATE and more in so many files, with an index; the names of the parts."""
    folder.mkdir(exist_ok=True)
    state = {**STATE, "c": torch.ones(3)}
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    where = {key: names[i % count] for i, key in enumerate(state)}
    for name in names:
        save_file({key: state[key] for key in state if where[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return names


def test_parts_are_read_by_their_index(tmp_path: Path) -> None:
    names = in_parts(tmp_path)
    whole = {**STATE, "c": torch.ones(3)}
    for path in (tmp_path, tmp_path / "model.safetensors.index.json", tmp_path / names[1]):
        opened = open_checkpoint(path)
        assert equal(dict(opened.tensors), whole)
        assert opened.size == sum((tmp_path / name).stat().st_size for name in names)
        assert places_of(opened)[1] == tmp_path.name


def test_parts_that_are_not_whole(tmp_path: Path) -> None:
    names, index = in_parts(tmp_path), tmp_path / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    (tmp_path / names[1]).rename(tmp_path / "aside")
    assert f"1 of 2 parts are missing: {names[1]}" in refusal(index)
    (tmp_path / "aside").rename(tmp_path / names[1])
    save_file({"other": torch.ones(3)}, tmp_path / names[1])
    assert f"does not fit {names[1]}: other" in refusal(index)
    index.unlink()
    assert "one of 2 parts, without the index" in refusal(tmp_path / names[0])
    for name in ("../aside", "/etc/passwd", "..", "a\\b", ""):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(told["weight_map"], name)}))
        assert "expected files beside the index" in refusal(index)
    for text in ("", "[]", "{}", '{"weight_map": 3}', "\xff"):
        index.write_text(text, encoding="latin-1")
        assert "not an index of weights" in refusal(index)


X, Y = "s_embedder.proj.weight", "patch_blocks.0.attn.qkv_x.weight"


@pytest.mark.parametrize(
    ("keys", "bare"),
    [
        ([X], {X: X}),
        ([f"net.{X}", f"net.{Y}"], {X: f"net.{X}", Y: f"net.{Y}"}),
        ([f"net.{X}", f"net_ema.{X}"], {X: f"net_ema.{X}"}),
        ([f"net.{X}", "net.only"], {X: f"net.{X}", "only": "net.only"}),
        ([f"net.{X}", f"fake_score.{X}", "discriminator.0.w"], {X: f"net.{X}"}),
        ([f"core.{X}", "core.pos_embed"], {X: f"core.{X}"}),
        ([f"core.{X}", "pos_embed"], {X: f"core.{X}"}),
        ([f"net.core.{X}"], {X: f"net.core.{X}"}),
        ([f"model.diffusion_model.{X}"], {X: f"model.diffusion_model.{X}"}),
        ([f"diffusion_model.{X}", "vae.y"], {X: f"diffusion_model.{X}", "vae.y": "vae.y"}),
        ([f"module.net.{X}", f"module.net.{Y}"], {X: f"module.net.{X}", Y: f"module.net.{Y}"}),
        ([f"net.module.{X}"], {X: f"net.module.{X}"}),
        (["backbone.patch_embed.weight", "gates.0.log_alpha"], None),
        (["ema.backbone.patch_embed.weight"], {"backbone.patch_embed.weight": "ema.backbone.patch_embed.weight"}),
        ([f"_orig_mod.net.{X}", "net.patch_blocks.0.attn._orig_mod.qkv_x.weight"],
         {X: f"_orig_mod.net.{X}", Y: "net.patch_blocks.0.attn._orig_mod.qkv_x.weight"}),
        ([f"_orig_mod.net.{X}", f"_orig_mod.net_ema.{X}", f"_orig_mod.fake_score.{X}"], {X: f"_orig_mod.net_ema.{X}"}),
        ([f"net.{X}", "text_encoder.y"], {X: f"net.{X}", "text_encoder.y": "text_encoder.y"}),
        ([f"net_ema.{X}", "nets.y"], {X: f"net_ema.{X}", "nets.y": "nets.y"}),
    ],
)  # fmt: skip
def test_prefixes(keys: list[str], bare: dict[str, str] | None) -> None:
    bare = bare or {key: key for key in keys}
    assert network_keys(keys) == bare
    assert network_keys(reversed(keys)) == bare


def test_two_keys_for_one_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"both net.{X} and net._orig_mod.{X}"):
        network_keys([f"net.{X}", f"net._orig_mod.{X}"])


def test_written_files_are_what_the_library_reads(tmp_path: Path) -> None:
    state = {
        "odd": torch.randn(3).to(torch.bfloat16),
        "wide": torch.randn(4, 2, dtype=torch.float64),
        "turned": torch.randn(3, 5).T,
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 3),
    }
    dtypes = {key: tensor.dtype for key, tensor in state.items()} | {"turned": torch.float16}
    path = tmp_path / "a.safetensors"
    umask = os.umask(0o027)
    try:
        write_safetensors(path, state, dtypes, {"key": "välue"})
    finally:
        os.umask(umask)
    loaded = load_file(path)
    assert equal(loaded, {**state, "turned": state["turned"].half()})
    assert open_checkpoint(path).metadata == {"key": "välue"}
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in loaded.values())
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_pipelines_folder_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="a diffusers pipeline, for `pixdec generate --pipeline`"):
        open_checkpoint(tmp_path)
