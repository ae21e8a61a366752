"""Damaged files of every kind that is read: each is read or refused in one line, whatever byte is wrong.

Seeded, so that a failure comes again; PIXDEC_FUZZ=N tries N files of each kind in the place of a few hundred.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save

from pixdec.io import images
from pixdec.latents import Latent, latent_settings
from pixdec.weights.describe import describe
from pixdec.weights.load import load_decoder

COUNT = int(os.environ.get("PIXDEC_FUZZ", "300"))
VALUES = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def latent(path: Path) -> None:
    Latent(VALUES, "sdxl", [0.0, 0.5]).save(path, {"prompt": "a fox", "seed": 3})


def comfy(path: Path) -> None:
    path.write_bytes(save({"latent_tensor": VALUES, "latent_format_version_0": torch.zeros(0)}, {"prompt": "{}"}))


def tensor(path: Path) -> None:
    torch.save(VALUES, path)


def array(path: Path) -> None:
    np.save(path, VALUES.numpy())


STATE = {
    "net.s_embedder.proj.weight": torch.randn(4, 12),
    "net.s_embedder.proj.bias": torch.randn(4).bfloat16(),
    "net.pixel_blocks.0.adaLN_modulation_msa.weight": torch.randn(8, 2).to(torch.float8_e4m3fn),
    "net.pixel_blocks.0.adaLN_modulation_msa.scale_weight": torch.ones(()),
    "net.lq_proj.gate_modules.0.log_alpha": torch.zeros(()),
}
FACTS = {"pixdec": "decoder", "name": "m", "space": "sdxl", "kind": "student", "version": "v1", "times": "[0.9, 0.0]"}


def archive(path: Path) -> None:
    torch.save(STATE, path)


def weights(path: Path) -> None:
    path.write_bytes(save(STATE, {**FACTS, "licence": "none", "settings": '{"backbone": {"hidden": 48}}'}))


def lora(path: Path) -> None:
    pairs = {"backbone.a.lora_A.weight": torch.randn(2, 3), "backbone.a.lora_B.weight": torch.randn(4, 2)}
    facts = {"pixdec": "lora", "name": "l", "base": "m", "space": "sdxl", "shapes": "", "licence": "none"}
    path.write_bytes(save(pairs, {**facts, "settings": '{"rank": 2, "alpha": 1, "layers": ["a"]}'}))


def index(path: Path) -> None:
    (path.parent / "part.safetensors").write_bytes(save(STATE))
    path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(STATE, "part.safetensors")}))


def mutated(data: bytes, random: random.Random) -> bytes:
    """One to four of: bytes changed, cut out, put in, said twice, zeroed; the end cut off; digits changed."""
    made = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(max(1, len(made)))
        length = random.choice((1, 1, 2, 4, 8, 64))
        match random.randrange(7):
            case 0:
                made[at : at + length] = random.randbytes(length)
            case 1:
                del made[at : at + length]
            case 2:
                made[at:at] = random.randbytes(length)
            case 3:
                made[at:at] = made[at : at + length]
            case 4:
                made[at : at + length] = bytes(len(made[at : at + length]))
            case 5:
                del made[at:]
            case _:  # text of a header
                places = [i for i, byte in enumerate(made) if 0x2C <= byte < 0x7E]
                if places:
                    made[random.choice(places)] = random.choice(b'0123456789[]{}",:-eFIU')
    return bytes(made)


def read_latent(path: Path) -> None:
    latent_settings(path)
    loaded = Latent.load(path, space=None if path.suffix == ".safetensors" else "sdxl")
    float(loaded.tensor.float().sum())


def read_weights(path: Path) -> None:
    describe(path)
    load_decoder(path, space="sdxl")


def picture(suffix: str) -> Callable[[Path], None]:
    """A small image with what such files carry: transparency, several frames, a profile."""
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)
    image = Image.fromarray(colours).convert("RGBA" if suffix in ("png", "webp", "tiff") else "RGB")
    frames: dict[str, Any] = {"save_all": True, "append_images": [image]} if suffix in ("gif", "tiff") else {}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def write(path: Path) -> None:
        image.save(path, **frames, **({} if suffix in ("bmp", "gif") else {"icc_profile": profile}))

    write.__name__ = suffix
    return write


def read_picture(path: Path) -> None:
    images.image_size(path)
    images.read_settings(path)
    images.read_picture(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("write", "name", "read"),
    [
        (latent, "a.safetensors", read_latent),
        (comfy, "a.latent", read_latent),
        (tensor, "a.pt", read_latent),
        (array, "a.npy", read_latent),
        (weights, "a.safetensors", read_weights),
        (archive, "a.pth", read_weights),
        (lora, "a.safetensors", read_weights),
        (index, "a.safetensors.index.json", read_weights),
        *((picture(kind), f"a.{kind}", read_picture) for kind in ("png", "jpg", "webp", "tiff", "gif", "bmp")),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, write: Callable[[Path], None], name: str, read: Callable[[Path], None]
) -> None:
    path, chance = tmp_path / name, random.Random(write.__name__)
    write(path)
    data = path.read_bytes()
    for number in range(COUNT):
        path.unlink()  # what is mapped of the one before stays as it was
        path.write_bytes(mutated(data, chance))
        try:
            read(path)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error), (number, error)
            assert type(error) in (ValueError, FileNotFoundError) or type(error).__module__.startswith("pixdec")
        except Exception as error:
            raise AssertionError(f"file {number} of {write.__name__}: {type(error).__name__}: {error}") from error
