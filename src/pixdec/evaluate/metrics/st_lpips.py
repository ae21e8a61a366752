"""ST-LPIPS, a perceptual distance that small shifts do not change; not the original LPIPS, whose figures differ."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.evaluate.metrics.fidelity import Picture, as_pair
from pixdec.evaluate.metrics.packages import packaged


class ShiftTolerantVGG(nn.Module):
    """ST-LPIPS (Ghildyal & Liu 2022, arXiv 2207.13686) on VGG-16: the distance, or single levels of it as a loss.

    Before each level but the first, a maximum at stride 1 and a blur at stride 2 take the place of the pooling. The
    weights (BSD-2) are read from the installed package `stlpips-pytorch`, or from the file `path`. ValueError when it
    is not installed.
    """

    file = "vgg_shift_tolerant.pth"
    convs = (  # of each level: name in the file and padding
        ((0, 1), (2, 1)),
        ((6, 1), (8, 1)),
        ((12, 1), (14, 1), (16, 1)),
        ((20, 1), (22, 1), (24, 1)),
        ((28, 1), (30, 1), (32, 1)),
    )
    pooled, window, border = (1, 2, 3, 4), 2, 1  # levels behind a pooling, side of its maximum, padding of its blur
    shift: Tensor
    scale: Tensor
    blur: Tensor

    def __init__(self, path: Path | None = None):
        super().__init__()
        path = path or packaged("stlpips_pytorch", f"weights/vST0.0/{self.file}", "ST-LPIPS's weights")
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("shift", "scale"):
            self.register_buffer(name, state[f"scaling_layer.{name}"].float())
        for level, convs in enumerate(self.convs):
            for name, _ in convs:
                for part in ("weight", "bias"):
                    self.register_buffer(f"{part}_{name}", state[f"net.slice{level + 1}.{name}.{part}"].float())
            self.register_buffer(f"mix_{level}", state[f"lin{level}.model.1.weight"].float().view(1, -1, 1, 1))
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", (kernel[:, None] * kernel / 16)[None, None])

    def features(self, images: Tensor, levels: int = 5) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> each level's features, unit length over channels, float32."""
        x, made = (images - self.shift) / self.scale, list[Tensor]()
        for level, convs in enumerate(self.convs[:levels]):
            if level and level in self.pooled:
                for _ in range(self.window - 1):  # a maximum at stride 1, quicker so
                    x = torch.maximum(x[:, :, 1:], x[:, :, :-1])
                    x = torch.maximum(x[..., 1:], x[..., :-1])
                x = self._blurred(x)
            for name, padding in convs:
                x = F.conv2d(x, getattr(self, f"weight_{name}"), getattr(self, f"bias_{name}"), padding=padding)
                x = F.relu(x if level or 0 not in self.pooled else self._blurred(x))  # AlexNet's first
            wide = x.float()
            made.append(wide / (wide.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return made

    def distance(self, images: Tensor, truth: Tensor | list[Tensor], weights: tuple[float, ...] = (1.0,) * 5) -> Tensor:
        """(B,) weighted sum over levels of the mean over places of mix·(f − f')²; all ones is ST-LPIPS itself.

        `truth` is the images to compare with, or their features.
        """
        if isinstance(truth, Tensor):
            with torch.no_grad():
                truth = self.features(truth, len(weights))
        total = torch.zeros(len(images), device=images.device)
        for level, f in enumerate(self.features(images, len(weights))):
            if weights[level]:
                squares = (f - truth[level]).square() * getattr(self, f"mix_{level}")
                total = total + weights[level] * squares.sum(1).mean((1, 2))
        return total

    def _blurred(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.border,) * 4, mode="reflect")
        return F.conv2d(x, self.blur.to(x.dtype).expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])


class ShiftTolerantAlex(ShiftTolerantVGG):
    """The same on AlexNet: cheaper, and what its authors recommend for ranking. Its first convolution is blurred before
    its ReLU, and the last three levels have one size."""

    file = "alex_shift_tolerant.pth"
    convs = (((0, 2),), ((5, 2),), ((9, 1),), ((11, 1),), ((13, 1),))
    pooled, window, border = (0, 1, 2), 3, 2


@cache
def shared_vgg() -> ShiftTolerantVGG:
    """The network with the installed weights, read once."""
    return ShiftTolerantVGG().requires_grad_(False)


@cache
def shared_alex() -> ShiftTolerantAlex:
    """As `shared_vgg`, of AlexNet."""
    return ShiftTolerantAlex()


@torch.no_grad()
def st_lpips(image: Picture, reference: Picture, network: ShiftTolerantVGG | ShiftTolerantAlex | None = None) -> float:
    """ST-LPIPS between two 8-bit RGB images (H, W, 3), on VGG-16 by default; 0 for identical ones, lower is better.

    ValueError when the sizes differ, or the weights are not installed.
    """
    a, b = (torch.tensor(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in as_pair(image, reference))
    return float((network or shared_vgg()).distance(a, b))
