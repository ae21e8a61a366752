"""The streaming loader: what a batch is, who gets which, exact resumption, URLs, and shards that cannot be read."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.io.images import read_image, to_tensor
from pixdec.train.data.buckets import Bucket, buckets
from pixdec.train.data.captions import inside
from pixdec.train.data.degrade import degrade
from pixdec.train.data.fit import CENTER, FitSettings, fit
from pixdec.train.data.folder import folder_index
from pixdec.train.data.pack import CaptionEmbedder, LatentEncoder, PackSettings
from pixdec.train.data.sample import Examples
from pixdec.train.data.shards import Index, ShardError, index_shard, read_index, read_shard, save_index
from pixdec.train.data.stream import StreamLoader, StreamSettings
from pixdec.train.data.urls import expand, named_in
from shardset import folder_of, packed, photograph

SIDES = ((40, 40), (64, 36), (40, 56), (72, 72), (20, 20))
SETTINGS = StreamSettings(base=32, multiple=8, batch=3, seed=5, shuffle=8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images in a dozen shards, captions for every second; nine of them too small for base 32."""
    folder = tmp_path_factory.mktemp("data")
    source = folder_of(folder / "in", 45, SIDES)
    for i in range(0, 45, 2):
        (source / f"{i:03}.json").write_text(json.dumps({"long": f"l{i}", "medium": f"m{i}", "short": f"s{i}"}))
    assert packed(source, folder / "out", PackSettings(shard_mb=0.012)).shards >= 8
    return folder / "out"


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    """The note on images left out is tested where it belongs."""


def loader(source: Path | str | Index, settings: StreamSettings = SETTINGS, **place: int) -> StreamLoader:
    return StreamLoader(source, settings, **place)


def take(source: StreamLoader, many: int, start: int = 0) -> list[Examples]:
    return list(islice(source.batches(start), many))


def same(a: Examples, b: Examples) -> bool:
    return a.keys == b.keys and a.captions == b.captions and torch.equal(a.images, b.images)


def all_same(a: list[Examples], b: list[Examples]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


# ---- what a batch is


def test_batches(shards: Path):
    source = loader(shards)
    assert (source.images, source.left_out) == (36, 9)
    sizes = set()
    for batch in take(source, 40):
        assert batch.images.dtype == torch.float32
        assert batch.images.shape[:2] == (3, 3)
        assert -1 <= batch.images.min() < -0.2
        assert 0.2 < batch.images.max() <= 1
        assert (batch.latents, batch.embeddings) == (None, None)
        sizes.add(tuple(batch.images.shape[2:]))
    assert sizes == {(32, 32), (24, 40), (32, 24)}
    assert {(bucket.height, bucket.width) for bucket in source.buckets} >= sizes


def test_an_epoch_has_every_image_once(shards: Path):
    keys = [key for batch in take(loader(shards), 24) for key in batch.keys]
    assert set(Counter(keys[:30]).values()) == {1}
    assert len(set(keys)) == 36


def test_images_are_those_of_the_files(shards: Path):
    """Without flips and zoom an image of its bucket's aspect is the whole file, shrunk."""
    settings = dataclasses.replace(SETTINGS, fit=CENTER)
    names = {
        raw.key: json.loads(raw.members["json"])["source"]
        for s in read_index(shards).shards
        for _, raw in read_shard(s.url)
    }
    seen = 0
    for batch in take(loader(shards, settings), 12):
        for key, image in zip(batch.keys, batch.images, strict=True):
            if image.shape[1:] == (32, 32):
                file = read_image(shards.parent / "in" / names[key])
                expected = to_tensor(file.resize((32, 32), Image.Resampling.BICUBIC, box=(0, 0, *file.size)))[0]
                assert torch.equal(image, expected)
                seen += 1
    assert seen >= 9


def test_captions_are_drawn_uniformly_and_anew_in_each_epoch(shards: Path):
    batches = take(loader(shards), 12 * 15)
    drawn = Counter(caption[:1] for batch in batches for caption in batch.captions)
    assert drawn[""] == pytest.approx(270, rel=0.1)
    for length in "lms":
        assert drawn[length] == pytest.approx(90, rel=0.25)
    of_one = {
        caption
        for batch in batches
        for key, caption in zip(batch.keys, batch.captions, strict=True)
        if key == "000000000"
    }
    assert of_one == {"l0", "m0", "s0"}
    assert [b.captions for b in take(loader(shards), 20)] == [b.captions for b in batches[:20]]


def test_the_note_on_images_left_out(shards: Path):
    with pytest.warns(UserWarning, match="9 of 45 images are smaller than every bucket of base 32"):
        loader(shards)


# ---- fitting


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


def test_fit_shrinks_until_the_bucket_is_covered():
    rng = np.random.default_rng(0)
    part = np.asarray(fit(gradient(200, 100), Bucket(50, 50), CENTER, rng), dtype=float)
    assert part.shape == (50, 50, 3)
    assert part[:, 0, 0].mean() == pytest.approx(50.5, abs=1)  # the middle half of the width, the whole height
    assert part[:, -1, 0].mean() == pytest.approx(148.5, abs=1)
    assert part[0, :, 1].mean() == pytest.approx(0.5, abs=1)
    lefts = [np.asarray(fit(gradient(200, 100), Bucket(50, 50), FitSettings(flip=0), rng))[0, 0, 0] for _ in range(50)]
    assert min(lefts) < 15
    assert max(lefts) > 85


def test_fit_zooms_flips_and_cuts_out():
    rng = np.random.default_rng(0)
    spans = []
    flipped = 0
    for _ in range(200):
        part = np.asarray(fit(gradient(200, 180), Bucket(20, 18), FitSettings(zoom=4), rng), dtype=float)
        span = part[9, -1, 0] - part[9, 0, 0]
        spans.append(abs(span) / 19)
        flipped += span < 0
    assert 0.9 < min(spans) < 1.2
    assert 3.5 < max(spans) < 4.1
    assert 70 < flipped < 130
    cut = np.asarray(fit(gradient(200, 180), Bucket(20, 18), FitSettings(zoom=4, unscaled=1, flip=0), rng))
    left, top = int(cut[0, 0, 0]), int(cut[0, 0, 1])
    assert np.array_equal(cut, np.asarray(gradient(200, 180).crop((left, top, left + 20, top + 18))))
    exact = fit(gradient(20, 18), Bucket(20, 18), FitSettings(flip=0), rng)
    assert np.array_equal(np.asarray(exact), np.asarray(gradient(20, 18)))
    with pytest.raises(ValueError, match="20x17 is smaller than its bucket of 20x18"):
        fit(gradient(20, 17), Bucket(20, 18), CENTER, rng)


# ---- order, ranks, workers


def test_the_same_seed_gives_the_same_batches(shards: Path):
    assert all_same(take(loader(shards), 30), take(loader(shards), 30))
    other = take(loader(shards, dataclasses.replace(SETTINGS, seed=6)), 30)
    assert [b.keys for b in other] != [b.keys for b in take(loader(shards), 30)]


def test_ranks_and_workers_share_the_images_out(shards: Path):
    """Four of them read four disjoint parts of an epoch, whether as ranks or as workers."""
    parts = [take(loader(shards, rank=rank, ranks=4), 2) for rank in range(4)]
    keys = [key for part in parts for key in part[0].keys]
    assert len(set(keys)) == 12
    by_workers = [take(loader(shards, rank=rank, ranks=2, workers=2), 4) for rank in range(2)]
    whole = {0: parts[0], 1: parts[1], 2: parts[2], 3: parts[3]}
    for rank in range(2):  # batch n of rank r is batch 2n + r of the run, of stream (2n + r) % 4
        for n, batch in enumerate(by_workers[rank]):
            assert same(batch, whole[(2 * n + rank) % 4][n // 2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 17])
def test_a_restart_goes_on_with_the_next_batch(shards: Path, workers: int, stop: int):
    straight = take(loader(shards, workers=workers), stop + 6)
    assert all_same(take(loader(shards, workers=workers), 6, stop), straight[stop:])


def test_several_ranks_restart_together(shards: Path):
    for rank in range(2):  # in the middle of the workers' round
        straight = take(loader(shards, rank=rank, ranks=2, workers=2), 8)
        assert all_same(take(loader(shards, rank=rank, ranks=2, workers=2), 3, 5), straight[5:])


def test_it_can_be_sent_to_another_process(shards: Path):
    """As workers get it that are not forked."""
    source = loader(shards)
    assert all_same(take(pickle.loads(pickle.dumps(source)), 3), take(source, 3))


def test_ranks_are_those_of_torch_distributed(shards: Path, tmp_path: Path):
    def child(rank: int) -> None:
        store = f"file://{tmp_path}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        source = loader(shards)
        (tmp_path / f"{rank}").write_text(f"{source.rank} {source.ranks} {next(iter(source)).keys}")

    children: list[int] = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                child(rank)
            finally:
                os._exit(0)
    for rank in range(2):
        os.waitpid(children[rank], 0)
        expected = take(loader(shards, rank=rank, ranks=2), 1)[0].keys
        assert (tmp_path / f"{rank}").read_text() == f"{rank} 2 {expected}"


def test_another_number_of_ranks_goes_on_with_the_same_order(shards: Path):
    """With as many streams as before: 2 ranks, then 1 with 4 workers, then 4."""
    settings = dataclasses.replace(SETTINGS, streams=4)
    whole = take(loader(shards, settings), 24)
    for rank in range(2):
        assert all_same(take(loader(shards, settings, rank=rank, ranks=2), 4), whole[rank:8:2])
    assert all_same(take(loader(shards, settings, workers=4), 4, 8), whole[8:12])
    for rank in range(4):
        assert all_same(take(loader(shards, settings, rank=rank, ranks=4), 3, 3), whole[12 + rank : 24 : 4])


def test_a_restart_reads_only_shards_with_images_to_come(shards: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []

    def counted(url: str, wanted: list[int] | None = None) -> Iterator[Any]:
        opened.append(url)
        return read_shard(url, wanted)

    monkeypatch.setattr("pixdec.train.data.stream.read_shard", counted)
    settings = dataclasses.replace(SETTINGS, shuffle=0)
    source = loader(shards, settings)
    take(source, 9)  # of 12 in an epoch
    before = len(opened)
    assert before >= 7
    opened.clear()
    take(loader(shards, settings), 1, 9)
    assert 1 <= len(opened) <= 4


def test_workers_leave_the_training_s_random_numbers_alone(shards: Path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    take(loader(shards, workers=1), 1)
    assert torch.equal(torch.rand(3), expected)


# ---- where shards are


def test_file_urls_and_a_folder_that_moved(shards: Path, tmp_path: Path):
    expected = take(loader(shards), 5)
    assert all_same(take(loader(f"file://{shards}"), 5), expected)
    assert all_same(take(loader(str(shards / "index.jsonl")), 5), expected)
    moved = shutil.copytree(shards, tmp_path / "moved")
    assert all_same(take(loader(moved), 5), expected)
    assert read_index(moved).digest() == read_index(shards).digest()


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Silent, directory=str(shards))
    ) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_address[1]}"
        http_server.shutdown()


def test_http(shards: Path, server: str):
    expected = take(loader(shards), 8)
    for workers in (0, 1):
        assert all_same(take(loader(server, workers=workers), 8), expected)
    assert all_same(take(loader(f"{server}/index.jsonl"), 3, 5), expected[5:])


def test_http_errors_name_the_url(server: str, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(ValueError, match=rf"^{server}/absent/index\.jsonl: cannot be read \(HTTP Error 404: .*\)$"):
        loader(f"{server}/absent")
    index = read_index(server)
    broken = Index(tuple(dataclasses.replace(s, url=f"{s.url}.absent") for s in index.shards))
    with pytest.raises(
        ValueError, match=rf"^{server}/shard-0000\d\d\.tar\.absent: .*\(HTTP Error 404: .*\)"
    ) as refused:
        take(loader(broken), 1)
    assert "\n" not in str(refused.value)
    assert waits == [2, 4]


def test_a_transfer_that_breaks_off_is_taken_up_again(shards: Path, monkeypatch: pytest.MonkeyPatch):
    """The first reading of every shard fails after two images."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    expected = take(loader(shards), 8)
    tried: set[str] = set()

    def breaking(url: str, wanted: list[int]) -> Iterator[Any]:
        for number, found in enumerate(read_shard(url.removeprefix("http:"), wanted)):
            if number == 2 and url not in tried:
                tried.add(url)
                raise ShardError(f"{url}: connection reset")
            yield found

    monkeypatch.setattr("pixdec.train.data.stream.read_shard", breaking)
    index = read_index(shards)
    remote = Index(tuple(dataclasses.replace(s, url=f"http:{s.url}") for s in index.shards))
    assert all_same(take(loader(remote), 8), expected)
    assert tried


def test_only_a_person_may_name_a_command(shards: Path, server: str, tmp_path: Path):
    index = read_index(shards)
    by_url = Index(tuple(dataclasses.replace(s, url=f"{server}/{s.name}") for s in index.shards))
    save_index(by_url, tmp_path / "index.jsonl")
    assert all_same(take(loader(f"pipe:sed '' {tmp_path}/index.jsonl"), 5), take(loader(shards), 5))
    (raw,) = [raw for _, raw in read_shard(f"pipe:cat {index.shards[0].url}; sleep 9", [1])]  # not heard to the end
    assert raw.key == "000000001"
    with pytest.raises(ValueError, match="exit code 3"):
        list(read_shard("pipe:exit 3"))
    with pytest.raises(ValueError, match="no commands"):
        save_index(Index((dataclasses.replace(index.shards[0], url="pipe:cat x"),)), tmp_path / "index.jsonl")
    with pytest.raises(ValueError, match="beside a command lies nothing"):
        loader(f"pipe:cat {shards}/index.jsonl")


@pytest.mark.parametrize(
    "name",
    [
        "pipe:touch {}",
        "PIPE:touch {}",
        "/dev/stdin",
        "../shard-000000.tar",
        "sub/../../shard.tar",
        "C:/shard.tar",
        "ftp://example.org/shard.tar",
        "data:,text",
        "",
        3,
        ["pipe:touch {}"],
    ],
)
def test_what_an_index_may_not_name(shards: Path, tmp_path: Path, name: Any):
    first, second, *_ = (shards / "index.jsonl").read_text().splitlines()
    ran = tmp_path / "ran"
    row = {**json.loads(second), "shard": name.replace("{}", str(ran)) if isinstance(name, str) else name}
    (tmp_path / "index.jsonl").write_text(f"{json.dumps({**json.loads(first), 'shards': 1})}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=r"index\.jsonl: .*names the shard"):
        loader(tmp_path)
    assert not ran.exists()


def test_quotes_in_urls_reach_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran = tmp_path / "ran"
    monkeypatch.setenv("PATH", str(tmp_path))
    for url in (f"http://127.0.0.1:9/a';touch {ran};'.tar", f"gs://a/';touch {ran};'.tar", f"hf:';touch {ran};'"):
        with pytest.raises(ValueError, match="cannot be read"):
            list(read_shard(url))
    assert not ran.exists()


def test_an_index_from_elsewhere_names_no_files_of_this_machine(shards: Path):
    assert named_in("/data/index.jsonl", "file:///data/a.tar") == "file:///data/a.tar"
    assert named_in("https://example.org/a/index.jsonl", "b/c.tar") == "https://example.org/a/b/c.tar"
    assert named_in("https://example.org/a/index.jsonl", "hf://datasets/a/b/c.tar") == "hf://datasets/a/b/c.tar"
    with pytest.raises(ValueError, match="names the shard 'file:///etc/passwd'"):
        named_in("https://example.org/index.jsonl", "file:///etc/passwd")


def shard_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_members_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pixdec.train.data.shards.SAMPLE_BYTES", 2000)
    large = shard_of(tmp_path / "large.tar", [("0.jpg", bytes(1500)), ("0.txt", bytes(600))])
    with pytest.raises(ValueError, match=r"large\.tar: .*0\.txt: more than"):
        list(read_shard(str(large)))
    ignored = shard_of(tmp_path / "ignored.tar", [("0.jpg", bytes(1500)), ("0.mp4", bytes(6000))])
    assert len(list(read_shard(str(ignored)))) == 1
    bomb = tmp_path / "bomb.tar"  # a name of two megabytes, packed small
    with tarfile.open(bomb, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a" * 2_000_000 + ".jpg"))
    with pytest.raises(ValueError, match=r"bomb\.tar: .*a header of"):
        list(read_shard(str(bomb)))


def test_what_of_a_shard_is_left_out(tmp_path: Path):
    picture = photograph(tmp_path / "x.jpg", 48, 48).read_bytes()
    shard = shard_of(
        tmp_path / "bad.tar",
        [
            ("good.jpg", picture), ("good.json", b'{"caption": null}'), ("good.txt", "\ufefffox".encode()),
            ("plain.jpg", picture), ("._plain.jpg", b"\0\5\x16\7"),
            ("one.v1.jpg", picture), ("one.v1.txt", b"boat"),
            ("null.jpg", picture), ("null.json", b'{"caption": null}'),
            ("list.jpg", picture), ("list.json", b'{"caption": ["a"]}'),
            ("number.jpg", picture), ("number.json", b'{"captions": {"long": 3}}'),
            ("deep.jpg", picture), ("deep.json", b"[" * 100_000),
            ("broken.jpg", picture), ("broken.json", b"not json"),
            ("latin.jpg", picture), ("latin.txt", "caf\u00e9".encode("latin-1")),
            ("two.v1.jpg", picture), ("two.v2.jpg", picture),
            ("twice.jpg", picture), ("twice.jpg", picture),
            ("text.jpg", b"hello"),
            ("none.txt", b"fox"),
            ("good.jpg", picture),
        ],
    )  # fmt: skip
    found = index_shard(str(shard))
    assert found.shard.sizes.any(axis=1).tolist() == [True] * 3 + [False] * 11
    assert found.uncaptioned == 1
    for line, expected in zip(
        found.left_out,
        ("null.json: its caption 'caption' is null", "list.json: its caption 'caption' is list",
         "number.json: its caption 'long' is int", "deep.json: it is not JSON", "broken.json: it is not JSON",
         "latin.txt: it is not UTF-8", "two: holds 2 images, .v1.jpg, .v2.jpg", "twice: holds 2 images",
         "text.jpg: not an image", "none: no image among its files .txt", "good: its files are 2 times there"),
        strict=True,
    ):  # fmt: skip
        assert expected in line
    with pytest.warns(UserWarning, match="11 of 14 images cannot be used"):
        source = loader(Index((found.shard,)), dataclasses.replace(SETTINGS, batch=3))
    (batch,) = take(source, 1)
    assert dict(zip(batch.keys, batch.captions, strict=True)) == {"good": "fox", "plain": "", "one": "boat"}


def test_shards_made_elsewhere(tmp_path: Path):
    """As img2dataset writes them: KEY.jpg, KEY.txt, KEY.json with a caption; and one of them without an image."""
    for number in range(2):
        with tarfile.open(tmp_path / f"0000{number}.tar", "w") as tar:
            for i in range(4):
                photograph(tmp_path / "x.jpg", 40, 40, seed=4 * number + i)
                (tmp_path / "x.txt").write_text(f"caption {i}\n")
                (tmp_path / "x.json").write_text(json.dumps({"caption": f"caption {i}", "width": 1}))
                for extension in ("jpg", "json", "txt") if i else ("json", "txt"):
                    tar.add(tmp_path / f"x.{extension}", f"some.folder/{number}{i}.{extension}")
    urls = expand([f"{tmp_path}/{{00000..00001}}.tar"])
    index = Index(tuple(index_shard(url).shard for url in urls))
    assert index.shards[0].sizes.tolist() == [[0, 0], [40, 40], [40, 40], [40, 40]]
    save_index(index, tmp_path / "index.jsonl")
    source = loader(tmp_path)
    assert source.images == 6
    for batch in take(source, 2):
        assert all(key.startswith("some.folder/") for key in batch.keys)
        assert batch.captions == [f"caption {key[-1]}" for key in batch.keys]


def test_captions_of_shards():
    assert inside({"json": b'{"captions": {"long": "l"}}', "txt": b"t"}, "k") == {"long": "l", "text": "t"}
    assert inside({"json": b'{"short": "s", "caption": "c"}'}, "k") == {"short": "s"}
    assert inside({"json": b'{"caption": "c"}'}, "k") == {"text": "c"}
    for nothing in ({}, {"json": b'{"width": 3}'}):
        assert inside(nothing, "k") == {}


# ---- a plain folder


def folder_with_faults(folder: Path) -> Path:
    """Three photographs, in a folder below too, and what else lies about in folders."""
    for i in range(3):
        photograph(folder / ("" if i else "below") / f"{i}.png", 80, 80, seed=i)
    (folder / "1.txt").write_text("a boat")
    whole = photograph(folder / "x.jpg", 90, 90, seed=9).read_bytes()
    (folder / "x.jpg").unlink()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("hello")
    (folder / "._0.png").write_bytes(b"\0\5\x16\7Mac OS X")
    photograph(folder / ".hidden" / "h.png", 80, 80)
    photograph(folder / "tiny.png", 20, 90)
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    return folder


def test_a_folder_is_read_as_if_it_were_packed(tmp_path: Path):
    folder = folder_with_faults(tmp_path / "photos")
    with pytest.warns(UserWarning, match="2 of 7 images are left out") as seen:
        index = folder_index(folder, 2)
    for expected in ("moves.gif (animated, 2 frames)", "text.png (cannot be read)"):
        assert expected in str(seen[0].message)
    assert [len(shard.files) for shard in index.shards] == [3, 2]
    with pytest.warns(UserWarning):
        assert folder_index(folder, 1).digest() == index.digest()
    with pytest.warns(UserWarning, match=r"tiny\.png \(20x90 pixels, smaller than 64x64\)"):
        folder_index(folder, 2, buckets(64))
    with pytest.raises(ValueError, match=r"cut\.jpg: .*unreadable='skip' goes on without it"):
        take(loader(index), 4)
    settings = dataclasses.replace(SETTINGS, unreadable="skip", streams=2)
    with pytest.warns(UserWarning, match=r"cut\.jpg: .*others stand in for it"):
        batches = take(loader(index, settings), 12)
    names = {
        Path(key).name: caption for batch in batches for key, caption in zip(batch.keys, batch.captions, strict=True)
    }
    assert names == {"0": "", "1": "a boat", "2": ""}
    assert all_same(take(loader(index, settings, rank=1, ranks=2), 3, 3), batches[7:12:2])
    index.shards[0].files[0].unlink()
    with pytest.raises(ValueError, match="none of 2 images can be used"):
        for path in folder.rglob("*.*"):
            path.unlink() if path.suffix in (".png", ".jpg") and path.name != "text.png" else None
        folder_index(folder)


# ---- pages of text


def test_pages_take_the_place_of_a_share(shards: Path):
    settings = dataclasses.replace(SETTINGS, pages=0.3)
    plain, mixed = take(loader(shards), 30), take(loader(shards, settings), 30)
    pages = 0
    for without, batch in zip(plain, mixed, strict=True):
        for i, key in enumerate(batch.keys):
            if key.startswith("page-"):
                pages += 1
                assert batch.captions[i] == ""
            else:  # the others are as they were
                assert key == without.keys[i]
                assert torch.equal(batch.images[i], without.images[i])
    assert 0.2 < pages / 90 < 0.4
    assert all_same(mixed[:9], take(loader(shards, settings), 9))
    only = take(loader(shards, dataclasses.replace(SETTINGS, pages=1.0)), 3)
    assert all(key.startswith("page-") for batch in only for key in batch.keys)


# ---- precomputed tensors


def encode(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images, 2)


def embed(captions: list[str]) -> torch.Tensor:
    return torch.tensor([[[float(len(caption))]] for caption in captions])


def test_precomputed_latents_are_those_of_the_image(tmp_path: Path):
    source = folder_of(tmp_path / "in", 8, ((70, 50), (40, 40)))
    (source / "000.json").write_text('{"long": "four", "short": "to"}')
    latents = LatentEncoder(encode, "means", "test", base=32, scale=2, multiple=8)
    packed(source, tmp_path / "out", latents=latents, embeddings=CaptionEmbedder(embed, "length"))
    settings = StreamSettings(base=32, multiple=8, batch=2, fit=CENTER, latents=True, embeddings=True)
    for batch in take(loader(tmp_path / "out", settings), 12):
        assert batch.latents is not None
        assert batch.embeddings is not None
        assert torch.equal(batch.latents, encode(degrade(batch.images, 2)))
        assert torch.cat(batch.embeddings).flatten().tolist() == [len(caption) for caption in batch.captions]
    for wrong, message in (
        ({"fit": FitSettings()}, "set fit=CENTER"),
        ({"base": 40}, r"base=40, multiple=8: the latents in these shards were made for base=32, multiple=8"),
        ({"pages": 0.5}, "pages have no precomputed"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(tmp_path / "out", dataclasses.replace(settings, **wrong))


def test_precomputed_tensors_that_are_not_there(shards: Path):
    with pytest.raises(ValueError, match="these shards hold none; pack them with --latents"):
        loader(shards, dataclasses.replace(SETTINGS, fit=CENTER, latents=True))
    with pytest.raises(ValueError, match="these shards hold none; pack them with --embeddings"):
        loader(shards, dataclasses.replace(SETTINGS, embeddings=True))
    lying = dataclasses.replace(read_index(shards), embeddings="said")
    with pytest.raises(ValueError, match="precomputed tensors are missing or damaged"):
        take(loader(lying, dataclasses.replace(SETTINGS, embeddings=True)), 1)


# ---- what cannot be read


def damaged(shards: Path, folder: Path, how: str) -> Path:
    """A copy of the shards with the fourth of them damaged."""
    copy = shutil.copytree(shards, folder / how)
    shard = copy / "shard-000003.tar"
    data = shard.read_bytes()
    if how == "absent":
        shard.unlink()
    elif how == "cut":
        shard.write_bytes(data[: len(data) // 2])
    elif how == "cut-between-files":
        shard.write_bytes(data[: data.index(b".json") // 512 * 512])
    elif how == "text":
        shard.write_text("hello" * 1000)
    elif how == "flipped":  # one image
        at = data.index(b"IDAT") + 20
        shard.write_bytes(data[:at] + bytes(30) + data[at + 30 :])
    else:
        shutil.copy(copy / "shard-000004.tar", shard)
    return copy


@pytest.mark.parametrize("how", ["absent", "cut", "cut-between-files", "text", "flipped", "another"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_stops_the_run_by_name(shards: Path, tmp_path: Path, how: str, workers: int):
    with pytest.raises(ValueError, match=r"shard-000003\.tar: .*; unreadable='skip' goes on without it") as refused:
        take(loader(damaged(shards, tmp_path, how), workers=workers), 20)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("how", ["absent", "cut", "flipped"])
def test_a_damaged_shard_is_skipped_if_asked(shards: Path, tmp_path: Path, how: str):
    copy = damaged(shards, tmp_path, how)
    settings = dataclasses.replace(SETTINGS, unreadable="skip")
    plain = take(loader(shards), 24)
    with pytest.warns(UserWarning, match=r"shard-000003\.tar: .*; others stand in for it"):
        ours = take(loader(copy, settings), 24)
    changed = 0
    for without, batch in zip(plain, ours, strict=True):
        assert batch.images.shape[0] == 3
        kept = [key for key in without.keys if key in batch.keys]
        changed += batch.keys != without.keys
        if kept:  # what can be read is there, in order, and repeated
            assert batch.keys == [kept[i % len(kept)] for i in range(3)]
    assert 1 <= changed < 20
    assert all_same(take(loader(copy, settings), 17, 7), ours[7:])


def test_a_batch_of_which_nothing_can_be_read_is_the_next_one(shards: Path, tmp_path: Path):
    """One shard is one batch here: its place is taken by the batch after it."""
    index = read_index(shards)
    settings = StreamSettings(base=16, multiple=8, batch=1, shuffle=0, unreadable="skip", fit=CENTER)
    whole = take(loader(index, settings), 60)
    bad = dataclasses.replace(index.shards[2], url=str(tmp_path / index.shards[2].name))
    ours = take(loader(Index((*index.shards[:2], bad, *index.shards[3:])), settings), 60)
    lost = {f"{sum(len(s.sizes) for s in index.shards[:2]) + i:09}" for i in range(len(bad.sizes))}
    for n, (without, batch) in enumerate(zip(whole, ours, strict=True)):
        following = next((each for each in whole[n:] if each.keys[0] not in lost), None)
        if following is not None:
            assert same(batch, following)
        assert n < 45 or following is not None or without.keys[0] in lost


def test_when_nothing_can_be_read_it_stops(shards: Path, tmp_path: Path):
    index = read_index(shards)
    nowhere = Index(tuple(dataclasses.replace(s, url=str(tmp_path / s.name)) for s in index.shards))
    with pytest.raises(ValueError, match="no image could be read in"):
        take(loader(nowhere, dataclasses.replace(SETTINGS, unreadable="skip")), 1)


# ---- refusals


def test_refuses(shards: Path, tmp_path: Path):
    count = len(read_index(shards).shards)
    for place, message in (
        ({"ranks": 8, "rank": 0, "workers": 2}, rf"{count} shards for 16 streams \(8 ranks x 2 workers\).*--shard-mb"),
        ({"ranks": 2, "rank": 2}, "rank=2, ranks=2"),
        ({"ranks": 2}, "rank=None, ranks=2"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(shards, **place)
    for change, message in (
        ({"base": 64}, None),
        ({"base": 80}, r"base=80: no image covers any of its buckets 80x80, .*; the largest of 45 has 72x72 pixels"),
        ({"base": 4}, "base=4"),
        ({"streams": 3}, None),
    ):
        if message is None:
            loader(shards, dataclasses.replace(SETTINGS, **change))
        else:
            with pytest.raises(ValueError, match=message):
                loader(shards, dataclasses.replace(SETTINGS, **change))
    with pytest.raises(ValueError, match="streams=3: expected a multiple of 2 ranks x 1 workers"):
        loader(shards, dataclasses.replace(SETTINGS, streams=3), rank=0, ranks=2)
    for wrong in ({"batch": 0}, {"seed": -1}, {"shuffle": -1}, {"pages": 1.5}, {"unreadable": "maybe"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            dataclasses.replace(SETTINGS, **wrong)
    for wrong in ({"zoom": 0.5}, {"unscaled": 2}, {"flip": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            FitSettings(**wrong)


def test_an_index_that_is_none(shards: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"index\.jsonl: there is no such file; `pixdec data pack` writes it"):
        read_index(tmp_path)
    lines = (shards / "index.jsonl").read_text().splitlines(keepends=True)
    for name, text in (
        ("cut", "".join(lines)[:-20]),
        ("short", "".join(lines[:-1])),
        ("empty", ""),
        ("other", '{"a": 1}\n'),
        ("list", "[]\n"),
    ):
        (tmp_path / "index.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"index\.jsonl: not a whole index of shards") as refused:
            read_index(tmp_path)
        assert "\n" not in str(refused.value), name
    (tmp_path / "index.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"index\.jsonl: cannot be read"):
        read_index(tmp_path)
