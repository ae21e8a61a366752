"""What noise on the latent trades: four pictures decoded at sigma 0, 0.2, 0.4 and 0.6 (docs/faithful.md).

    python examples/faithful.py OUT.webp [FOLDER OF KODAK]

A scanned page, type on paper and struck faces from scikit-image's public pictures, foliage from Kodak's if it is there.
Prints, for each picture and sigma, how far the decoded image, shrunk again, is from what went in.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from skimage import data

from pixdec import ImageEncoder, Latent, PixelDecoder
from pixdec.evaluate.metrics import consistency
from pixdec.io.images import read_image, resize, save_image, to_pil, to_tensor

SIDE = 96
SIGMAS = (0.0, 0.2, 0.4, 0.6)


def pictures(kodak: Path | None) -> dict[str, Image.Image]:
    """Small pictures of SIDE x SIDE, none of which any of our models was trained on."""
    page, text, coins = (Image.fromarray(array()).convert("RGB") for array in (data.page, data.text, data.coins))
    found = {
        "a scanned page": page.crop((0, 0, 96, 96)),
        "type, photographed": text.crop((40, 20, 40 + 144, 20 + 144)).resize((SIDE, SIDE), Image.Resampling.LANCZOS),
        "struck faces": coins.crop((20, 15, 20 + 144, 15 + 144)).resize((SIDE, SIDE), Image.Resampling.LANCZOS),
    }
    if kodak is not None:
        foliage = read_image(kodak / "kodim07.png")
        found["foliage"] = foliage.crop((250, 60, 250 + 240, 60 + 240)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return found


def main(out: Path, kodak: Path | None) -> None:
    encoder, decoder = ImageEncoder.from_pretrained(), PixelDecoder.from_pretrained()
    side = SIDE * decoder.scale
    rows = pictures(kodak)
    sheet = Image.new("RGB", (side * (1 + len(SIGMAS)), side * len(rows)))
    for row, (name, small) in enumerate(rows.items()):
        latent = encoder.encode(to_tensor(small))
        noise = torch.randn(latent.tensor.shape, generator=torch.Generator().manual_seed(1))
        sheet.paste(to_pil(resize(to_tensor(small), side, side, how="lanczos"))[0], (0, row * side))
        for column, sigma in enumerate(SIGMAS, 1):
            noised = Latent(latent.space.add_noise(latent.tensor, sigma, noise), latent.space, sigma, statistics=False)
            image = decoder.decode(noised)[0]
            sheet.paste(image, (column * side, row * side))
            print(f"{name}, sigma {sigma}: consistency {consistency(image, small, scale=decoder.scale):.1f} dB")
    save_image(
        sheet, out, settings={"columns": ["input, Lanczos", *SIGMAS], "rows": list(rows), "model": decoder.model.name}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
