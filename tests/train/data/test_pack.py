"""Packing: what goes into the shards, what is left out and why, and that a killed run ends with the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from pixdec.io.images import read_image, to_tensor, upright_size
from pixdec.train.data.degrade import degrade
from pixdec.train.data.duplicates import Seen, look_hash, pixel_hash
from pixdec.train.data.pack import CaptionEmbedder, LatentEncoder, PackSettings, pack
from pixdec.train.data.shards import read_index, read_shard
from shardset import contents, folder_of, packed, photograph

SMALL = PackSettings(shard_mb=0.01)  # a few images each


def samples(folder: Path) -> list[dict[str, bytes]]:
    return [dict(raw.members) for shard in read_index(folder).shards for _, raw in read_shard(shard.url)]


def report(folder: Path) -> dict[str, tuple[str, str]]:
    lines = [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]
    return {line["source"]: (line["reason"], line["detail"]) for line in lines}


def test_shards_hold_the_files_as_they_are(tmp_path: Path):
    source = folder_of(tmp_path / "in", 6, ((40, 32), (24, 48)))
    photograph(source / "deeper" / "z.JPG", seed=9)
    end = packed(source, tmp_path / "out", SMALL)
    assert (end.done, end.total, end.images, end.skipped) == (7, 7, 7, {})
    assert end.shards > 1
    held = samples(tmp_path / "out")
    assert [sorted(each) for each in held] == [["json", "png"]] * 6 + [["jpg", "json"]]
    for i in range(6):
        assert held[i]["png"] == (source / f"{i:03}.png").read_bytes()
    assert held[6]["jpg"] == (source / "deeper" / "z.JPG").read_bytes()
    facts = {"source": "deeper/z.JPG", "width": 40, "height": 40, "captions": {}}
    assert json.loads(held[6]["json"]) == facts
    index = read_index(tmp_path / "out")
    assert np.concatenate([s.sizes for s in index.shards]).tolist() == [[40, 32], [24, 48]] * 3 + [[40, 40]]
    assert sorted(contents(tmp_path / "out")) == sorted(
        ["index.jsonl", "pack.json", "report.jsonl", *(shard.name for shard in index.shards)]
    )


def test_the_same_folder_elsewhere_gives_the_same_bytes(tmp_path: Path):
    source = folder_of(tmp_path / "in", 5)
    packed(source, tmp_path / "one", SMALL)
    copy = shutil.copytree(source, tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)  # other times
    packed(copy, tmp_path / "two", SMALL, threads=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_webdataset_reads_them(tmp_path: Path):
    import webdataset

    packed(folder_of(tmp_path / "in", 3), tmp_path / "out")
    data = webdataset.WebDataset(str(tmp_path / "out" / "shard-000000.tar"), shardshuffle=False, empty_check=False)
    pictures = list(data.decode("pil").to_tuple("png", "json", "__key__"))
    assert [key for _, _, key in pictures] == ["000000000", "000000001", "000000002"]
    assert pictures[1][0].size == (40, 40)
    assert pictures[1][1]["source"] == "001.png"


def test_what_is_left_out_and_why(tmp_path: Path):
    source = folder_of(tmp_path / "in", 3)
    whole = photograph(source / "whole.jpg", 64, 64, seed=5).read_bytes()
    (source / "a-cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "a-empty.png").write_bytes(b"")
    (source / "a-text.webp").write_text("hello")
    (source / "b-folder.png").mkdir()
    Image.open(source / "000.png").save(source / "c-same.bmp")
    photograph(source / "d-small.png", 40, 31, seed=7)
    stills = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    stills[0].save(source / "e-moves.gif", save_all=True, append_images=stills[1:])
    photograph(source / "f-caption.png", seed=8)
    (source / "f-caption.json").write_text('{"title": "a cat"}')
    (source / ".hidden.png").write_bytes(b"")
    end = packed(source, tmp_path / "out", PackSettings(min_side=32))
    assert end.images == 4
    assert end.skipped == {"broken": 3, "duplicate": 1, "small": 1, "animated": 1, "caption": 1}
    reasons = report(tmp_path / "out")
    assert reasons["a-cut.jpg"][0] == "broken"
    assert "truncated" in reasons["a-cut.jpg"][1]
    assert reasons["a-empty.png"] == ("broken", "the file is empty")
    assert reasons["a-text.webp"] == ("broken", "not an image, or of a format unknown here")
    assert reasons["c-same.bmp"] == ("duplicate", "the same pixels as 000.png")
    assert reasons["d-small.png"] == ("small", "40x31 pixels, below 32")
    assert reasons["e-moves.gif"] == ("animated", "2 frames")
    assert "long, medium, short" in reasons["f-caption.png"][1]
    assert "'title'" in reasons["f-caption.png"][1]
    assert len(reasons) == 7


def test_a_file_without_permission_is_broken_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = folder_of(tmp_path / "in", 2)
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "000.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert packed(source, tmp_path / "out").images == 1
    assert report(tmp_path / "out")["000.png"] == ("broken", "Permission denied")


def test_captions(tmp_path: Path):
    source = folder_of(tmp_path / "in", 4)
    (source / "000.txt").write_text("  ein Kätzchen\n", "utf-8")
    (source / "001.json").write_text(json.dumps({"long": "a long one", "short": "short", "author": "me"}))
    (source / "002.json").write_text(json.dumps({"medium": "m"}))
    (source / "002.txt").write_text("t")
    packed(source, tmp_path / "out")
    captions = [json.loads(each["json"])["captions"] for each in samples(tmp_path / "out")]
    assert captions == [
        {"text": "ein Kätzchen"},
        {"long": "a long one", "short": "short"},
        {"medium": "m", "text": "t"},
        {},
    ]
    packed(source, tmp_path / "bare", PackSettings(captions=False))
    assert all(json.loads(each["json"])["captions"] == {} for each in samples(tmp_path / "bare"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff", "UTF-8"),
        (b"{", "not JSON"),
        (b"[1]", "a list"),
        (b'{"long": 3}', "its caption 'long' is int"),
        (b"{}", "nothing"),
    ],
)
def test_bad_captions_are_named(tmp_path: Path, content: bytes, says: str):
    source = folder_of(tmp_path / "in", 2)
    (source / "000.json").write_bytes(content)
    assert packed(source, tmp_path / "out").skipped == {"caption": 1}
    reason, detail = report(tmp_path / "out")["000.png"]
    assert reason == "caption"
    assert says in detail
    assert detail.startswith("000.json: ")


def test_sizes_are_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = tmp_path / "in"
    photograph(source / "a.jpg", 48, 32)
    Image.open(source / "a.jpg").save(source / "turned.jpg", exif=exif)
    packed(source, tmp_path / "out")
    assert read_index(tmp_path / "out").shards[0].sizes.tolist() == [[48, 32], [32, 48]]
    assert upright_size(source / "turned.jpg") == (32, 48)


def test_decoding_from_memory_is_reading_the_file(tmp_path: Path):
    for name, mode in (("a.png", "LA"), ("b.jpg", "CMYK"), ("c.png", "P"), ("d.webp", "RGB")):
        path = photograph(tmp_path / name, 33, 21)
        Image.open(path).convert("RGB").convert(mode).save(path)
        ours = read_image(io.BytesIO(path.read_bytes()), name=name)
        assert ours.mode == "RGB"
        assert np.array_equal(np.asarray(ours), np.asarray(read_image(path)))
    with pytest.raises(ValueError, match=r"^b\.jpg: .*truncated"):
        read_image(io.BytesIO((tmp_path / "b.jpg").read_bytes()[:-20]), name="b.jpg")


# ---- duplicates


def test_near_duplicates(tmp_path: Path):
    source = folder_of(tmp_path / "in", 12, ((160, 120),))
    with Image.open(source / "004.png") as image:
        image.resize((100, 76), Image.Resampling.BICUBIC).save(source / "x-smaller.jpg", quality=60)
        image.resize((160, 120)).save(source / "y-same.jpg", quality=80)
    assert packed(source, tmp_path / "exact").skipped == {}
    end = packed(source, tmp_path / "near", PackSettings(near=4))
    assert end.skipped == {"near-duplicate": 2}
    assert report(tmp_path / "near")["x-smaller.jpg"] == ("near-duplicate", "looks like 004.png")


def test_seen_finds_every_look_within_its_distance_and_no_other():
    rng = np.random.default_rng(0)
    looks = [int(rng.integers(2**63)) for _ in range(50)]
    for near in (0, 1, 5, 14):
        seen = Seen(near)
        for i, look in enumerate(looks):
            seen.add(str(i), str(i), look)
        for i, look in enumerate(looks[:20]):
            for distance in range(near + 3):
                flipped = look
                for bit in rng.permutation(63)[:distance]:
                    flipped ^= 1 << int(bit)
                assert seen.alike(flipped) == (str(i) if distance <= near else None)
    assert Seen(None).alike(looks[0]) is None
    with pytest.raises(ValueError, match="near=15"):
        Seen(15)


def test_hashes_of_images(tmp_path: Path):
    image = read_image(photograph(tmp_path / "a.png", 64, 48))
    assert pixel_hash(image) == pixel_hash(image.copy())
    changed = image.copy()
    changed.putpixel((5, 5), (1, 2, 3))
    assert pixel_hash(image) != pixel_hash(changed)
    assert pixel_hash(Image.new("RGB", (4, 2))) != pixel_hash(Image.new("RGB", (2, 4)))
    assert look_hash(Image.new("RGB", (64, 64), "red")) is None
    look, brighter = look_hash(image), look_hash(image.point(lambda v: v // 2 + 60))
    assert look is not None
    assert brighter is not None
    assert look.bit_length() <= 63
    assert (look ^ brighter).bit_count() <= 6
    mirrored = look_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert mirrored is not None
    assert (look ^ mirrored).bit_count() > 15


# ---- resuming


def mixed_folder(folder: Path) -> Path:
    """Images of which some are broken or duplicates, at the beginning, in the middle and at the end."""
    folder_of(folder, 9)
    (folder / "000-broken.png").write_bytes(b"no image")
    shutil.copy(folder / "001.png", folder / "005-again.png")
    (folder / "999-broken.png").write_bytes(b"")
    return folder


def in_a_child(work: Callable[[], object]) -> int:
    """Run it in a forked process; returns how that ended, as `os.waitpid` has it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(3)
    return os.waitpid(child, 0)[1]


def killed_at(source: Path, output: Path, settings: PackSettings, *, step: int | None = None, rename: int = -1) -> int:
    """Pack in a child that is killed by SIGKILL at a step, or before (even) or after (odd) a renaming."""
    renamed = 0
    replace = Path.replace

    def dying_replace(path: Path, target: Path) -> Path:
        nonlocal renamed
        renamed += 1
        if rename == 2 * renamed - 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = replace(path, target)
        if rename == 2 * renamed - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def work() -> None:
        Path.replace = dying_replace
        for number, _ in enumerate(pack([source], output, settings, threads=2)):
            if number == step:
                os.kill(os.getpid(), signal.SIGKILL)

    return in_a_child(work)


@pytest.mark.parametrize("settings", [SMALL, PackSettings(shard_mb=0.01, near=3)], ids=["exact", "near"])
def test_killed_at_any_step_it_ends_with_the_same_bytes(tmp_path: Path, settings: PackSettings):
    source = mixed_folder(tmp_path / "in")
    packed(source, tmp_path / "straight", settings)
    expected = contents(tmp_path / "straight")
    assert len([name for name in expected if name.endswith(".tar")]) >= 3
    for step in (0, 3, 8, 12):
        output = tmp_path / f"killed-{step}"
        assert killed_at(source, output, settings, step=step) == signal.SIGKILL
        assert "index.jsonl" not in contents(output) or step == 12
        killed_at(source, output, settings, step=step // 2)  # and again, early
        end = packed(source, output, settings)
        assert contents(output) == expected
        assert (end.done, end.images, end.skipped) == (12, 9, {"broken": 2, "duplicate": 1})


def test_killed_around_every_renaming_it_ends_with_the_same_bytes(tmp_path: Path):
    source = mixed_folder(tmp_path / "in")
    packed(source, tmp_path / "straight", SMALL)
    expected = contents(tmp_path / "straight")
    for rename in range(100):
        output = tmp_path / f"killed-{rename}"
        status = killed_at(source, output, SMALL, rename=rename)
        if status != signal.SIGKILL:
            break
        packed(source, output, SMALL)
        assert contents(output) == expected, rename
    assert status == 0
    assert rename >= 2 * (1 + 3 + 2)  # pack.json, three shards, report, index


def test_whole_shards_are_not_made_again(tmp_path: Path):
    source = mixed_folder(tmp_path / "in")
    killed_at(source, tmp_path / "out", SMALL, step=9)
    first = tmp_path / "out" / "shard-000000.tar"
    before = first.stat()
    steps = [progress.done for progress in pack([source], tmp_path / "out", SMALL)]
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert steps[0] > 1
    assert steps[-1] == 12


def test_a_run_that_is_given_up_leaves_no_half_shard(tmp_path: Path):
    source = folder_of(tmp_path / "in", 9)
    run = pack([source], tmp_path / "out", SMALL)
    for _ in range(5):
        next(run)
    run.close()
    names = sorted(contents(tmp_path / "out"))
    assert not [name for name in names if name.startswith(".") and not name.startswith(".packing")]
    for name in names:
        if name.endswith(".tar"):
            with tarfile.open(tmp_path / "out" / name) as tar:
                assert tar.getmembers()


def test_done_is_done(tmp_path: Path):
    source = mixed_folder(tmp_path / "in")
    end = packed(source, tmp_path / "out", SMALL)
    before = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns for name in contents(tmp_path / "out") if ".tar" in name
    }
    (again,) = pack([source], tmp_path / "out", SMALL)
    assert again == end
    assert before == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}


def test_a_full_disk_is_one_line_and_can_be_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = folder_of(tmp_path / "in", 9)
    packed(source, tmp_path / "straight", SMALL)
    add = tarfile.TarFile.addfile
    calls = 0

    def fail(tar: tarfile.TarFile, entry: tarfile.TarInfo, data: io.BytesIO) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise OSError(28, "No space left on device")
        add(tar, entry, data)

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    with pytest.raises(OSError, match=r"^cannot write .*shard-00000\d\.tar: No space left on device$"):
        packed(source, tmp_path / "out", SMALL)
    packed(source, tmp_path / "out", SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


# ---- refusals


def test_refuses(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"x")
    for inputs, message in (
        ([], "no input"),
        ([tmp_path / "empty"], r"empty: no images in this folder; looked for .*\.png"),
        ([tmp_path / "absent"], "absent: there is no such file or folder"),
        ([tmp_path / "broken"], r"none of 1 images can be packed; the first, a\.png: broken, not an image"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            list(pack(inputs, tmp_path / "out"))
        assert "\n" not in str(refused.value)
    for wrong in ({"min_side": -1}, {"shard_mb": 0}, {"near": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PackSettings(**wrong)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path):
    source = folder_of(tmp_path / "in", 4)
    packed(source, tmp_path / "out", SMALL)
    before = contents(tmp_path / "out")
    inode = (tmp_path / "out" / "pack.json").stat().st_ino
    with pytest.raises(ValueError, match=r"out: holds shards of something else \(min_side differ\)"):
        packed(source, tmp_path / "out", PackSettings(shard_mb=0.01, min_side=3))
    photograph(source / "new.png", seed=77)
    with pytest.raises(ValueError, match=r"something else \(files, inputs differ\)"):
        packed(source, tmp_path / "out", SMALL)
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / "pack.json").stat().st_ino == inode
    assert not list((tmp_path / "out").glob(".packing*"))
    (tmp_path / "out" / "pack.json").unlink()
    with pytest.raises(ValueError, match="holds shards that were not made here"):
        packed(source, tmp_path / "out", SMALL)


def test_a_packing_that_came_to_nothing_binds_no_one(tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of 1"):
        packed(source, tmp_path / "out")
    photograph(source / "a.png")
    assert packed(source, tmp_path / "out").images == 1


# ---- precomputed


def encode(images: torch.Tensor) -> torch.Tensor:
    """Means over 4 x 4 pixels and their negatives: a latent of six channels."""
    small = torch.nn.functional.avg_pool2d(images, 4)
    return torch.cat([small, -small], 1)


def embed(captions: list[str]) -> torch.Tensor:
    rows = [int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4]) for caption in captions]
    return torch.tensor(rows, dtype=torch.float64).float()[:, None, None].expand(-1, 3, 5)


def test_latents_and_embeddings(tmp_path: Path):
    source = folder_of(tmp_path / "in", 2, ((96, 64), (64, 64)))
    photograph(source / "small.png", 40, 60, seed=5)
    (source / "000.json").write_text('{"long": "l", "short": "s"}')
    latents = LatentEncoder(encode, "means", "test", base=64, scale=2, multiple=16)
    end = packed(source, tmp_path / "out", latents=latents, embeddings=CaptionEmbedder(embed, "hash"))
    assert end.skipped == {"latent": 1}
    assert report(tmp_path / "out")["small.png"][1] == "40x60 pixels cover no bucket of base 64"
    index = read_index(tmp_path / "out")
    assert index.latents == {"base": 64, "multiple": 16, "scale": 2, "space": "test", "encoder": "means"}
    assert index.embeddings == "hash"
    first, second = (load(each["safetensors"]) for each in samples(tmp_path / "out"))
    assert sorted(first) == ["embedding.long", "embedding.short", "latent"]
    assert sorted(second) == ["embedding.text", "latent"]
    assert torch.equal(first["embedding.short"], embed(["s"])[0])
    assert torch.equal(second["embedding.text"], embed([""])[0])
    image = to_tensor(read_image(source / "001.png"))
    assert torch.equal(second["latent"], encode(degrade(image, 2))[0])
    assert first["latent"].shape == (6, 6, 10)  # its bucket is 80x48, of that a half and a quarter


def test_an_image_that_the_encoder_refuses_is_left_out(tmp_path: Path):
    def refuse(images: torch.Tensor) -> torch.Tensor:
        if float(images.mean()) > 0.9:
            raise ValueError("too white\nindeed")
        return encode(images)

    source = folder_of(tmp_path / "in", 2, ((64, 64),))
    Image.new("RGB", (64, 64), "white").save(source / "white.png")
    packed(source, tmp_path / "out", latents=LatentEncoder(refuse, "m", "t", 64, 2, 16))
    assert report(tmp_path / "out") == {"white.png": ("latent", "too white indeed")}
