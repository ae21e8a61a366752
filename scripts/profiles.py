"""What the profiles of `pixdec serve` cost, the table of docs/faithful.md: `python -m scripts.profiles`, a minute."""

from pathlib import Path

import tyro

from pixdec.cli import main as pixdec
from pixdec.io.files import write_whole
from pixdec.serve.settings import ServeSettings

METRICS = "psnr", "ssim", "st_lpips"
DOC = Path(__file__).parents[1] / "docs/faithful.md"


def main(kodak: Path = Path("../shared/kodak"), runs: Path = Path("runs/profiles"), doc: Path = DOC) -> None:
    """Measure and write the rows anew.

    Args:
        kodak: the photographs.
        runs: for the whole reports.
        doc: the page with the table.

    Raises:
        SystemExit: something cannot be measured; the page stays as it is.
    """
    text = doc.read_text()
    for name, profile in ServeSettings().profiles.items():
        out = runs / name
        command = ["eval", "pixdec-nano", str(kodak), "-o", str(out), "--encoder", "image", "--crop", "256"]
        command += ["--limit", "8", "--metrics", ",".join(METRICS), "--sigma", str(profile.strength)]
        if status := pixdec(command):
            raise SystemExit(status)
        measured = next(line for line in (out / "table.md").read_text().splitlines() if line.startswith("| pixdec-"))
        figures = measured.split(" | ")[2 : 2 + len(METRICS)]
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` | "))
        text = text.replace(row, f"| `{name}` | {profile.strength:g} | {' | '.join(figures)} |")
    write_whole(doc, text)


if __name__ == "__main__":
    tyro.cli(main)
