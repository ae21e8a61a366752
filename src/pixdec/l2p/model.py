"""The pixel model: a latent generator's transformer on patches of pixels, with a `Detailer` in place of its last layer.

B batch · H, W image pixels · T text tokens · E their width
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixdec.l2p.sources import Source, get_source
from pixdec.models.detailer import Detailer, DetailerSettings

HEAD = "local_decoder."
BAND_PIXELS = 2**21  # of the image that the head sees at a time: 2 GB at most in float32


@dataclass(frozen=True)
class PixelSettings:
    """`source`: a name of `SOURCES`; `config`: its transformer's settings, by diffusers' names; `patch`: 16, 32, 64,
    128 or 160 pixels; `narrow`: of the head, see `DetailerSettings`; `side` of the images that it makes if nothing is
    said, in pixels: 64 patches."""

    source: str
    config: Mapping[str, Any]
    patch: int
    narrow: int = 1
    side: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "side", self.side or 64 * self.patch)

    @property
    def kind(self) -> Source:
        """What is particular to the source's family."""
        return get_source(self.source)

    @property
    def multiple(self) -> int:
        """What height and width of an image are multiples of."""
        return 320 if self.patch == 160 else self.patch

    def check_size(self, height: int, width: int) -> None:
        """ValueError unless patches cover an image of that size exactly."""
        if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
            near = [max(1, round(side / self.multiple)) * self.multiple for side in (width, height)]
            raise ValueError(
                f"size={width}x{height}: expected multiples of {self.multiple} for patches of {self.patch}; "
                f"{near[0]}x{near[1]} is near"
            )


class PixelModel(nn.Module):
    """`model(x_t, t, text) -> velocity`, eps − x0, where x_t = (1−t)·x0 + t·eps.

    It is made on the meta device. The names of its tensors in files lack `transformer.`, and are the released ones.
    """

    def __init__(self, settings: PixelSettings):
        super().__init__()
        self.settings, self.source = settings, settings.kind
        with torch.device("meta"):
            self.local_decoder = Detailer(
                DetailerSettings(settings.patch, self.source.width(settings.config), settings.narrow)
            )
        self.transformer = self.source.build(settings.config, settings.patch)
        self.recompute = False  # set by training: the head keeps nothing of a band for the way back

    @property
    def dtype(self) -> torch.dtype:
        """Of the head, which is never quantized."""
        return self.local_decoder.out_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.local_decoder.out_conv.weight.device

    def forward(self, x_t: Tensor, t: Tensor, text: Sequence[Tensor], band: int | None = None) -> Tensor:
        """The velocity (B,3,H,W), float32.

        Args:
            x_t: noisy images (B,3,H,W) in [-1,1] and beyond.
            t: their noise levels (B,), 1 = noise, which stay float32.
            text: embeddings (T,E), one for each image, of any lengths.
            band: pixels that the head sees at a time, or None for all; it changes nothing but memory.
        """
        self.settings.check_size(*x_t.shape[2:])
        if len(text) != len(x_t):
            raise ValueError(f"{len(text)} texts for {len(x_t)} images: expected one for each")
        x, text = x_t.to(self.dtype), [each.to(x_t.device, self.dtype) for each in text]
        features = self.source.features(self.transformer, x, t.float(), text, self.settings.patch)
        rows = None
        if band is not None:
            rows = max(1, band // (x.shape[0] * x.shape[3] * self.local_decoder.unit))
        made = self.local_decoder(x, features.to(x.dtype), rows, recompute=self.recompute and torch.is_grad_enabled())
        return -made.float()


def shallow_only(model: PixelModel, shallow: int | None) -> list[str]:
    """Freezes the main blocks but the first and last `shallow` of them (all learn if None), and says which parameters
    learn, by their names in files.

    Raises:
        ValueError: there are not so many blocks.
    """
    blocks = model.source.blocks(model.transformer)
    if shallow is not None and not 0 <= 2 * shallow <= len(blocks):
        raise ValueError(f"shallow={shallow}: expected 0 to {len(blocks) // 2} of {len(blocks)} blocks at either end")
    model.requires_grad_(True)
    for block in blocks if shallow is not None else ():
        block.requires_grad_(False)
    for block in [] if not shallow else [*blocks[:shallow], *blocks[-shallow:]]:
        block.requires_grad_(True)
    return [file_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad]


def file_name(name: str) -> str:
    """A tensor's name in files."""
    return name.removeprefix("transformer.")


def model_name(name: str) -> str:
    """A tensor's name in the model: the inverse of `file_name`."""
    return name if name.startswith(HEAD) else f"transformer.{name}"


def shapes_of(model: PixelModel) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by its name in files."""
    return {file_name(key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def network_from_reference(state_dict: Mapping[str, Tensor], config: Mapping[str, Any], patch: int) -> PixelModel:
    """A pixel model of the original's state dict, in whatever packing, and the settings of its Z-Image transformer;
    strict. Its weights are float32 copies.

    Raises:
        ValueError: a missing, unexpected or mis-shaped tensor, or a setting that there is none of.
    """
    from pixdec.l2p.weight_files import filled
    from pixdec.weights.pixels import pixel_tensors

    model = PixelModel(PixelSettings("z-image", dict(config), patch))
    copies = {key: tensor.float().clone() for key, tensor in pixel_tensors(state_dict).items()}
    return filled(model, copies, torch.device("cpu"), torch.float32)
