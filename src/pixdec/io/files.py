"""Files: written whole or not at all, found below a folder; and errors, of files or not, in one line.

Every file this package writes passes through `replacing`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

_WHOLE = 64 << 20  # files of up to 64 MiB are read whole for their digest,
_BLOCK, _BLOCKS = 16 << 10, 512  # larger ones in 512 blocks of 16 KiB, spread evenly from first to last byte


@contextmanager
def replacing(path: str | Path) -> Generator[Path]:
    """Yield a temporary path to write to; it takes the place of `path` when the block ends without an error.

    The temporary file lies in the same folder (so that the last step is one atomic rename) and has the same suffix (so
    that writers that look at it choose the same format). On any error, an interruption included, it is removed and
    what stood at `path` before is untouched. A symbolic link is followed: its target is replaced, the link stays.

    Only write inside the block: an `OSError` that leaves it is taken for a failure to write.

    Raises:
        OSError: `path` cannot be written (no such folder, no permission, disk full, a folder or device stands there);
            one line that names `path`, of the same class and with the same `errno` as the cause.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise OSError(f"cannot write {path}: it is {kind}; name a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {target.parent} does not exist; create it first")
    # A fresh name that the writer creates itself, so that the file gets the permissions of the user's umask.
    temporary = target.parent / f".{secrets.token_hex(8)}{target.suffix}"
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        clear = type(error)(f"cannot write {path}: {error.strerror or error}")
        clear.errno = error.errno
        raise clear from error
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file whole or not at all (`replacing`); a text in UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def cache_folder() -> Path:
    """Where what can be made again is kept: `$PIXDEC_CACHE`, else `pixdec` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    if chosen := os.environ.get("PIXDEC_CACHE"):
        return Path(chosen).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative XDG_CACHE_HOME is to be ignored (XDG base directory specification).
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "pixdec"


def files_below(folder: Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """The files below a folder, at any depth, with one of these suffixes (".png", lower case; theirs may be upper):
    relative to the folder and in order, without those that are hidden or in hidden folders. A folder that cannot be
    read is a warning."""
    found: list[Path] = []

    def unreadable(error: OSError) -> None:
        reason = error.strerror or error
        warnings.warn(f"{error.filename}: this folder cannot be read and is left out ({reason})", stacklevel=4)

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place) / name for name in names if not name.startswith("."))
        found += [
            path.relative_to(folder)
            for path in paths
            if (suffixes is None or path.suffix.lower() in suffixes) and path.is_file()
        ]
    return sorted(found)


def prepare(targets: Iterable[Path]) -> None:
    """Create the folders of the outputs, and see that they can be written to.

    Raises:
        OSError: one line: a folder that cannot be made or written to, or stands where an output should go.
    """
    targets = list(targets)
    for folder in dict.fromkeys(target.parent for target in targets):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot create the folder {folder}: {error.strerror or error}") from error
        if not os.access(folder, os.W_OK):
            raise OSError(f"cannot write to the folder {folder}: no permission")
    for target in targets:
        if target.is_dir():
            raise OSError(f"cannot write {target}: it is a folder; name a file")


def digest_of(file: Path) -> bytes:
    """SHA-256 of a file's size and content, which is sampled where it has more than 64 MiB: a fine-tuned, merged or
    quantized copy of weights differs, a single edited number may not."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
        else:
            for block in range(_BLOCKS):
                stream.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.digest()


def reason_of(error: object) -> str:
    """All that an error (or a warning) says on one line, to stand in a message of ours; its class if it says nothing.

    An `OSError` of the system gives its reason alone, without number and file.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def one_line(message: object) -> str:
    """An error, warning or text on one line. An OSError of the system reads "file: reason", without its number."""
    if isinstance(message, OSError) and message.strerror and message.filename is not None:
        return f"{message.filename}: {message.strerror}"
    return reason_of(message)


def first_line_of(error: BaseException) -> str:
    """The first line of an error of a library that explains itself at length; its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
