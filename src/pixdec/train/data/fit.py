"""From an image of any size to one of its bucket's size: shrunk and cropped, never enlarged."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pixdec.io.arguments import check_range
from pixdec.train.data.buckets import Bucket


@dataclass(frozen=True)
class FitSettings:
    """Which part of an image is taken.

    `zoom` None shrinks the image as far as it still covers the bucket and crops what sticks out: the part is nearly the
    whole. A number shrinks by a factor in [1, zoom] (log-uniform, never more than None would), so that small crops keep
    the detail of a large photograph. A share `unscaled` is cut out pixel by pixel, lest every crop has been through a
    resampler. The place is random, or the middle with `center`; a share `flip` is mirrored.
    """

    zoom: float | None = None
    unscaled: float = 0.0
    center: bool = False
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.zoom is not None and not self.zoom >= 1:
            raise ValueError(f"zoom={self.zoom}: expected None or at least 1")
        check_range(self, ("unscaled", "flip"), 0, 1)


CENTER = FitSettings(center=True, flip=0.0)  # nothing random: what precomputed latents are made from


def fit(image: Image.Image, bucket: Bucket, settings: FitSettings, rng: np.random.Generator) -> Image.Image:
    """The part of an RGB image that is trained on, in the bucket's size, by Pillow's antialiased bicubic filter.

    Raises:
        ValueError: the image does not cover the bucket.
    """
    cover = min(image.width / bucket.width, image.height / bucket.height)
    if cover < 1:
        raise ValueError(f"an image of {image.width}x{image.height} is smaller than its bucket of {bucket}")
    zoom = cover
    if settings.zoom is not None:
        zoom = float(np.exp(rng.uniform(0, np.log(min(settings.zoom, cover)))))
    if rng.random() < settings.unscaled:
        zoom = 1.0
    width, height = min(bucket.width * zoom, image.width), min(bucket.height * zoom, image.height)
    across, down = (0.5, 0.5) if settings.center else rng.random(2)
    left, top = float(across * (image.width - width)), float(down * (image.height - height))
    if zoom == 1:
        left, top = round(left), round(top)
        part = image.crop((left, top, left + bucket.width, top + bucket.height))
    else:
        box = (left, top, left + width, top + height)
        part = image.resize((bucket.width, bucket.height), Image.Resampling.BICUBIC, box=box)
    mirrored = settings.flip > 0 and rng.random() < settings.flip
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part
