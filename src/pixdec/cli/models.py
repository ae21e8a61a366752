"""`pixdec models`: what decoders there are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pixdec.cli.options import Json
from pixdec.cli.report import print_table


@dataclass(frozen=True)
class Models:
    """List the models that can be named: their latent space, scale, licence, and whether they are on this machine."""

    json: Json = False

    def run(self) -> int:
        from pixdec.weights.catalog import CARDS, located
        from pixdec.weights.pixels import BUNDLED_PIXELS, PIXEL_CARDS, bundled_pixels

        rows = [("NAME", "SPACE", "SCALE", "VERSION", "KIND", "TRAINED FOR", "LICENCE", "ON DISK")]
        for card in CARDS:
            path = located(card)
            if self.json:
                print(json.dumps({**asdict(card), "spaces": card.spaces, "path": None if path is None else str(path)}))
                continue
            trained = "any size"
            if card.sizes is not None:
                low, high = (f"{pixels / 1e6:.1f}" for pixels in (card.sizes.smallest, card.sizes.largest))
                trained = f"{low} MP" if low == high else f"{low}-{high} MP"
            spaces = ", ".join(card.spaces) or "-"
            licence = card.licence.name if card.licence.commercial else f"{card.licence.name} (non-commercial)"
            on_disk = "no" if path is None else "bundled" if card.repository is None else str(path)
            rows.append((card.name, spaces, f"{card.scale}x", card.version, card.kind, trained, licence, on_disk))
        for pixel in PIXEL_CARDS:
            if self.json:
                print(json.dumps({**asdict(pixel), "kind": "pixel"}))
            where = "by its path" if pixel.repository is None else f"see {pixel.repository}"
            rows.append((pixel.name, "-", "1x", "l2p", "pixel", f"{pixel.side}²", pixel.licence.name, where))
        if self.json:
            print(json.dumps({"name": BUNDLED_PIXELS, "kind": "pixel", "path": str(bundled_pixels())}))
        else:
            rows.append((BUNDLED_PIXELS, "-", "1x", "l2p", "pixel", "64²", "Apache-2.0", "bundled"))
            print_table(rows)
        return 0
