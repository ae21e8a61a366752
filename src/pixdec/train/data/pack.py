"""Folders of images, with captions if there are, into WebDataset shards.

Every image is decoded whole before it is packed, and packed as the bytes of its file. A shard appears under its name
when it is complete, and what it cost to make it (hashes, images left out) lies beside it until the end: a run that was
killed at any moment goes on behind the last whole shard, and ends with the same files, bit for bit.
"""

import hashlib
import json
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from pixdec.io.files import reason_of, replacing, write_whole
from pixdec.io.images import to_tensor
from pixdec.io.json_lines import append_line, read_lines
from pixdec.train.data.buckets import assign, buckets
from pixdec.train.data.captions import PLAIN
from pixdec.train.data.degrade import degrade
from pixdec.train.data.duplicates import Seen
from pixdec.train.data.fit import CENTER, fit
from pixdec.train.data.shards import INDEX, Index, Shard, add_file, claim, read_index, save_index
from pixdec.train.data.sources import Found, PackSettings, Skip, Source, checked, find_images

REPORT = "report.jsonl"
_STATE = ".packing.jsonl"  # a record for each whole shard; gone when all is done
_IDENTITY = "pack.json"


@dataclass(frozen=True)
class LatentEncoder:
    """Latents to precompute: of the middle of each image in its bucket at `base`, shrunk by `scale` (`degrade`).

    encode: (1,3,h,w) in [-1,1] -> a clean normalised latent (1,C,h/factor,w/factor); kept in its dtype.
    name, space: what encodes, and into which latent space; kept in the index.
    """

    encode: Callable[[Tensor], Tensor]
    name: str
    space: str
    base: int = 2048
    scale: int = 4
    multiple: int = 64

    def facts(self) -> dict[str, object]:
        """What the index says about the latents."""
        names = ("base", "multiple", "scale", "space")
        return {**{name: getattr(self, name) for name in names}, "encoder": self.name}


@dataclass(frozen=True)
class CaptionEmbedder:
    """Caption embeddings to precompute. embed: captions -> (B,T,E); name: what embeds, kept in the index. An image
    without a caption gets the embedding of the empty one."""

    embed: Callable[[Sequence[str]], Tensor]
    name: str


@dataclass(frozen=True)
class Progress:
    """How far a packing is: files looked at, of how many; images packed; shards written whole; files left out, by
    reason."""

    done: int
    total: int
    images: int
    shards: int
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class _Extras:
    """What is precomputed."""

    latents: LatentEncoder | None
    embeddings: CaptionEmbedder | None

    def facts(self) -> dict[str, Any]:
        """What the index says about it."""
        return {
            "latents": None if self.latents is None else self.latents.facts(),
            "embeddings": None if self.embeddings is None else self.embeddings.name,
        }


@dataclass
class _Record:
    """A whole shard: what of the inputs it settles (up to number `stop`, those left out included)."""

    stop: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    seen: list[tuple[str, str, int | None]] = field(default_factory=list[tuple[str, str, int | None]])
    skipped: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


def pack(
    inputs: Sequence[str | Path],
    output: str | Path,
    settings: PackSettings | None = None,
    *,
    latents: LatentEncoder | None = None,
    embeddings: CaptionEmbedder | None = None,
    threads: int | None = None,
) -> Iterator[Progress]:
    """Pack images into the folder `output`; yields after every file. Called again, it goes on, or does nothing if all
    is done.

    Writes shard-NNNNNN.tar, each image as KEY.EXT, its own bytes, and KEY.json {"source", "width", "height",
    "captions"}, with KEY.safetensors if something is precomputed ("latent", "embedding.NAME" for each caption);
    index.jsonl, the sizes of all images, last; report.jsonl, a line {"source", "reason", "detail"} for each file left
    out; pack.json, what was packed. Reasons: broken, animated, small, caption (a caption file that is unreadable),
    duplicate, near-duplicate, latent (there is no bucket for it, or the encoder refuses it).

    threads: how many files are read ahead; None: one for each processor, 8 at most.

    Raises:
        ValueError: no images; none of them is packed; `output` holds a packing of something else.
        OSError: `output` cannot be written to.
    """
    settings, extras = settings or PackSettings(), _Extras(latents, embeddings)
    sources, folder = find_images(inputs), Path(output)
    claim(folder / _IDENTITY, _identity(sources, settings, extras))
    for left in folder.iterdir():  # by a killed run, half-written
        if re.fullmatch(r"\.[0-9a-f]{16}\.(tar|jsonl?)", left.name):  # as `replacing` names them
            left.unlink()
    state = folder / _STATE
    if (folder / INDEX).exists():
        state.unlink(missing_ok=True)  # of a run that ended between its last file and this
        yield _finished(folder, len(sources))
        return
    records = read_lines(state, lambda value: _Record(**value), f"is damaged; remove {state} to pack from the start")
    seen = Seen(settings.near)
    for name, pixels, look in (each for record in records for each in record.seen):
        seen.add(name, pixels, look)
    record, size, start = _Record(), 0, records[-1].stop if records else 0
    skipped = Counter(each["reason"] for record in records for each in record.skipped)
    images = sum(len(record.sizes) for record in records)

    def settle(number: int) -> None:
        record.stop = number
        append_line(state, json.dumps(asdict(record)))
        records.append(record)

    # Reading images in threads can leave the filters of warnings in disorder: they are put back at the end.
    with warnings.catch_warnings(), ExitStack() as opened:
        tar: tarfile.TarFile | None = None
        for number, (source, found) in enumerate(checked(sources[start:], settings, threads), start):
            members = _members(source, found, seen, extras)
            if isinstance(members, Skip):
                record.skipped.append({"source": source.name, "reason": members.reason, "detail": members.detail})
                skipped[members.reason] += 1
            else:
                assert isinstance(found, Found)
                if tar is not None and size >= settings.shard_mb * 1e6:
                    opened.close()
                    settle(number)
                    tar, record, size = None, _Record(), 0
                if tar is None:
                    temporary = opened.enter_context(replacing(folder / f"shard-{len(records):06}.tar"))
                    tar = opened.enter_context(tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT))
                for extension, data in members.items():
                    add_file(tar, f"{images:09}.{extension}", data)
                    size += len(data)
                seen.add(source.name, found.pixels, found.look)
                record.seen.append((source.name, found.pixels, found.look))
                record.sizes.append(found.image.size)
                images += 1
            yield Progress(number + 1, len(sources), images, len(records), dict(skipped))
    if not images:
        first = record.skipped[0]
        raise ValueError(
            f"none of {len(sources)} images can be packed; the first, {first['source']}: {first['reason']}, "
            f"{first['detail']}"
        )
    if record.sizes:
        settle(len(sources))
    _finish(folder, records, extras)
    yield Progress(len(sources), len(sources), images, len(records), dict(skipped))


def _members(source: Source, found: Found | Skip, seen: Seen, extras: _Extras) -> dict[str, bytes] | Skip:
    """The files of one image in the shard, by extension, or why it is left out."""
    if isinstance(found, Skip):
        return found
    if same := seen.same(found.pixels):
        return Skip("duplicate", f"the same pixels as {same}")
    if alike := seen.alike(found.look):
        return Skip("near-duplicate", f"looks like {alike}")
    width, height = found.image.size
    facts = {"source": source.name, "width": width, "height": height, "captions": found.captions}
    members = {
        source.path.suffix.lower().removeprefix("."): found.data,
        "json": json.dumps(facts, ensure_ascii=False).encode(),
    }
    tensors: dict[str, Tensor] = {}
    if extras.latents is not None:
        latent = _latent(found.image, extras.latents)
        if isinstance(latent, Skip):
            return latent
        tensors["latent"] = latent
    if extras.embeddings is not None:
        captions = found.captions or {PLAIN: ""}
        embedded = extras.embeddings.embed(list(captions.values())).cpu()
        tensors |= {f"embedding.{name}": each.clone() for name, each in zip(captions, embedded, strict=True)}
    if tensors:
        members["safetensors"] = save(tensors)
    return members


def _latent(image: Image.Image, latents: LatentEncoder) -> Tensor | Skip:
    choice = buckets(latents.base, latents.multiple)
    bucket = int(assign(np.array([image.size]), choice)[0])
    if bucket < 0:
        return Skip("latent", f"{image.width}x{image.height} pixels cover no bucket of base {latents.base}")
    part = to_tensor(fit(image, choice[bucket], CENTER, np.random.default_rng(0)))
    try:
        return latents.encode(degrade(part, latents.scale))[0].cpu().contiguous()
    except ValueError as error:
        return Skip("latent", reason_of(error))


def _identity(sources: Sequence[Source], settings: PackSettings, extras: _Extras) -> dict[str, object]:
    """What decides the shards: two packings with the same identity are the same. Files count by name and size."""
    digest = hashlib.sha256()
    for source in sources:
        sizes = [_size(source.path)]
        if settings.captions:
            sizes += [_size(source.path.with_suffix(suffix)) for suffix in (".json", ".txt")]
        digest.update(f"{source.name}\0{sizes}\0".encode("utf-8", errors="surrogateescape"))
    return {
        "pixdec": "pack",
        "version": 1,
        "files": len(sources),
        "inputs": digest.hexdigest(),
        **asdict(settings),
        **extras.facts(),
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _finish(folder: Path, records: Sequence[_Record], extras: _Extras) -> None:
    lines = (json.dumps(each, ensure_ascii=False) for record in records for each in record.skipped)
    write_whole(folder / REPORT, "".join(f"{line}\n" for line in lines))
    shards = tuple(
        Shard(str(folder / f"shard-{i:06}.tar"), np.array(record.sizes, dtype=np.int32))
        for i, record in enumerate(records)
    )
    save_index(Index(shards, **extras.facts()), folder / INDEX)
    (folder / _STATE).unlink(missing_ok=True)


def _finished(folder: Path, total: int) -> Progress:
    """The end of a packing that was done before."""
    index = read_index(folder)
    skipped = Counter(json.loads(line)["reason"] for line in (folder / REPORT).read_text("utf-8").splitlines())
    return Progress(total, total, index.images, len(index.shards), skipped)
