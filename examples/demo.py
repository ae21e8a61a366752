"""A photograph, encoded to a latent of 1/8 its side, and decoded four times larger: beside what a VAE and Lanczos give.

NASA's portrait of Eileen Collins (public domain), which scikit-image carries: 512 x 512 pixels, shrunk to 256 so that
there is a truth to compare with at twice the size, and an image of 1024 to look at.
"""

import time
from pathlib import Path

import torch
from PIL import Image
from skimage import data

from pixdec import ImageEncoder, PixelDecoder
from pixdec.io.images import resize, save_image, to_pil, to_tensor

SIDE = 256
CROP = (360, 60, 760, 460)  # of the large image: the face
OUT = Path("out")


def main() -> None:
    photograph = to_tensor(Image.fromarray(data.astronaut()))
    small = resize(photograph, SIDE, SIDE)
    encoder = ImageEncoder.from_pretrained()
    latent = encoder.encode(small)

    start = time.perf_counter()
    decoder = PixelDecoder.from_pretrained()
    loaded = time.perf_counter()
    image = decoder.decode(latent)[0]
    decoded = time.perf_counter()

    with torch.inference_mode():
        preview = encoder.decode(latent.tensor).clamp(-1, 1)
    lanczos = to_pil(resize(preview, 4 * SIDE, 4 * SIDE, how="lanczos"))[0]

    OUT.mkdir(exist_ok=True)
    side_by_side = Image.new("RGB", (2 * 4 * SIDE, 4 * SIDE + CROP[3] - CROP[1] + 400))
    side_by_side.paste(lanczos, (0, 0))
    side_by_side.paste(image, (4 * SIDE, 0))
    for i, picture in enumerate((lanczos, image)):
        crop = picture.crop(CROP).resize((4 * SIDE, 4 * SIDE * (CROP[3] - CROP[1]) // (CROP[2] - CROP[0])))
        side_by_side.paste(crop, (4 * SIDE * i, 4 * SIDE))
    save_image(image, OUT / "demo.png", settings={"model": decoder.model.name, "seed": 0})
    save_image(
        side_by_side,
        OUT / "demo-side-by-side.png",
        settings={"left": "VAE decode + Lanczos", "right": decoder.model.name},
    )
    print(f"{SIDE}x{SIDE} photograph, latent {tuple(latent.tensor.shape)} -> {image.width}x{image.height} image")
    print(f"loading the decoder {loaded - start:.1f} s, decoding {decoded - loaded:.1f} s on {decoder.device}")
    print(f"left: VAE decode + Lanczos, right: {decoder.model.name}  ->  {OUT / 'demo-side-by-side.png'}")


if __name__ == "__main__":
    main()
