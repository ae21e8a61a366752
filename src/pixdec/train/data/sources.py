"""The images that are to be packed: found, read, decoded whole and hashed, a few ahead of whoever takes them."""

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pixdec.io.files import reason_of
from pixdec.io.images import count_frames, images_below, read_image
from pixdec.train.data.captions import beside
from pixdec.train.data.duplicates import Seen, look_hash, pixel_hash


@dataclass(frozen=True)
class PackSettings:
    """What is packed, and how.

    Attributes:
        min_side: images with a shorter side below this many pixels are left out.
        shard_mb: a shard is closed when it holds so many megabytes.
        near: images whose looks differ in at most so many of 63 bits are duplicates (`pixdec.train.data.duplicates`);
            None: only those of the same pixels.
        captions: take captions from the .txt and .json beside an image.
    """

    min_side: int = 0
    shard_mb: float = 500.0
    near: int | None = None
    captions: bool = True

    def __post_init__(self) -> None:
        if self.min_side < 0:
            raise ValueError(f"min_side={self.min_side}: expected at least 0")
        if not self.shard_mb > 0:
            raise ValueError(f"shard_mb={self.shard_mb}: expected more than 0")
        Seen(self.near)


@dataclass(frozen=True)
class Source:
    """A file, and what the shards and the report call it: its path below the input it was found in, with "/"."""

    path: Path
    name: str


@dataclass(frozen=True)
class Skip:
    """A file that is left out, and why."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Found:
    """A file that decoded whole."""

    data: bytes
    image: Image.Image
    captions: dict[str, str]
    pixels: str
    look: int | None


def find_images(inputs: Sequence[str | Path]) -> list[Source]:
    """The files of inputs: images as they are named, folders with all images below them in order of their names;
    hidden ones are left out.

    Raises:
        ValueError: no input, one that does not exist, a folder without images.
    """
    if not inputs:
        raise ValueError("no input; name folders of images")
    found: list[Source] = []
    for given in map(Path, inputs):
        if given.is_file():
            found.append(Source(given, given.name))
            continue
        names = sorted(path.as_posix() for path in images_below(given))
        found += [Source(given / name, name) for name in names]
    return found


def checked(
    sources: Sequence[Source], settings: PackSettings, threads: int | None
) -> Iterator[tuple[Source, Found | Skip]]:
    """The outcome for each file, in order; a few are read ahead."""
    count = threads or min(8, os.cpu_count() or 1)
    waiting: deque[tuple[Source, Future[Found | Skip]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for source in sources:
                waiting.append((source, pool.submit(_check, source, settings)))
                if len(waiting) > 2 * count:
                    earliest, outcome = waiting.popleft()
                    yield earliest, outcome.result()
            while waiting:
                earliest, outcome = waiting.popleft()
                yield earliest, outcome.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check(source: Source, settings: PackSettings) -> Found | Skip:
    """Read and decode one file. Never raises: whatever is wrong with it is its outcome."""
    try:
        data = source.path.read_bytes()
        count = count_frames(io.BytesIO(data))
        if count > 1:
            return Skip("animated", f"{count} frames")
        image = read_image(io.BytesIO(data), name=source.name)
    except (ValueError, OSError) as error:
        return Skip("broken", reason_of(error).removeprefix(f"{source.name}: "))
    if min(image.size) < settings.min_side:
        return Skip("small", f"{image.width}x{image.height} pixels, below {settings.min_side}")
    try:
        captions = beside(source.path) if settings.captions else {}
    except (ValueError, OSError) as error:
        return Skip("caption", reason_of(error))
    return Found(data, image, captions, pixel_hash(image), None if settings.near is None else look_hash(image))
