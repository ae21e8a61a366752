"""Is small text as legible as in the plain enlargement? Words are drawn, shrunk ÷4, enlarged, and read by Tesseract.

    python -m scripts.legibility --model pixdec-nano

Needs Tesseract (`apt-get install tesseract-ocr`). Sizes are those of the output: text 12 pixels high is 3 pixels high
in the small image, which nobody can read.
"""

from collections.abc import Sequence

import torch

from pixdec.decoder import PixelDecoder
from pixdec.devices import has_bfloat16_units
from pixdec.evaluate.metrics.legibility import legibility
from pixdec.evaluate.small_text import Script, draw_page
from pixdec.io.images import resize, to_pil, to_tensor
from pixdec.latents import Latent, get_space
from pixdec.train.data.degrade import degrade

PAGE = (768, 256)


def main(model: str = "pixdec-nano", sizes: Sequence[int] = (12, 24, 32, 48), pages: int = 2, steps: int = 1) -> None:
    """Prints the share of words read at each size, as drawn, by Lanczos, and by `model`."""
    dtype = torch.bfloat16 if has_bfloat16_units() else torch.float32
    decoder = PixelDecoder.from_pretrained(model, device="cpu", dtype=dtype)
    print(f"| height | as drawn | Lanczos | {decoder.model.name}, {steps} steps |\n| ---: | ---: | ---: | ---: |")
    for size in sizes:
        shares = [0.0, 0.0, 0.0]
        for seed in range(pages):
            drawn, text = draw_page(Script("pillow", None, "latin"), size, seed, PAGE)
            low = degrade(to_tensor(drawn), 4)
            plain = to_pil(resize(low, drawn.height, drawn.width, how="lanczos"))[0]
            ours = to_pil(decoder.decode(Latent(low, get_space("rgb")), steps=steps, output="pt") * 2 - 1)[0]
            for i, image in enumerate((drawn, plain, ours)):
                shares[i] += legibility(image, text) / pages
        print(f"| {size} | " + " | ".join(f"{share:.0%}" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
