"""Low-resolution images as cameras and the web make them: blur, shrink, noise, JPEG.

With all shares at 0 this is `degrade`, what PiD is trained with. The order and the ranges of blur
and JPEG follow the first-order degradation of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833, section 3.1 and
appendix), the noise the Poissonian-Gaussian model of a sensor (Foi et al. 2008, IEEE TIP 17(10)).
"""

import io
import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pixdec.io.arguments import check_range
from pixdec.io.tensors import to_pil, to_tensor


def degrade(images: Tensor, scale: int) -> Tensor:
    """Images (B,3,H,W) in [-1,1] -> (B,3,H/scale,W/scale), bicubic antialiased, rounded to 8 bits as a picture file
    is."""
    small = F.interpolate(images, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(-1, 1)
    return ((small + 1) * 127.5).round() / 127.5 - 1


@dataclass(frozen=True)
class DegradeSettings:
    """Each of `blur`, `noise` and `jpeg` is the share of images that meets it; ranges are uniform if nothing else is
    said.

    Attributes:
        scale: the image is shrunk by it, bicubic and antialiased.
        blur_sigma: pixels of the large image; an anisotropic Gaussian, one sigma for each of two axes at any angle.
        read_noise: standard deviation of the Gaussian part, in steps of 8 bits.
        photons: of the Poisson part, how many a white pixel counts (log-uniform): its deviation there is
            1/sqrt(photons).
        jpeg_quality: of Pillow's encoder, with chroma at half size (4:2:0).
    """

    scale: int = 4
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.2, 3.0)
    noise: float = 0.0
    read_noise: tuple[float, float] = (1.0, 15.0)
    photons: tuple[float, float] = (200.0, 10000.0)
    jpeg: float = 0.0
    jpeg_quality: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        check_range(self, ["scale"], 1)
        check_range(self, ("blur", "noise", "jpeg"), 0, 1)
        for name, low, high in (
            ("blur_sigma", 0.01, 100.0),
            ("read_noise", 0.0, 255.0),
            ("photons", 1.0, 1e9),
            ("jpeg_quality", 1, 100),
        ):
            first, last = getattr(self, name)
            if not low <= first <= last <= high:
                raise ValueError(f"{name}={(first, last)}: expected a range within {low} to {high}")


def degraded(images: Tensor, settings: DegradeSettings, generator: torch.Generator) -> Tensor:
    """Images (B,3,H,W) in [-1,1] -> (B,3,H/scale,W/scale) in [-1,1], rounded to 8 bits; on the images' device.

    All random numbers come from `generator`, a CPU one; as many are drawn whatever the shares are, but for the noise
    itself.

    Raises:
        ValueError: H or W is no multiple of the scale.
    """
    if images.shape[-2] % settings.scale or images.shape[-1] % settings.scale:
        raise ValueError(
            f"images of shape {tuple(images.shape)}: expected sides that are multiples of {settings.scale}"
        )
    u = torch.rand(len(images), 9, generator=generator, dtype=torch.float64)
    blurred, noisy, squeezed = (
        (u[:, i] < share) for i, share in enumerate((settings.blur, settings.noise, settings.jpeg))
    )
    if blurred.any():
        sigmas = _between(settings.blur_sigma, u[blurred, 3:5])
        images = images.clone()
        images[blurred] = blur(images[blurred], sigmas, math.pi * u[blurred, 5])
    low = degrade(images, settings.scale)
    if noisy.any():
        photons = torch.exp(_between((math.log(settings.photons[0]), math.log(settings.photons[1])), u[noisy, 6]))
        low[noisy] = add_noise(low[noisy], photons, _between(settings.read_noise, u[noisy, 7]), generator)
    for i in squeezed.nonzero().flatten().tolist():
        low[i] = jpeg(low[i], round(float(_between(settings.jpeg_quality, u[i, 8]))))
    return low


def blur(images: Tensor, sigmas: Tensor, angles: Tensor) -> Tensor:
    """Convolve each image (B,3,H,W) with its own Gaussian: sigmas (B,2) in pixels along two axes, the first of them
    turned by `angles` (B,) radians. The border is reflected."""
    radius = min(math.ceil(3 * float(sigmas.max())), min(images.shape[-2:]) - 1)
    grid = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    cos, sin = (f(angles.double())[:, None, None] for f in (torch.cos, torch.sin))
    along, across = cos * x + sin * y, cos * y - sin * x  # (B,K,K)
    first, second = (sigmas.double()[:, i, None, None] for i in (0, 1))
    kernels = torch.exp(-0.5 * ((along / first).square() + (across / second).square()))
    kernels = (kernels / kernels.sum((1, 2), keepdim=True)).to(images)
    batch, channels = images.shape[:2]
    padded = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]  # (1,B·3,H+2r,W+2r)
    weight = kernels.repeat_interleave(channels, 0)[:, None]  # (B·3,1,K,K)
    return F.conv2d(padded, weight, groups=batch * channels).reshape(images.shape)


def add_noise(images: Tensor, photons: Tensor, read_noise: Tensor, generator: torch.Generator) -> Tensor:
    """v -> Poisson(v·photons)/photons + read_noise/255·normal, on values v in [0,1] of images (B,3,H,W) in [-1,1];
    photons and read_noise (B,). Rounded to 8 bits."""
    values = (images.cpu().double() + 1) / 2
    peak, deviation = photons.double()[:, None, None, None], read_noise.double()[:, None, None, None] / 255
    counted = torch.poisson(values.clamp(0, 1) * peak, generator=generator) / peak
    noisy = counted + deviation * torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return ((noisy.clamp(0, 1) * 255).round() / 127.5 - 1).to(images)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """(3,H,W) in [-1,1] -> the same after saving it as JPEG of this quality."""
    encoded = io.BytesIO()
    to_pil(image.detach()[None])[0].save(encoded, "JPEG", quality=quality, subsampling=2)
    with Image.open(encoded) as decoded:
        return to_tensor(decoded.convert("RGB"))[0].to(image)


def _between(span: tuple[float, float], u: Tensor) -> Tensor:
    return span[0] + (span[1] - span[0]) * u
