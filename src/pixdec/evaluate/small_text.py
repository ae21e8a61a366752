"""Documents with small text, to see whether a decoder keeps it legible: rendered from a seed, so that everybody has
the same set (with the same fonts)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pixdec.evaluate.photographs import Photograph
from pixdec.io.files import replacing, write_whole

SIZES = (8, 10, 12, 14, 16, 18, 20, 24)  # pixels high
PAGE = (1024, 512)
LATIN = (
    "DejaVuSerif.ttf",
    "LiberationSans-Regular.ttf",
    "Inter-Regular.otf",
    "DejaVuSansMono.ttf",
    "Lato-Regular.ttf",
    "NotoSerif-Regular.ttf",
)
CHINESE = ("NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "msyh.ttc")
WORDS = """river orange castle window silver garden bottle market pencil yellow stone winter bridge candle forest mirror
travel butter engine pocket summer violin thunder basket island number coffee harbor lantern meadow Quartz Jigsaw Friday
1987 2048 36.5 No.7 Ltd. vowel zephyr query"""
CHARACTERS = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得"
INK = (("white", "black"), ("#f4f1ea", "#26221c"), ("#1d2430", "#e8edf4"), ("#fffbe0", "#7a1f1f"))


@dataclass(frozen=True)
class Script:
    """A font and what is written in it. `file`: its name, "" for Pillow's own; `language`: "latin" or "chinese"."""

    file: str
    language: str

    @property
    def name(self) -> str:
        return Path(self.file).stem.lower() or "pillow"

    def font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """OSError if the system does not have it."""
        return ImageFont.truetype(self.file, size) if self.file else ImageFont.load_default(size)


def find_scripts() -> list[Script]:
    """The fonts of the lists that the system has, in their order, after Pillow's own."""
    found = [Script("", "latin")]
    for script in [*(Script(file, "latin") for file in LATIN), *(Script(file, "chinese") for file in CHINESE)]:
        with contextlib.suppress(OSError):
            script.font(SIZES[0])
            found.append(script)
    return found


def draw_page(
    script: Script, size: int, seed: int, page: tuple[int, int] = PAGE, ink: tuple[str, str] = INK[0]
) -> tuple[Image.Image, str]:
    """A page of text, `size` pixels high, and the text; `ink`: paper and ink."""
    draw, lines, (width, height) = random.Random(seed), list[str](), page
    image, font = Image.new("RGB", page, ink[0]), script.font(size)
    between, words = (" ", WORDS.split()) if script.language == "latin" else ("", list(CHARACTERS))
    for top in range(size, height - 2 * size, round(1.7 * size)):
        line = ""
        while font.getlength(longer := f"{line}{between}{draw.choice(words)}".strip()) < width - 2 * size:
            line = longer
        ImageDraw.Draw(image).text((size, top), line, ink[1], font)
        lines.append(line)
    return image, "\n".join(lines)


def render_pages(folder: Path, pages: int, sizes: Sequence[int] = SIZES, seed: int = 0) -> list[Photograph]:
    """Write so many pages, fonts and sizes in turn, with their texts beside them, where it can be read by Tesseract.

    Returns:
        The pages, named by font and number in a folder for each size.

    Raises:
        OSError: a file cannot be written.
    """
    scripts, made = find_scripts(), list[Photograph]()
    for index in range(pages):
        turn = index // len(sizes)  # so that each size meets each font
        script, size = scripts[(index + turn) % len(scripts)], sizes[index % len(sizes)]
        name = f"{size:02} px/{script.name}-{index:03}.png"
        image, text = draw_page(script, size, seed * 100_000 + index, ink=INK[turn % len(INK)])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if script.language == "latin":
            write_whole((folder / name).with_suffix(".txt"), text)
        with replacing(folder / name) as temporary:
            image.save(temporary)
        made.append(Photograph(folder / name, name))
    return sorted(made, key=lambda each: each.name)
