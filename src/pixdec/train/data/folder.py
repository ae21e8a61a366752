"""A plain folder of images, read as if it were packed, with the captions beside them."""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path

import numpy as np

from pixdec.io.files import reason_of
from pixdec.io.images import count_frames, upright_size
from pixdec.train.data.buckets import Bucket, assign
from pixdec.train.data.shards import Index, Raw, Shard, ShardError
from pixdec.train.data.sources import find_images

TOGETHER = 64  # images of a shard, which are read one after the other
MOST_NAMED = 5  # images that are left out


def folder_index(folder: str | Path, least: int = 1, choice: Sequence[Bucket] = (), together: int = TOGETHER) -> Index:
    """The images below a folder, dealt out in turn to `least` shards or more, of `together` images at most. What
    cannot be read, is animated, or covers no bucket of the `choice` is named in a warning and left out.

    Raises:
        ValueError: there are none, or none that can be used.
    """
    found = find_images([folder])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        looks = list(pool.map(_look, [source.path for source in found]))
    covers = assign(np.array([size for size, _ in looks]), choice) >= 0 if choice else np.ones(len(looks), dtype=bool)
    kept, left_out = list[tuple[Path, tuple[int, int]]](), list[str]()
    for source, (size, why), large in zip(found, looks, covers, strict=True):
        if why or not large:
            reason = why or f"{size[0]}x{size[1]} pixels, smaller than {min(choice)}"
            left_out.append(f"{source.name} ({reason})")
        else:
            kept.append((source.path, size))
    named = ", ".join(left_out[:MOST_NAMED]) + (" and others" if len(left_out) > MOST_NAMED else "")
    if not kept:
        raise ValueError(f"{folder}: none of {len(found)} images can be used: {named}")
    if left_out:
        warnings.warn(f"{folder}: {len(left_out)} of {len(found)} images are left out: {named}", stacklevel=2)
    count = min(len(kept), max(least, ceil(len(kept) / together)))
    shards = list[Shard]()
    for number in range(count):
        part = kept[number::count]
        sizes = np.array([size for _, size in part], dtype=np.int32)
        shards.append(Shard(f"{folder}/{number:06}", sizes, tuple(path for path, _ in part)))
    return Index(tuple(shards))


def read_files(files: Sequence[Path], wanted: Sequence[int]) -> Iterator[tuple[int, Raw]]:
    """The images at these positions, each with the captions beside it, as `read_shard` gives them.

    Raises:
        ShardError: a file cannot be read.
    """
    for position in wanted:
        path = files[position]
        members = {path.suffix.lower().removeprefix("."): path}
        members |= {name: path.with_suffix(f".{name}") for name in ("json", "txt")}
        try:
            yield (
                position,
                Raw(
                    str(path.with_suffix("")),
                    {name: each.read_bytes() for name, each in members.items() if each.exists()},
                ),
            )
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({reason_of(error)})") from error


def _look(path: Path) -> tuple[tuple[int, int], str]:
    """(width, height) of an image, and why it is left out, "" if it is not."""
    size, frames = upright_size(path), count_frames(path)
    return size, "cannot be read" if 0 in size else f"animated, {frames} frames" if frames > 1 else ""
