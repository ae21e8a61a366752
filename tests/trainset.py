"""Small networks and examples for the tests of training."""

import torch

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings, pack
from pixdec.train.stages.stage import Encode, Examples

TINY = TinyVAESettings(
    encoder_widths=(8, 8, 16), decoder_widths=(8, 8, 16), encoder_depths=(0, 1, 1), decoder_depths=(0, 1, 1)
)
SILENT = PiDSettings(
    PixDiTSettings(
        patch=8, hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=24, pixel_heads=2, pixel_depth=1,
        text_width=None, reference=(64, 64),
    ),
    AdapterSettings(
        latent_channels=128, latent_factor=16, width=8, blocks=1, unpack=2, padding="replicate", gate="token",
        pixel_head=True,
    ),
)  # fmt: skip
WORDY = PiDSettings(
    PixDiTSettings(
        patch=16, hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=24, pixel_heads=2, pixel_depth=1,
        text_width=12, text_length=5, reference=(64, 64),
    ),
    AdapterSettings(
        latent_channels=128, latent_factor=16, width=8, blocks=1, unpack=2, gate="token", pixel_head=True, aux_rgb=True
    ),
)  # fmt: skip


def pictures(step: int, size: int, count: int = 4) -> torch.Tensor:
    """Smooth random images (count,3,size,size) in [-1,1]."""
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").tanh()


def examples(step: int, size: int = 64, count: int = 4) -> Examples:
    """Pictures with captions."""
    return Examples(pictures(step, size, count), [f"picture {i} of {step}" for i in range(count)])


def tiny_encoder() -> Encode:
    """An encoder into 128 channels at 1/16."""
    torch.manual_seed(0)
    tiny = TinyVAE(TINY).requires_grad_(False)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return lambda images: pack(tiny.encoder(images))


def embed(captions: list[str]) -> torch.Tensor:
    """Captions -> (B,5,12), each its own, the empty one zeros."""
    each = [torch.randn(5, 12, generator=torch.Generator().manual_seed(len(caption))) for caption in captions]
    return torch.stack([values * bool(caption) for values, caption in zip(each, captions, strict=True)])


def network(settings: PiDSettings) -> PiD:
    """A network whose blocks all do something."""
    torch.manual_seed(0)
    made = PiD(settings).initialize(0)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return made
