"""Opening files of weights, picking the network's keys, and writing safetensors."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixdec.weights.checkpoint import network_keys, open_checkpoint, write_safetensors

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
    for content in (b"not a checkpoint at all", b"short", b"\x00" * 100):
        path.write_bytes(content)
        assert "not a checkpoint" in refusal(path)
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
    ("keys", "bare"),
    [
        (["x"], {"x": "x"}),
        (["net.x", "net.y"], {"x": "net.x", "y": "net.y"}),
        (["net.x", "net_ema.x"], {"x": "net_ema.x"}),
        (["net.x", "net.only"], {"x": "net.x", "only": "net.only"}),
        (["net.x", "fake_score.x", "discriminator.0.w"], {"x": "net.x"}),
        (["core.x", "core.pos_embed"], {"x": "core.x"}),
        (["core.x", "pos_embed"], {"x": "core.x"}),
        (["net.core.x"], {"x": "net.core.x"}),
        (["_orig_mod.net.x", "net.b.0._orig_mod.y"], {"x": "_orig_mod.net.x", "b.0.y": "net.b.0._orig_mod.y"}),
        (["_orig_mod.net.x", "_orig_mod.net_ema.x", "_orig_mod.fake_score.x"], {"x": "_orig_mod.net_ema.x"}),
        (["net.x", "text_encoder.y"], {"x": "net.x", "text_encoder.y": "text_encoder.y"}),
        (["net_ema.x", "nets.y"], {"x": "net_ema.x", "nets.y": "nets.y"}),
    ],
)
def test_prefixes(keys: list[str], bare: dict[str, str]) -> None:
    assert network_keys(keys) == bare
    assert network_keys(reversed(keys)) == bare


def test_two_keys_for_one_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"both net.x and net._orig_mod.x"):
        network_keys(["net.x", "net._orig_mod.x"])


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
