"""Which image has been seen already: the same pixels, or nearly the same look."""

import hashlib
from itertools import pairwise

import numpy as np
from PIL import Image

LOOK_BITS = 63
_SIDE, _KEPT = 32, 8
_FLAT = 2.0  # grey levels: an image without more structure than this has no look that could be compared


def pixel_hash(image: Image.Image) -> str:
    """32 hexadecimal digits (BLAKE2b) of an RGB image's size and pixels: the same for every file they are saved in
    without loss."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
    digest.update(np.asarray(image).tobytes())
    return digest.hexdigest()


def look_hash(image: Image.Image) -> int | None:
    """63 bits of how an image looks, for images of 32x32 grey pixels: whether each of the 8x8 lowest frequencies of its
    cosine transform, but the mean, lies above their median (Zauner 2010, "Implementation and benchmarking of perceptual
    image hash functions", section 3.2). Scaling and compression change few bits; None for an image of one tone."""
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    gray = np.asarray(small, dtype=np.float64)
    if gray.std() < _FLAT:
        return None
    k, n = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    cosine = np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE))  # (8,32)
    low = (cosine @ gray @ cosine.T).flatten()[1:]  # (63,)
    return sum(1 << i for i, above in enumerate(low > np.median(low)) if above)


class Seen:
    """The images seen so far, by the name of the first of each.

    `near`: looks that differ in at most so many of 63 bits are the same image; None compares pixels alone. To find
    them, a look is cut into near+1 bands: two looks that differ in `near` bits agree in one band at least.
    """

    def __init__(self, near: int | None = None):
        if near is not None and not 0 <= near < LOOK_BITS // 4:
            raise ValueError(f"near={near}: expected None or 0 to {LOOK_BITS // 4 - 1} bits of {LOOK_BITS}")
        self.near = near
        self._pixels: dict[str, str] = {}
        self._looks: list[tuple[int, str]] = []
        self._bands: dict[tuple[int, int], list[int]] = {}

    def same(self, pixels: str) -> str | None:
        """The name of an image with these pixels."""
        return self._pixels.get(pixels)

    def alike(self, look: int | None) -> str | None:
        """The name of the first image that looks the same."""
        if self.near is None or look is None:
            return None
        candidates = sorted({i for band in self._cut(look) for i in self._bands.get(band, ())})
        for i in candidates:
            if (self._looks[i][0] ^ look).bit_count() <= self.near:
                return self._looks[i][1]
        return None

    def add(self, name: str, pixels: str, look: int | None) -> None:
        """Remember an image."""
        self._pixels[pixels] = name
        if self.near is None or look is None:
            return
        self._looks.append((look, name))
        for band in self._cut(look):
            self._bands.setdefault(band, []).append(len(self._looks) - 1)

    def _cut(self, look: int) -> list[tuple[int, int]]:
        assert self.near is not None
        edges = [LOOK_BITS * i // (self.near + 1) for i in range(self.near + 2)]
        return [(i, look >> low & (1 << high - low) - 1) for i, (low, high) in enumerate(pairwise(edges))]
