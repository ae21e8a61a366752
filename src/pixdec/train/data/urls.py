"""Where shards and their index lie, and how what lies there is opened: paths, file:, http:, https:, hf:, gs:.

A person may also give the command line `pipe:` and a shell command that writes an index. What a file names never
reaches a shell: it is a path beside that file, or a URL of one of `SCHEMES`.
"""

import re
import subprocess
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlparse
from urllib.request import url2pathname

SCHEMES = ("file", "http", "https", "hf", "gs")
PIPE = "pipe:"
_SECONDS = 60  # without an answer, after which a server is given up
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def open_url(url: str) -> IO[bytes]:
    """A stream to read from a path or URL, or from a command after "pipe:".

    Raises:
        OSError: it cannot be opened, or is no regular file (commands may fail later, while they are read or closed).
        ValueError: a scheme that is not known here.
    """
    scheme = _scheme(url)
    if url.startswith(PIPE):
        return cast("IO[bytes]", _Command(url.removeprefix(PIPE)))
    if is_local(url):
        path = local_path(url)
        if path.exists() and not path.is_file():
            raise OSError(f"{path} is no regular file")
        return path.open("rb")
    if scheme in ("http", "https"):
        return urllib.request.urlopen(url, timeout=_SECONDS)
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return cast("IO[bytes]", cast("Any", HfFileSystem()).open(url, "rb"))
    if scheme == "gs":
        return cast("IO[bytes]", _Command(["gsutil", "cat", url]))
    raise ValueError(f"{url}: expected a path or a URL that begins with {', '.join(SCHEMES)}")


def named_in(index: str, name: object) -> str:
    """Where a shard lies that the index at `index` names.

    Raises:
        ValueError: it is neither a path beside the index nor a URL of `SCHEMES`; or a file of this machine that an
            index from elsewhere names.
    """
    if not isinstance(name, str):
        raise ValueError(f"names the shard {name!r}; expected a text")
    scheme = _scheme(name)
    if scheme and scheme in SCHEMES and (scheme != "file" or is_local(index)):
        return name
    parts = re.split(r"[/\\]", name)
    if scheme or ".." in parts or not parts[0] or parts[0][1:] == ":":
        raise ValueError(
            f"names the shard {name!r}; expected a path beside the index or a URL that begins with "
            f"{', '.join(SCHEMES)}: make the index again with `pixdec data index`"
        )
    if index.startswith(PIPE):
        raise ValueError(f"names the shard {name!r}, and beside a command lies nothing; expected URLs")
    return name if "/" not in index else f"{index.rpartition('/')[0]}/{name}"


def name_in(index: Path, url: str) -> str:
    """What an index calls a shard: its name if it lies in the same folder, so that the folder can move; else its URL.

    Raises:
        ValueError: it is the output of a command, which no index may name.
    """
    if url.startswith(PIPE):
        raise ValueError(f"{url}: an index names paths and URLs, no commands; index a copy of the shard")
    if not is_local(url):
        return url
    path = local_path(url).resolve()
    return path.name if path.parent == index.resolve().parent else path.as_uri()


def is_local(url: str) -> bool:
    """Whether it is a file of this machine."""
    return _scheme(url) in ("", "file")


def local_path(url: str) -> Path:
    """The path of a local file."""
    return Path(url2pathname(urlparse(url).path)) if url.startswith("file:") else Path(url)


def expand(urls: Iterable[str]) -> list[str]:
    """Braces for many: "shard-{000..031}.tar" counts, with zeros in front; "{a,b}.tar" lists."""
    found: list[str] = []
    for url in urls:
        match = _BRACES.search(url)
        if match is None:
            found.append(url)
            continue
        first, last, names = match.groups()
        each = names.split(",") if names else [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
        found += expand(url[: match.start()] + one + url[match.end() :] for one in each)
    return found


def _scheme(url: str) -> str:
    """In lower case; "" for a path, such as C:/shards."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", url)
    return match[1].lower() if match else ""


class _Command:
    """What a command writes. A text is one for the shell, a list is none."""

    def __init__(self, command: str | Sequence[str]):
        self.process = subprocess.Popen(command, shell=isinstance(command, str), stdout=subprocess.PIPE)
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(size)
        self.ended = size < 0 or len(data) < size
        return data

    def close(self) -> None:
        """Raises OSError if it was heard to the end and failed."""
        assert self.process.stdout is not None
        self.process.stdout.close()
        if not self.ended:
            self.process.terminate()
        code = self.process.wait()
        if code and self.ended:
            raise OSError(f"the transfer ended with exit code {code}")
