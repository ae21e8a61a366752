"""WebDataset shards and their index.

A shard is a tar; the files of one image follow each other and share their name up to the first dot: KEY.jpg, KEY.json
(captions), KEY.safetensors (what was computed beforehand). Shards are read as streams, front to back
(`pixdec.train.data.urls`).

The index, one `index.jsonl` beside the shards, holds the size of every image. With it the whole order of training is
known before a shard is opened (`pixdec.train.data.order`).
"""

import contextlib
import hashlib
import io
import json
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlparse

import numpy as np
from numpy.typing import NDArray

from pixdec.io.files import prepare, reason_of, write_whole
from pixdec.io.images import READABLE, upright_size
from pixdec.train.data.captions import inside
from pixdec.train.data.urls import PIPE, name_in, named_in, open_url

INDEX = "index.jsonl"
SAMPLE_BYTES = 2**30  # the most that the files of one image may have
HEADER_BYTES = 2**20  # and what tar keeps of names beside them
_KIND = "shards"
_NOTES = ("json", "txt", "safetensors")  # besides the image, all that is read of a sample
# What a stream raises that is cut off or no tar.
_BROKEN = (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, HTTPException, ValueError, OverflowError)


class ShardError(ValueError):
    """A shard cannot be opened or read, or ends too early: one line that names it."""


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar: where it is, and the (width, height) of its images, upright, (N,2) int32; 0 where one is left out. Or
    `files` in its place (`pixdec.train.data.folder`)."""

    url: str
    sizes: NDArray[np.int32]
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the URL: what stays when a data set moves."""
        return self.url.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, eq=False)
class Index:
    """All shards of a data set, and what its samples carry besides image and captions.

    `latents`: {"base", "multiple", "scale", "space", "encoder"} if there are precomputed latents; `embeddings`: the
    text encoder of precomputed caption embeddings.
    """

    shards: tuple[Shard, ...]
    latents: Mapping[str, object] | None = None
    embeddings: str | None = None

    @property
    def images(self) -> int:
        return sum(len(shard.sizes) for shard in self.shards)

    def digest(self) -> str:
        """What the order of training depends on: names and sizes, not where the shards lie, nor to how many of them a
        folder's images were dealt."""
        digest, files = hashlib.sha256(), list[tuple[str, list[int]]]()
        for shard in self.shards:
            if shard.files:
                files += zip([path.name for path in shard.files], shard.sizes.tolist(), strict=True)
                continue
            digest.update(f"{shard.name}\0{len(shard.sizes)}\0".encode())
            digest.update(shard.sizes.astype("<i4").tobytes())
        digest.update(repr(sorted(files)).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Raw:
    """One image of a shard as it lies there: the name of its files, and their contents by extension ("jpg")."""

    key: str
    members: Mapping[str, bytes]

    def image(self) -> tuple[str, bytes]:
        """Extension and contents of its image.

        Raises:
            ValueError: one line: there is none, or more than one.
        """
        pictures = [item for item in self.members.items() if _kind(item[0]) == "image"]
        if len(pictures) > 1:
            raise ValueError(
                f"{self.key}: holds {len(pictures)} images, .{', .'.join(name for name, _ in pictures)}; names are cut "
                "at their first dot, so rename the files"
            )
        if not pictures:
            raise ValueError(f"{self.key}: no image among its files .{', .'.join(self.members)}")
        return pictures[0]

    def notes(self) -> Mapping[str, bytes]:
        """What lies beside the image, by the extensions "json", "txt" and "safetensors": KEY.v1.txt for KEY.v1.jpg."""
        stem = self.image()[0].rpartition(".")[0]
        lead = f"{stem}." if stem else ""
        return {name: self.members[lead + name] for name in _NOTES if lead + name in self.members}


def save_index(index: Index, path: str | Path) -> None:
    """Write `index.jsonl`: a line about the whole, then one for each shard. Shards in the same folder are named by name
    alone, so that the folder can move; others by URL."""
    whole: dict[str, object] = {
        "pixdec": _KIND,
        "version": 1,
        "shards": len(index.shards),
        "images": index.images,
        "latents": index.latents,
        "embeddings": index.embeddings,
    }
    lines = [whole]
    lines += [{"shard": name_in(Path(path), shard.url), "sizes": shard.sizes.tolist()} for shard in index.shards]
    write_whole(path, "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines))


def read_index(source: str | Path) -> Index:
    """The index of a data set: its folder (a path, or any URL that `open_url` takes), or the URL of an .jsonl itself.

    Raises:
        ValueError: one line: there is none, it cannot be read, it is something else, or names what it may not.
    """
    url = str(source)
    if not urlparse(url).path.endswith(".jsonl") and not url.startswith(PIPE):
        url = f"{url.rstrip('/')}/{INDEX}"
    try:
        with contextlib.closing(open_url(url)) as stream:
            lines = stream.read().decode("utf-8").splitlines()
    except FileNotFoundError as error:
        raise ValueError(
            f"{url}: there is no such file; `pixdec data pack` writes it, and `pixdec data index` for shards made "
            "elsewhere"
        ) from error
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        raise ValueError(f"{url}: cannot be read ({reason_of(error)})") from error
    try:
        whole, *rows = (cast("dict[str, Any]", json.loads(line)) for line in lines)
        shards = tuple(
            Shard(named_in(url, row["shard"]), np.array(row["sizes"], dtype=np.int32).reshape(-1, 2)) for row in rows
        )
        if whole["pixdec"] != _KIND or whole["version"] != 1 or len(shards) != whole["shards"]:
            raise ValueError("its first line does not fit")
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{url}: not a whole index of shards ({reason_of(error)})") from error
    return Index(shards, whole.get("latents"), whole.get("embeddings"))


def claim(file: Path, identity: Mapping[str, object], parts: str = "shard-*.tar") -> None:
    """Write what decides a folder's shards into a file beside them, or see that it says the same; `parts` are those of
    an unfinished run.

    Raises:
        ValueError: the folder holds shards of something else.
        OSError: it cannot be written to.
    """
    prepare([file])
    folder, earlier = file.parent, cast("Any", None)
    with contextlib.suppress(FileNotFoundError, ValueError):
        earlier = json.loads(file.read_bytes())
    if earlier == identity:
        return
    if any(next(folder.glob(name), None) for name in ("shard-*.tar", INDEX, parts)):
        if not isinstance(earlier, dict):
            raise ValueError(f"{folder}: holds shards that were not made here; name another folder")
        changed = ", ".join(name for name in {**earlier, **identity} if earlier.get(name) != identity.get(name))
        raise ValueError(
            f"{folder}: holds shards of something else ({changed} differ); name another folder, or remove this one"
        )
    write_whole(file, f"{json.dumps(identity, indent=1)}\n")


@dataclass(frozen=True, eq=False)
class Indexed:
    """A shard that was read through: why images of it are left out, one line for each, and how many have no caption."""

    shard: Shard
    left_out: Sequence[str]
    uncaptioned: int


def index_shard(url: str) -> Indexed:
    """Read a shard through once, for the sizes of its images. One that cannot be read, or whose caption cannot, has
    size 0: training leaves it out, as packing would have.

    Raises:
        ShardError: the shard cannot be read.
    """
    sizes: list[tuple[int, int]] = []
    left_out: list[str] = []
    uncaptioned, keys = 0, Counter[str]()
    for _, raw in read_shard(url):
        keys[raw.key] += 1
        try:
            if keys[raw.key] > 1:
                raise ValueError(f"{raw.key}: its files are {keys[raw.key]} times there, or do not follow each other")
            extension, data = raw.image()
            size = upright_size(io.BytesIO(data))
            if 0 in size:
                raise ValueError(f"{raw.key}.{extension}: not an image that can be read")
            uncaptioned += not inside(raw.notes(), raw.key)
        except ValueError as error:
            left_out.append(reason_of(error))
            size = (0, 0)
        sizes.append(size)
    return Indexed(Shard(url, np.array(sizes, dtype=np.int32).reshape(-1, 2)), left_out, uncaptioned)


def read_shard(url: str, wanted: Sequence[int] | None = None) -> Iterator[tuple[int, Raw]]:
    """The images of a shard at these positions (rising; None: all), each with its position; reads no further than the
    last of them, and keeps nothing of the others.

    Raises:
        ShardError: it cannot be opened or read, or ends before the last position.
        ValueError: as `open_url`.
    """
    positions = None if wanted is None else set(wanted)
    left = -1 if wanted is None else len(wanted)
    if left == 0:
        return
    count = 0
    try:
        with _opened(url) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Entry) as tar:
            for position, raw in enumerate(_grouped(tar, positions)):
                count = position + 1
                if raw is not None:
                    yield position, raw
                    left -= 1
                if left == 0:
                    with contextlib.suppress(OSError):  # a command that is not heard to the end says so
                        stream.close()
                    return
    except _BROKEN as error:
        raise ShardError(f"{url}: the shard cannot be read ({reason_of(error)})") from error
    if wanted is not None:
        raise ShardError(f"{url}: the shard ends after {count} images; its index has one at position {max(wanted)}")


@contextlib.contextmanager
def _opened(url: str) -> Generator[IO[bytes]]:
    """A stream that is closed at the end. A remote one knows only then why there was nothing to read."""
    stream = open_url(url)
    try:
        yield stream
    except _BROKEN as error:
        try:
            stream.close()
        except OSError as reason:
            raise reason from error
        raise
    except GeneratorExit:
        with contextlib.suppress(OSError):
            stream.close()
        raise
    stream.close()


class _Entry(tarfile.TarInfo):
    """An entry whose name and notes are of a size that one can hold."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Entry":
        entry = super().frombuf(buf, encoding, errors)
        if entry.size < 0 or (not entry.isfile() and entry.size > HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {entry.size} bytes")
        return cast("_Entry", entry)


def _grouped(tar: tarfile.TarFile, positions: set[int] | None) -> Iterator[Raw | None]:
    """The samples of a tar in order; None, unread, for those at other positions."""
    position, key, held = -1, None, 0
    members: dict[str, bytes] = {}
    for entry in tar:
        folder, _, file = entry.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        # Hidden files, and webdataset's own notes "__…"; a folder is none.
        if entry.isdir() or not dot or not stem or entry.name.startswith("__"):
            continue
        if (name := f"{folder}/{stem}" if folder else stem) != key:
            if key is not None:
                yield Raw(key, members) if positions is None or position in positions else None
            position, key, held, members = position + 1, name, 0, {}
        if positions is None or position in positions:
            extension = extension.lower()
            while extension in members:  # the same name twice, and links, are for `Raw.image` to refuse
                extension = f"again.{extension}"
            members[extension] = b""
            if entry.isreg() and _kind(extension) != "other":
                held += entry.size
                if held > SAMPLE_BYTES:
                    raise tarfile.ReadError(f"{entry.name}: more than {SAMPLE_BYTES >> 20} MiB for one image")
                content = tar.extractfile(entry)
                assert content is not None, "a regular file has contents"
                members[extension] = content.read()
    if key is not None:
        yield Raw(key, members) if positions is None or position in positions else None


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file of no owner, and of the year 1970: the same bytes always."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _kind(extension: str) -> str:
    """Of a member of a sample: "image", one of `_NOTES`, or "other"."""
    last = extension.rpartition(".")[2]
    return "image" if f".{last}" in READABLE else last if last in _NOTES else "other"
