"""The bundled decoder's training data: photographs and rendered pages, each with low-resolution images of it.

    python -m scripts.nano.data --photos DIR [DIR …] --fonts DIR --taef2 DIR --out runs/nano/data [--teacher 600]
    python -m scripts.nano.data --out runs/nano/data --pack runs/nano/pack --mebibytes 28

For each picture one `.safetensors` file: `high` (H,W,3) and `low` (variants,h,w,3), uint8, H = 4h. Low images
are reduced by one of three filters; variant 0 is left so, the others went through autoencoders, as a generator's do.
With `--teacher N`, N crops of 64 x 64 are also enlarged by Real-ESRGAN x4plus, from variant 0: `teacher.safetensors`.
A file that is there is not made again. `--pack` takes crops out of them, compressed, and with `--vgg` ST-LPIPS's
weights in half precision, for a machine that little can be sent to; `scripts.nano.train` reads either folder.
"""

import argparse
import io
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from pixdec.devices import has_bfloat16_units
from pixdec.encoder import ImageEncoder
from pixdec.evaluate.real_esrgan import load_real_esrgan
from pixdec.io.images import pad_to_multiple, to_tensor
from pixdec.models.taef2 import TAEF2, load_taef2

SCALE = 4
CROP = 64  # of the teacher's inputs
DTYPE = torch.bfloat16 if has_bfloat16_units() else torch.float32  # of the networks that make the data
WORDS = (
    *("the", "of", "and", "light", "river", "glass", "window", "Stone", "paper", "1987", "copper", "harbour", "EXIT"),
    *("quick", "fox", "jumps", "over", "lazy", "dog", "Café", "naïve", "ground", "24.50", "km/h", "Sunday", "market"),
    *("violin", "quartz", "LEFT", "right", "open", "closed", "No.", "7", "&", "Sons", "Ltd.", "blue", "Zürich"),
)


def as_bytes(images: Tensor) -> Tensor:
    """(B,3,H,W) in [-1,1] -> (B,H,W,3) uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def busy(image: Tensor) -> float:
    """How much (H,W,3) varies from pixel to pixel."""
    values = image.float()
    return float(values.diff(dim=0).abs().mean() + values.diff(dim=1).abs().mean())


def pictures(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Each photograph at full size, and at half of it, where detail is as dense as in small pictures."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".webp", ".jpg", ".jpeg", ".png")):
        image = Image.open(path).convert("RGB")
        largest = 2048 / max(image.size)
        if largest < 1:  # JPEG grain goes with it
            image = image.resize([round(side * largest) for side in image.size], Image.Resampling.LANCZOS)
        yield path.stem, image
        yield f"{path.stem}-half", image.resize([side // 2 for side in image.size], Image.Resampling.LANCZOS)


def latin_fonts(folder: Path) -> list[Path]:
    """The fonts of a folder that have Latin letters, and no boxes instead of them."""

    def writes(path: Path) -> bool:
        font = ImageFont.truetype(str(path), 32)
        drawn = Image.new("L", (3 * 64, 64))
        pen = ImageDraw.Draw(drawn)
        for place, letter in enumerate("Agü"):
            pen.text((64 * place, 0), letter, font=font, fill=255)
        return len({drawn.crop((64 * i, 0, 64 * (i + 1), 64)).tobytes() for i in range(3)}) == 3

    return [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".ttf", ".otf") and writes(p)]


def page(seed: int, fonts: list[Path]) -> Image.Image:
    """512 x 512 of text, lines and shapes in any colours, drawn at twice that size."""
    rng = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    paper = rng.choice([(255, 255, 255), (250, 246, 235), (20, 20, 24), colour()])
    image = Image.new("RGB", (1024, 1024), paper)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randrange(0, 14)):
        box = sorted(rng.randrange(1024) for _ in range(2)), sorted(rng.randrange(1024) for _ in range(2))
        (x0, x1), (y0, y1) = box
        kind = rng.randrange(4)
        if kind == 0:
            draw.rectangle((x0, y0, x1, y1), fill=colour())
        elif kind == 1:
            draw.ellipse((x0, y0, x1, y1), fill=colour(), outline=colour(), width=rng.randrange(1, 9))
        elif kind == 2:
            draw.line((x0, y1, x1, y0), fill=colour(), width=rng.randrange(1, 14))
        else:
            draw.polygon([(rng.randrange(1024), rng.randrange(1024)) for _ in range(3)], fill=colour())
    y = rng.randrange(40)
    ink = tuple(255 - c for c in paper) if rng.random() < 0.7 else colour()
    while y < 1000:
        size = rng.choice([24, 28, 32, 36, 40, 44, 48, 56, 64, 90])
        font = ImageFont.truetype(str(rng.choice(fonts)), size) if fonts else ImageFont.load_default(size)
        draw.text((rng.randrange(-40, 200), y), " ".join(rng.choices(WORDS, k=16)), font=font, fill=ink)
        y += round(size * rng.uniform(1.1, 2.2))
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, fillcolor=paper)
    return image.resize((512, 512), Image.Resampling.LANCZOS)


@torch.inference_mode()
def lows(image: Image.Image, taef2: TAEF2, tiny: ImageEncoder | None, rng: random.Random) -> Tensor:
    """(3 or 4,h,w,3) uint8: reduced, and twice through TAEF2, once with noise on the latent, and through the bundled
    autoencoder (which no small text survives, so not for pages)."""
    width, height = (side // SCALE for side in image.size)
    filters = [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX]
    made = [image.resize((width, height), rng.choice(filters)) for _ in range(3)]
    plain = torch.cat([to_tensor(each) for each in made])
    down, right = -height % 8, -width % 8
    padded = F.pad(plain[1:], (0, right, 0, down), mode="replicate").to(DTYPE)
    latent = taef2.encode(padded)
    latent[1] += 0.15 * rng.random() * torch.randn_like(latent[1])
    round_trip = taef2.decode(latent).float()[:, :, :height, :width]
    made = [plain[:1], round_trip]
    if tiny is not None:
        multiple = pad_to_multiple(plain[:1], tiny.space.factor)
        made.append(tiny.decode(tiny.encode(multiple).tensor).float()[:, :, :height, :width])
    return as_bytes(torch.cat(made))


@torch.inference_mode()
def teach(folder: Path, count: int, weights: Path | None) -> None:
    """N crops of photographs (it garbles text), `CROP`², and what Real-ESRGAN makes of them, `low` (N,4,64,64,3) and
    `high` (N,256,256,3), resumable. It sees the plain reduction alone: what an autoencoder damaged is to be mended, not
    drawn sharper."""
    target = folder / "teacher.safetensors"
    done = load_file(target) if target.exists() else {"low": torch.empty(0), "high": torch.empty(0)}
    crops, highs = list(done["low"]), list(done["high"])
    network = load_real_esrgan(weights).to(DTYPE)
    files = sorted(p for p in folder.glob("*.safetensors") if p != target and not p.stem.startswith("page-"))
    for number in range(len(crops), count):
        rng = random.Random(number)
        found = list[Tensor]()
        for _ in range(3):
            with safe_open(rng.choice(files), "pt") as file:
                low = file.get_tensor("low")
            _, height, width, _ = low.shape
            if min(height, width) < CROP:
                continue
            y, x = rng.randrange(height - CROP + 1), rng.randrange(width - CROP + 1)
            found.append(low[:, y : y + CROP, x : x + CROP])
        crop = max(found, key=lambda variants: busy(variants[0]))
        images = crop[:1].permute(0, 3, 1, 2).to(DTYPE) / 127.5 - 1
        crops.append(crop)
        highs.append(as_bytes(network(images.contiguous(memory_format=torch.channels_last)))[0])
        if number % 25 == 24 or number + 1 == count:
            save_file({"low": torch.stack(crops), "high": torch.stack(highs)}, target.with_suffix(".part"))
            target.with_suffix(".part").rename(target)
            print(f"teacher: {number + 1} of {count}", flush=True)


def pack(folder: Path, out: Path, mebibytes: float, vgg: Path | None = None) -> None:
    """Busy crops of 96 x 96 of the pictures, `crops.safetensors`, and as many bytes of the teacher's, where there are
    some, `taught.safetensors`: WebP files as uint8 vectors "high-N" and "low-N-VARIANT". Beside them ST-LPIPS's
    weights, `st-lpips.pth`."""
    out.mkdir(parents=True, exist_ok=True)
    room, teacher = mebibytes * 2**20, folder / "teacher.safetensors"
    if vgg is not None:
        state = torch.load(vgg, map_location="cpu", weights_only=True)
        torch.save({name: value.half() for name, value in state.items()}, out / "st-lpips.pth")
    if teacher.exists():
        made = load_file(teacher)
        taught = _packed(zip(made["high"], made["low"], strict=True), room / 2)
        save_file(taught, out / "taught.safetensors")
        room -= sum(map(len, taught.values()))
    save_file(
        _packed(_busy_crops([p for p in folder.glob("*.safetensors") if p != teacher]), room), out / "crops.safetensors"
    )


def _busy_crops(files: list[Path], side: int = 96) -> Iterator[tuple[Tensor, Tensor]]:
    """(4·side,4·side,3) and its (variants,side,side,3), the busier of two, without end."""
    rng = random.Random(0)
    while True:
        picture = load_file(rng.choice(files))
        _, height, width, _ = picture["low"].shape
        if min(height, width) < side:
            continue
        places = [(rng.randrange(height - side + 1), rng.randrange(width - side + 1)) for _ in range(2)]
        y, x = max(places, key=lambda at: float(picture["low"][0, at[0] :, at[1] :][:side, :side].float().std()))
        high = picture["high"][SCALE * y : SCALE * (y + side), SCALE * x : SCALE * (x + side)]
        yield high, picture["low"][:, y : y + side, x : x + side]


def _packed(pairs: Iterable[tuple[Tensor, Tensor]], room: float) -> dict[str, Tensor]:
    """As many as there is room for, in bytes."""
    packed = dict[str, Tensor]()
    for number, (high, lows) in enumerate(pairs):
        each = {f"high-{number}": _webp(high, quality=92)}
        each |= {f"low-{number}-{i}": _webp(low, lossless=True) for i, low in enumerate(lows)}
        packed |= each
        room -= sum(map(len, each.values()))
        if room <= 0:
            break
    return packed


def _webp(image: Tensor, **options: object) -> Tensor:
    encoded = io.BytesIO()
    Image.fromarray(image.numpy()).save(encoded, "WEBP", **options)
    return torch.frombuffer(bytearray(encoded.getvalue()), dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, nargs="+", default=())
    parser.add_argument("--fonts", type=Path)
    parser.add_argument("--taef2", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--teacher", type=int, default=0)
    parser.add_argument("--real-esrgan", type=Path, help="ncnn weights, if the package is not installed")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--mebibytes", type=float, default=28, help="of pictures")
    parser.add_argument("--vgg", type=Path, help="ST-LPIPS's VGG weights, to pack too")
    given = parser.parse_args()
    if given.pack is not None:
        pack(given.out, given.pack, given.mebibytes, given.vgg)
        return
    if given.taef2 is None or not given.photos:
        parser.error("--photos and --taef2 are needed to make data")
    given.out.mkdir(parents=True, exist_ok=True)
    taef2, tiny = load_taef2(given.taef2).to(DTYPE), ImageEncoder.from_pretrained(dtype=DTYPE)
    fonts = latin_fonts(given.fonts) if given.fonts else []
    pages = ((f"page-{i:03}", page(i, fonts)) for i in range(given.pages))
    sources = [pages, *(pictures(folder) for folder in given.photos)]
    for name, image in (each for source in sources for each in source):
        target = given.out / f"{name}.safetensors"
        if target.exists() or min(image.size) < SCALE * CROP:
            continue
        width, height = (side // SCALE * SCALE for side in image.size)
        image = image.crop((0, 0, width, height))
        high = torch.from_numpy(np.array(image))
        low = lows(image, taef2, None if name.startswith("page-") else tiny, random.Random(name))
        save_file({"high": high, "low": low}, target.with_suffix(".part"))
        target.with_suffix(".part").rename(target)
    if given.teacher:
        teach(given.out, given.teacher, given.real_esrgan)


if __name__ == "__main__":
    main()
