"""Prompts × seeds → shards that training reads, by a source of images: here, or on a Ray cluster.

Every image is written as it comes, as a small tar of its own, and a shard is put together of them when all of its
images are there. So a run that ends at any moment goes on with the next image, and nothing is made twice.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import save

from pixdec.generation.prompts import Prompt
from pixdec.generation.ray import on_ray, one_by_one
from pixdec.generation.settings import SEEDS_EACH, SynthesisSettings
from pixdec.io.files import replacing, write_whole
from pixdec.io.json_lines import json_digest
from pixdec.l2p.images import ImageSource
from pixdec.train.data.shards import INDEX, Index, add_file, claim, index_shard, save_index

Open = Callable[[], ImageSource]  # called once in every process that makes images
_PARTS, _IDENTITY = ".parts", "synthesis.json"


@dataclass(frozen=True)
class Wanted:
    """Image number `number` of all."""

    number: int
    prompt: str
    seed: int

    @property
    def key(self) -> str:
        """The name of its files in the shard."""
        return f"{self.number:09}"


def wanted_of(prompts: Sequence[Prompt], settings: SynthesisSettings) -> list[Wanted]:
    """All images, in order.

    Raises:
        ValueError: a prompt that is there twice.
    """
    owners: dict[str, Prompt] = {}
    found = list[Wanted]()
    for number, prompt in enumerate(prompts):
        if (earlier := owners.setdefault(prompt.text, prompt)) is not prompt:
            raise ValueError(f"{prompt.where}: the same prompt as {earlier.where}; keep one")
        first = settings.seed + SEEDS_EACH * number if prompt.seed is None else prompt.seed
        for k in range(settings.images_per_prompt):
            found.append(Wanted(len(found), prompt.text, first + k))
    return found


def synthesise(
    prompts: Sequence[Prompt],
    output: str | Path,
    open_source: Open,
    source: Mapping[str, object],
    settings: SynthesisSettings | None = None,
    ray: str | None = None,
) -> Iterator[tuple[int, int]]:
    """Makes what is missing of all images, and yields (there, of) at the beginning and after every image. Each is
    KEY.png, KEY.json {"captions": {"text"}, "seed", "source"} and KEY.safetensors with "embedding.text" (T,E).

    Args:
        prompts: as `read_prompts` gives them.
        output: the folder of the shards, shard-NNNNNN.tar and index.jsonl.
        open_source: loads what makes the images.
        source: what it is and how it is called; goes into the record of every image.
        settings: seeds, and images in a shard.
        ray: the address of a Ray cluster to make them on (`generation.ray`); None: in this process.

    Raises:
        ValueError: a prompt twice; the folder holds other images.
        OSError: something cannot be written. All that was written stays.
        Exception: what the source raises.
    """
    settings, folder = settings or SynthesisSettings(), Path(output)
    wanted = wanted_of(prompts, settings)
    asked = json_digest({"wanted": [[each.prompt, each.seed] for each in wanted]})
    mine = {"pixdec": "synthesis", "images": len(wanted), "prompts": asked, "shard": settings.shard, **source}
    claim(folder / _IDENTITY, mine, f"{_PARTS}/*.tar")
    (folder / _PARTS).mkdir(exist_ok=True)
    shards = [wanted[first : first + settings.shard] for first in range(0, len(wanted), settings.shard)]
    paths = [folder / f"shard-{i:06}.tar" for i in range(len(shards))]
    left = [{each.key for each in shard if not path.exists()} for shard, path in zip(shards, paths, strict=True)]
    for missing in left:
        missing -= {path.stem for path in (folder / _PARTS).glob("*.tar")} if missing else set()
    todo = [each for shard, missing in zip(shards, left, strict=True) for each in shard if each.key in missing]
    there = len(wanted) - len(todo)
    yield there, len(wanted)
    batches = [todo[first : first + settings.batch] for first in range(0, len(todo), settings.batch)]
    opened = partial(_maker, open_source, dict(source))
    results = on_ray(opened, batches, ray) if ray is not None else one_by_one(opened(), batches) if batches else ()
    for _, made in results:
        if isinstance(made, Exception):
            raise made
        for key, content in made:
            write_whole(folder / _PARTS / f"{key}.tar", content)
            there += 1
            number = int(key) // settings.shard
            left[number].discard(key)
            if not left[number]:
                _assemble(folder, shards[number], paths[number])
            yield there, len(wanted)
    for shard, path in zip(shards, paths, strict=True):
        if not path.exists():  # an earlier run ended between its last image and this
            _assemble(folder, shard, path)
    if not (folder / INDEX).exists():
        index = tuple(index_shard(str(path)).shard for path in paths)
        save_index(Index(index, None, str(source.get("name", "source"))), folder / INDEX)


def members(source: ImageSource, wanted: Sequence[Wanted], facts: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    """(key, the entries of a tar) of each image."""
    prompts = [each.prompt for each in wanted]
    images = source.images(prompts, [each.seed for each in wanted])
    for each, image, text in zip(wanted, images, source.embed(prompts), strict=True):
        picture, tar = io.BytesIO(), io.BytesIO()
        image.save(picture, "PNG")
        note = {"captions": {"text": each.prompt}, "seed": each.seed, "source": facts}
        files = {
            "png": picture.getvalue(),
            "json": json.dumps(note, ensure_ascii=False).encode(),
            "safetensors": save({"embedding.text": text.contiguous()}),
        }
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as opened:
            for extension, data in files.items():
                add_file(opened, f"{each.key}.{extension}", data)
            size = opened.offset  # what follows is the end of the archive
        yield each.key, tar.getvalue()[:size]


def _maker(open_source: Open, facts: Mapping[str, object]) -> Callable[[Sequence[Wanted]], Sequence[tuple[str, bytes]]]:
    """What makes one batch, in whatever process."""
    source = open_source()
    return lambda wanted: list(members(source, wanted, facts))


def _assemble(folder: Path, shard: Sequence[Wanted], path: Path) -> None:
    """One shard of the small tars of its images, which go."""
    parts = [folder / _PARTS / f"{each.key}.tar" for each in shard]
    with replacing(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.flush()
        os.fsync(file.fileno())
    for part in parts:
        part.unlink()
