"""Figures that compare two images: PSNR, SSIM, spectrum error, fine detail, color drift, consistency; and one of an
image alone, how much of a regular pattern it shows.

Every function takes 8-bit RGB images as they are saved: (H, W, 3) uint8 arrays or PIL images of mode RGB.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Picture = Bytes | Image.Image

LUMA = np.array([0.299, 0.587, 0.114])
# Rounding each channel to 8 bits adds white noise of variance 1/12, which luma weighs by its squared coefficients.
QUANTIZATION_POWER = float(np.sum(LUMA**2)) / 12
SSIM_WINDOW = 11
DRIFT_BLOCK = 16
PATTERN_WINDOW = 32
PATTERN_BESIDE = (-4, -3, 3, 4)


def as_array(image: Picture) -> Bytes:
    """The (H, W, 3) uint8 array of an image; ValueError for any other mode, type or shape: no guesses."""
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"image of mode {image.mode}: expected RGB; read it with pixdec.io.images.read_image")
        return np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"array of {image.dtype} {image.shape}: expected uint8 (H, W, 3), the image as saved")
    return image


def as_pair(image: Picture, reference: Picture) -> tuple[Bytes, Bytes]:
    """The arrays of two images; ValueError when their sizes differ."""
    a, b = as_array(image), as_array(reference)
    if a.shape != b.shape:
        raise ValueError(
            f"image of {a.shape[1]}x{a.shape[0]} against a reference of {b.shape[1]}x{b.shape[0]}: "
            "expected one size; resize or crop one of them first"
        )
    return a, b


def luma(image: Picture) -> Floats:
    """Y = 0.299 R + 0.587 G + 0.114 B of the encoded values (ITU-R BT.601): (H, W) in [0, 255], not rounded."""
    return as_array(image).astype(np.float64) @ LUMA


def psnr(image: Picture, reference: Picture) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255² / MSE), the error taken over all pixels and the three channels.

    Infinite for identical images. ValueError when the sizes differ.
    """
    a, b = as_pair(image, reference)
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf


def ssim(image: Picture, reference: Picture, *, padding: Literal["valid", "same"] = "valid") -> float:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over pixels and channels; 1 for identical images.

    (2 μ_a μ_b + C1)(2 σ_ab + C2) / ((μ_a² + μ_b² + C1)(σ_a² + σ_b² + C2)) in an 11x11 Gaussian window of σ 1.5,
    C1 = (0.01·255)², C2 = (0.03·255)². "valid": windows that lie within the image, as scikit-image and torchmetrics
    have it; "same": one around each pixel, zeros beyond the border, as fused_ssim has it. ValueError when the sizes
    differ or a side is under 11. Needs scikit-image.
    """
    from skimage.metrics import structural_similarity

    a, b = as_pair(image, reference)
    if min(a.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"image of {a.shape[1]}x{a.shape[0]}: SSIM needs sides of at least {SSIM_WINDOW}")
    if padding == "same":
        border = SSIM_WINDOW // 2
        a, b = (np.pad(each, ((border, border), (border, border), (0, 0))) for each in (a, b))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(cast(Any, structural_similarity)(a, b, data_range=255, channel_axis=2, **window))


def radial_spectrum(image: Picture) -> Floats:
    """Radially averaged power spectrum of the luma: (n,), n = min(H, W) // 2, in squared gray levels.

    The luma less its mean is multiplied by w, the outer product of two Hann windows; P(f) = |FFT(w·Y)|² / Σw², so white
    noise of variance s² has P = s² everywhere. Entry k-1 is the mean of P over the ring of frequencies that round to
    k/n of Nyquist (0.5 cycles per pixel, on either axis), k = 1..n. The mean level is left out, and so are the corners
    above Nyquist. ValueError for sides under 8.
    """
    y = luma(image)
    height, width = y.shape
    rings = min(height, width) // 2
    if rings < 4:
        raise ValueError(f"image of {width}x{height}: a spectrum needs sides of at least 8")
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.fft2((y - y.mean()) * window)) ** 2 / np.sum(window**2)  # (H, W)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) / 0.5  # 1 = Nyquist
    ring = np.rint(radius * rings).astype(np.int64).ravel()
    totals = np.bincount(ring, weights=power.ravel())
    counts = np.bincount(ring)
    return totals[1 : rings + 1] / counts[1 : rings + 1]


def spectrum_error(image: Picture, reference: Picture, *, band: tuple[float, float] = (0.0, 1.0)) -> float:
    """Log-spectrum error in bels (1 bel = 10 dB = a factor of 10 in power): mean over rings of |log10 P_a - log10 P_b|.

    P is `radial_spectrum`, each ring raised to at least the power of 8-bit rounding noise, below which an image says
    nothing: a flat image has a finite error. Of the rings at k/n of Nyquist those with band[0] < k/n <= band[1] count;
    the default is all of them, and (1/scale, 1) is what a decoder of that scale has to invent. The error is one
    image's: average over images afterwards, since an averaged spectrum hides opposite errors. A contrast gain g alone
    gives |2 log10 g|. ValueError when the sizes differ, or the band is not within [0, 1] or holds no ring.
    """
    a, b = as_pair(image, reference)
    low, high = band
    if not 0 <= low < high <= 1:
        raise ValueError(f"band {band}: expected two rising fractions of Nyquist within [0, 1]")
    power_a, power_b = radial_spectrum(a), radial_spectrum(b)
    place = np.arange(1, len(power_a) + 1) / len(power_a)
    chosen = (place > low) & (place <= high)
    if not chosen.any():
        raise ValueError(f"band {band} holds none of the {len(place)} rings of this image: widen it")
    logs = [np.log10(np.maximum(power[chosen], QUANTIZATION_POWER)) for power in (power_a, power_b)]
    return float(np.mean(np.abs(logs[0] - logs[1])))


def high_frequency(image: Picture, reference: Picture, *, above: float = 0.25) -> float:
    """Energy of the fine detail against the reference's, in dB: 10 log10 of the ratio; below 0 is too soft.

    The energy is the sum of `radial_spectrum` over the rings above the fraction `above` of Nyquist, each weighed by its
    radius (its number of frequencies), and at least that of 8-bit rounding noise. It does not see where the detail is:
    noise has energy too. ValueError when the sizes differ, or no ring lies above.
    """
    energies = list[float]()
    for power in map(radial_spectrum, as_pair(image, reference)):
        place = np.arange(1, len(power) + 1) / len(power)
        if not (chosen := place > above).any():
            raise ValueError(f"above {above}: none of the {len(place)} rings of this image; expected less than 1")
        energies.append(float(np.sum(place[chosen] * np.maximum(power[chosen], QUANTIZATION_POWER))))
    return 10 * math.log10(energies[0] / energies[1])


def block_means(image: Picture, side: int) -> Floats:
    """The image averaged over side x side blocks, smaller at the border: (⌈H/side⌉, ⌈W/side⌉, 3) in [0, 255].

    The encoded values are averaged, not linear light, as in the downscaling that made the decoder's input: a decoder
    that only adds texture around the right values keeps its block means. Needs scikit-image.
    """
    import skimage.measure

    reduce = cast(Any, skimage.measure).block_reduce
    return reduce(as_array(image).astype(np.float64), (side, side, 1), np.nanmean, cval=np.nan)


def color_drift(image: Picture, reference: Picture) -> float:
    """Mean CIEDE2000 difference (Sharma, Wu, Dalal 2005) of the two images averaged over 16x16 blocks.

    1 is about just visible. sRGB is taken to CIE Lab under D65. ValueError when the sizes differ. Needs scikit-image.
    """
    import skimage.color

    a, b = as_pair(image, reference)
    color = cast(Any, skimage.color)
    lab_a, lab_b = (color.rgb2lab(block_means(picture, DRIFT_BLOCK) / 255) for picture in (a, b))
    return float(color.deltaE_ciede2000(lab_a, lab_b).mean())


def consistency(image: Picture, low: Picture, *, scale: int = 4) -> float:
    """Does the decoded image still say what its input said? PSNR in dB between it, downscaled, and the small image.

    image (scale·h, scale·w, 3), low (h, w, 3). Downscaling is bicubic, antialiased, rounded to 8 bits. ValueError when
    the sizes do not fit.
    """
    big, small = as_array(image), as_array(low)
    height, width = small.shape[:2]
    if big.shape[:2] != (height * scale, width * scale):
        raise ValueError(
            f"image of {big.shape[1]}x{big.shape[0]} over {width}x{height}: expected {width * scale}x{height * scale}, "
            f"{scale} times the small image"
        )
    return psnr(Image.fromarray(big).resize((width, height), Image.Resampling.BICUBIC), small)


def pattern(image: Picture) -> float:
    """How much a regular pattern shows (halftone, checkerboard, stair steps): the largest excess, in bels, of the
    luma's power at the frequencies of the 2 and 4 pixel grids over the power beside them.

    Those are 1/4 and 1/2 cycles a pixel along either axis and both. The logarithm of the power is averaged over
    windows of 32 x 32 pixels, so that each counts alike, flat or busy; what lies beside is 3/32 and 4/32 away along the
    axes that the pattern varies on. About 0 for photographs (Kodak's reach 0.11; heavily compressed ones 0.3); a dot
    3 gray levels brighter at every fourth pixel of a photograph makes 1. ValueError for sides under 32.
    """
    y = luma(image)
    if min(y.shape) < PATTERN_WINDOW:
        raise ValueError(f"image of {y.shape[1]}x{y.shape[0]}: a pattern needs sides of at least {PATTERN_WINDOW}")
    side, half = PATTERN_WINDOW, PATTERN_WINDOW // 2
    taper = np.hanning(side + 1)[:side]
    window = np.outer(taper, taper)
    logs = list[Floats]()
    for rows in np.lib.stride_tricks.sliding_window_view(y, (side, side))[::half, ::half]:  # (n, 32, 32) each
        power = np.abs(np.fft.fft2((rows - rows.mean((1, 2), keepdims=True)) * window)) ** 2 / np.sum(window**2)
        logs.append(np.log10(np.maximum(power, QUANTIZATION_POWER)))
    spectrum = np.concatenate(logs).mean(axis=0)  # (32, 32), frequencies in 1/32 cycles a pixel
    grid = (0, side // 4, side // 2, -side // 4)
    excesses = list[float]()
    for v, u in ((v, u) for v in grid[:3] for u in grid if (u, v) != (0, 0)):
        beside = [spectrum[(v + d) % side, u] for d in PATTERN_BESIDE if v] + [
            spectrum[v, (u + d) % side] for d in PATTERN_BESIDE if u
        ]
        excesses.append(float(spectrum[v, u] - np.mean(beside)))
    return max(excesses)
