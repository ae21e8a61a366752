"""The examples that the page ships: small photographs, one with its result, and latents at several noise levels.

    python -m scripts.page_examples --photos ../shared/photos/val

The photographs are CC0 and in no training set of ours. Run it again when a bundled model changes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image

from pixdec import ImageEncoder, Latent, PixelDecoder
from pixdec.io.images import to_tensor

WEB = Path(__file__).parents[1] / "src/pixdec/serve/web/examples"
STOPS = (0.0, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Example:
    """A photograph: its file, what it is called, who took it, its size, and where it is cut (a share of what is left
    over)."""

    name: str
    title: str
    file: str
    credit: str
    size: tuple[int, int]
    cut: tuple[float, float] = (0.5, 0.5)

    def image(self, photos: Path) -> Image.Image:
        photo = Image.open(photos / self.file).convert("RGB")
        factor = max(want / have for want, have in zip(self.size, photo.size, strict=True))
        width, height = (round(side / factor) for side in self.size)
        left = round((photo.width - width) * self.cut[0])
        top = round((photo.height - height) * self.cut[1])
        return photo.resize(self.size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))


BUDGIE = "CC0, Budgie Backgrounds"
PHOTOGRAPHS = (
    Example("colosseum", "Colosseum", "roman-colosseum-93038c.webp", BUDGIE, (320, 208), (0.2, 0.5)),
    Example("osprey", "Osprey", "perched-osprey-cfa488.webp", BUDGIE, (256, 256), (0.4, 0.5)),
    Example("courtyard", "Courtyard", "casa-mila-ca3eec.webp", BUDGIE, (288, 192)),
)
LATENTS = Example("lighthouse", "Lighthouse", "william-bout-lighthouse-aa39b3.webp", "CC0, William Bout", (256, 160))


def main(photos: Path = Path("../shared/photos/val"), out: Path = WEB) -> None:
    out.mkdir(parents=True, exist_ok=True)
    decoder, listed = PixelDecoder.from_pretrained(), list[dict[str, object]]()
    for example in PHOTOGRAPHS:
        image = example.image(photos)
        image.save(out / f"{example.name}.webp", quality=88, method=6)
        listed.append(_entry(example, "image"))
    first = Image.open(out / f"{PHOTOGRAPHS[0].name}.webp")
    result = decoder.decode(Latent(to_tensor(first), "rgb"), seed=0)[0]
    result.save(out / f"{PHOTOGRAPHS[0].name}-result.webp", quality=78, method=6)
    steps = decoder.model.default_steps
    listed[0]["result"] = {"file": f"{PHOTOGRAPHS[0].name}-result.webp", "model": decoder.model.name, "steps": steps}

    image = LATENTS.image(photos)
    image.resize((96, 60), Image.Resampling.LANCZOS).save(out / f"{LATENTS.name}.webp", quality=80, method=6)
    clean = ImageEncoder.from_pretrained().encode(to_tensor(image))
    stops = list[dict[str, object]]()
    for sigma in STOPS:
        noisy = clean.noised(sigma, seed=0)
        tensor = noisy.tensor.to(torch.float16)
        half = Latent(tensor, noisy.space, noisy.sigma, statistics=False, encoder=noisy.encoder)
        name = f"{LATENTS.name}-{sigma:.1f}.safetensors"
        half.save(out / name)
        stops.append({"sigma": sigma, "file": name})
    listed.append({**_entry(LATENTS, "latent"), "space": clean.space.name, "stops": stops})
    (out / "index.json").write_text(json.dumps({"examples": listed}, indent=1) + "\n")
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e3:.0f} kB")


def _entry(example: Example, kind: str) -> dict[str, object]:
    width, height = example.size
    return {
        "id": example.name,
        "kind": kind,
        "title": example.title,
        "credit": example.credit,
        "file": f"{example.name}.webp",
        "width": width,
        "height": height,
    }


if __name__ == "__main__":
    tyro.cli(main)
