"""Is small text as legible as in the plain enlargement? Words are drawn, shrunk ÷4, enlarged, and read by Tesseract.

    python -m scripts.legibility --model pixdec-nano

Needs Tesseract (`apt-get install tesseract-ocr`). Sizes are those of the output: text 12 pixels high is 3 pixels high
in the small image, which nobody can read.
"""

import difflib
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from pixdec.decoder import PixelDecoder
from pixdec.devices import has_bfloat16_units
from pixdec.io.images import resize, to_pil, to_tensor
from pixdec.latents import Latent, get_space
from pixdec.train.data.degrade import degrade

WORDS = re.findall(
    r"\w+",
    """river orange castle window silver garden bottle market pencil yellow stone winter bridge candle forest mirror
    travel butter engine pocket summer violin thunder basket island number coffee""",
)


def page(size: int, seed: int, width: int = 768, height: int = 256) -> tuple[Image.Image, str]:
    """Lines of words, `size` pixels high, and the text."""
    draw, lines = random.Random(seed), list[str]()
    image, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(size)
    for top in range(size // 2, height - 2 * size, 2 * size):
        line = ""
        while font.getlength(longer := f"{line} {draw.choice(WORDS)}".strip()) < width - 2 * size:
            line = longer
        ImageDraw.Draw(image).text((size, top), line, "black", font)
        lines.append(line)
    return image, "\n".join(lines)


def read(image: Image.Image) -> str:
    """What Tesseract reads. ValueError when it is not installed."""
    if shutil.which("tesseract") is None:
        raise ValueError("tesseract: not installed; `apt-get install tesseract-ocr`")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        image.save(path)
        command = ["tesseract", str(path), "-", "--psm", "6"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def legible(text: str, seen: str) -> float:
    """The share of the words that were read whole, in their order."""
    matcher = difflib.SequenceMatcher(None, text.split(), seen.split(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(text.split())


def main(model: str = "pixdec-nano", sizes: Sequence[int] = (12, 24, 32, 48), pages: int = 2, steps: int = 4) -> None:
    """Prints the share of words read at each size, as drawn, by Lanczos, and by `model`."""
    dtype = torch.bfloat16 if has_bfloat16_units() else torch.float32
    decoder = PixelDecoder.from_pretrained(model, device="cpu", dtype=dtype)
    print(f"| height | as drawn | Lanczos | {decoder.model.name}, {steps} steps |\n| ---: | ---: | ---: | ---: |")
    for size in sizes:
        shares = [0.0, 0.0, 0.0]
        for seed in range(pages):
            drawn, text = page(size, seed)
            low = degrade(to_tensor(drawn), 4)
            plain = to_pil(resize(low, drawn.height, drawn.width, how="lanczos"))[0]
            ours = to_pil(decoder.decode(Latent(low, get_space("rgb")), steps=steps, output="pt") * 2 - 1)[0]
            for i, image in enumerate((drawn, plain, ours)):
                shares[i] += legible(text, read(image)) / pages
        print(f"| {size} | " + " | ".join(f"{share:.0%}" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
