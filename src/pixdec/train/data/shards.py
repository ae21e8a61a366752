"""WebDataset shards and their index.

A shard is a tar; the files of one image follow each other and share their name up to the first dot: KEY.jpg, KEY.json
(captions), KEY.safetensors (what was computed beforehand). Shards are read as streams, front to back, from wherever
webdataset's `gopen` reads: a path, file:, http:, https:, hf:, gs:, or pipe: and a shell command.

The index, one `index.jsonl` beside the shards, holds the size of every image. With it the whole order of training is
known before a shard is opened (`pixdec.train.data.order`).
"""

import contextlib
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from pixdec.io.files import reason_of, replacing
from pixdec.io.images import READABLE
from pixdec.train.data.reading import upright_size

INDEX = "index.jsonl"
_KIND = "shards"
_BROKEN = (OSError, tarfile.TarError, EOFError, zlib.error)  # what a stream that is cut off or no tar raises


class ShardError(ValueError):
    """A shard cannot be opened or read, or ends too early: one line that names it."""


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar: where it is, and the (width, height) of its images, upright, (N,2) int32; 0 where one is unreadable."""

    url: str
    sizes: NDArray[np.int32]

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
        """What the order of training depends on: names and sizes, not where the shards lie."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.name}\0{len(shard.sizes)}\0".encode())
            digest.update(shard.sizes.astype("<i4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Raw:
    """One image of a shard as it lies there: the name of its files, and their contents by extension ("jpg")."""

    key: str
    members: Mapping[str, bytes]

    def image(self) -> tuple[str, bytes] | None:
        """Extension and contents of its image; None if there is none."""
        pictures = (item for item in self.members.items() if f".{item[0].rpartition('.')[2]}" in READABLE)
        return next(pictures, None)


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
    folder = Path(path).resolve().parent
    lines = [whole]
    for shard in index.shards:
        beside = _is_local(shard.url) and _path(shard.url).resolve().parent == folder
        lines.append({"shard": shard.name if beside else shard.url, "sizes": shard.sizes.tolist()})
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines), "utf-8")


def read_index(source: str | Path) -> Index:
    """The index of a data set: its folder (a path, or any URL that `open_url` takes), or the URL of an .jsonl itself.

    Raises:
        ValueError: one line: there is none, it cannot be read, or it is something else.
    """
    url = str(source)
    if not urlparse(url).path.endswith(".jsonl") and not url.startswith("pipe:"):
        url = f"{url.rstrip('/')}/{INDEX}"
    try:
        with contextlib.closing(open_url(url)) as stream:
            lines = stream.read().decode("utf-8").splitlines()
    except FileNotFoundError as error:
        raise ValueError(
            f"{url}: there is no such file; `pixdec data pack` writes it, and `pixdec data index` for shards made "
            "elsewhere"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{url}: cannot be read ({_reason(error)})") from error
    try:
        whole, *rows = (cast("dict[str, Any]", json.loads(line)) for line in lines)
        shards = tuple(
            Shard(_beside(url, row["shard"]), np.array(row["sizes"], dtype=np.int32).reshape(-1, 2)) for row in rows
        )
        if whole["pixdec"] != _KIND or whole["version"] != 1 or len(shards) != whole["shards"]:
            raise ValueError("its first line does not fit")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{url}: not a whole index of shards ({_reason(error)})") from error
    return Index(shards, whole.get("latents"), whole.get("embeddings"))


def expand(urls: Iterable[str]) -> list[str]:
    """URLs with braces ("shard-{000000..000031}.tar") → each of them, as webdataset does it."""
    found: list[str] = []
    for url in urls:
        if "{" in url:
            found += cast("Any", _webdataset("braceexpand", url)).braceexpand(url)
        else:
            found.append(url)
    return found


def index_shard(url: str) -> Shard:
    """Read a shard through once, for the sizes of its images.

    Raises:
        ShardError: it cannot be read.
    """
    sizes: list[tuple[int, int]] = []
    for _, raw in read_shard(url):
        picture = raw.image()
        sizes.append(upright_size(picture[1]) if picture else (0, 0))
    return Shard(url, np.array(sizes, dtype=np.int32).reshape(-1, 2))


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
        with _opened(url) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
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
        raise ShardError(f"{url}: the shard cannot be read ({_reason(error)})") from error
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


def open_url(url: str) -> IO[bytes]:
    """A stream to read from a path or URL; what is not on this machine is opened by webdataset.

    Raises:
        OSError: it cannot be opened (remote ones may fail later, while they are read or closed).
        ValueError: webdataset is needed and not installed, or does not know the scheme.
    """
    if _is_local(url):
        return _path(url).open("rb")
    return cast("Any", _webdataset("webdataset.gopen", url)).gopen(url, "rb")


def _grouped(tar: tarfile.TarFile, positions: set[int] | None) -> Iterator[Raw | None]:
    """The samples of a tar in order; None, unread, for those at other positions."""
    position, key = -1, None
    members: dict[str, bytes] = {}
    for entry in tar:
        folder, _, file = entry.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not entry.isreg() or not dot or not stem or entry.name.startswith("__"):  # "__…": webdataset's own notes
            continue
        if (name := f"{folder}/{stem}" if folder else stem) != key:
            if key is not None:
                yield Raw(key, members) if positions is None or position in positions else None
            position, key, members = position + 1, name, {}
        if positions is None or position in positions:
            content = tar.extractfile(entry)
            assert content is not None, "a regular file has contents"
            members[extension.lower()] = content.read()
    if key is not None:
        yield Raw(key, members) if positions is None or position in positions else None


def _is_local(url: str) -> bool:
    scheme = urlparse(url).scheme
    return scheme in ("", "file") or len(scheme) == 1  # C:\shards


def _path(url: str) -> Path:
    return Path(url2pathname(urlparse(url).path)) if url.startswith("file:") else Path(url)


def _beside(index: str, name: str) -> str:
    """Where a shard lies that an index names."""
    if ":" in name or PurePosixPath(name).is_absolute():
        return name
    return name if "/" not in index else f"{index.rpartition('/')[0]}/{name}"


def _webdataset(module: str, url: str) -> object:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{url}: reading this needs webdataset: pip install 'pixdec[train]'") from error


def _reason(error: BaseException) -> str:
    """As `reason_of`; where a command failed that webdataset reads through, its exit code."""
    text = reason_of(error)
    code = re.search(r"exit (\d+) \(read\)", text)
    return f"the transfer ended with exit code {code[1]}" if code else text
