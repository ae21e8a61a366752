"""The network of the bundled decoder of now, a residual one: for tests of what such networks alone have."""

from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.tiny_vae import TinyVAESettings


def nano_network() -> PiDSettings:
    """The bundled decoder's network: 5.5 M parameters besides its base decoder."""
    return PiDSettings(
        backbone=PixDiTSettings(
            patch=8,
            hidden=192,
            heads=6,
            depth=6,
            pixel_width=8,
            pixel_hidden=192,
            pixel_heads=6,
            pixel_depth=1,
            text_width=None,
            in_channels=6,
            rope_stride=1.0,
            pixel_positions="patch",
            window=8,
        ),
        adapter=AdapterSettings(
            latent_channels=128,
            latent_factor=16,
            scale=4,
            width=64,
            unpack=2,
            padding="replicate",
            gate="token",
            pixel_head=True,
        ),
        prediction="residual",
        base=TinyVAESettings(),
        residual_std=0.2,
        deblock=48,
    )
