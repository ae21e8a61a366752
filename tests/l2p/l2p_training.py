"""A small pixel model to train, and shards of images with embedded prompts of several lengths."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from small import TEXT, saved

from pixdec.l2p import open_weights, save_weights, transplant
from pixdec.train.build_pixels import build_pixels
from pixdec.train.data.shards import INDEX, Index, index_shard, save_index
from pixdec.train.recipes import PixelRecipe, l2p_nano
from pixdec.train.runs import RunOptions


def recipe(**loop) -> PixelRecipe:
    made = l2p_nano()
    return replace(
        made,
        loop=replace(made.loop, **{"steps": 4, "batch": 2, "parts": 2, "warmup": 1, "learning_rate": 1e-4, **loop}),
        data=replace(made.data, base=32, shuffle=4, streams=2),
        folder=replace(made.folder, save_every=2),
    )


def start_in(folder: Path) -> Path:
    made, _ = transplant(open_weights(saved(folder / "transformer")), 16)
    save_weights(made, folder / "start.safetensors")
    return folder / "start.safetensors"


def shards_in(folder: Path, count: int = 8) -> Path:
    """A shard as `pixdec l2p synthesise` is to write them: image, prompt and seed, embedding."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shards = []
    for name in ("shard-000000.tar", "shard-000001.tar"):
        with tarfile.open(folder / name, "w") as tar:
            for i in range(count // 2):
                for suffix, data in _sample(i, rng).items():
                    entry = tarfile.TarInfo(f"{name[:12]}-{i:06}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        shards.append(index_shard(str(folder / name)).shard)
    save_index(Index(tuple(shards), None, "small"), folder / INDEX)
    return folder


def _sample(i: int, rng: np.random.Generator) -> dict[str, bytes]:
    image = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image, "PNG")
    text = torch.from_numpy(rng.standard_normal((2 + i % 3, TEXT), dtype=np.float32))
    facts = {"captions": {"text": f"image {i}"}, "seed": int(rng.integers(1000))}
    return {"png": image.getvalue(), "json": json.dumps(facts).encode(), "safetensors": save({"embedding.text": text})}


def run_in(folder: Path, output: str, changed: PixelRecipe | None = None):
    options = RunOptions(start=str(folder / "start.safetensors"))
    return build_pixels(changed or recipe(), folder / "shards", folder / output, options)
