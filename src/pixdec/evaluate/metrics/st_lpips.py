"""ST-LPIPS, a perceptual distance that small shifts do not change; not the original LPIPS, whose figures differ."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixdec.evaluate.metrics.fidelity import Picture, as_pair
from pixdec.evaluate.metrics.packages import packaged

WEIGHTS = "weights/vST0.0/vgg_shift_tolerant.pth"
ALEX_WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"
_ALEX = ((0, 2), (5, 2), (9, 1), (11, 1), (13, 1))  # of each level's convolution: its name in the file, its padding
_SLICES = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))
_WIDTHS = (64, 128, 256, 512, 512)


class ShiftTolerantVGG(nn.Module):
    """ST-LPIPS (Ghildyal & Liu 2022, arXiv 2207.13686) on VGG-16: the distance, or single levels of it as a loss.

    The weights (BSD-2) are read from the installed package `stlpips-pytorch`, or from the file `path`. ValueError when
    it is not installed.
    """

    shift: Tensor
    scale: Tensor
    blur: Tensor

    def __init__(self, path: Path | None = None):
        super().__init__()
        path = path or packaged("stlpips_pytorch", WEIGHTS, "ST-LPIPS's weights")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.register_buffer("shift", state["scaling_layer.shift"])
        self.register_buffer("scale", state["scaling_layer.scale"])
        for level, (layers, width) in enumerate(zip(_SLICES, _WIDTHS, strict=True)):
            for layer in layers:
                for part in ("weight", "bias"):
                    self.register_buffer(f"{part}_{layer}", state[f"net.slice{level + 1}.{layer}.{part}"])
            self.register_buffer(f"mix_{level}", state[f"lin{level}.model.1.weight"].view(1, width, 1, 1))
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur", (kernel[:, None] * kernel / 16)[None, None])

    def features(self, images: Tensor, levels: int = 5) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> each level's features, unit length over channels, float32."""
        x, made = (images - self.shift) / self.scale, list[Tensor]()
        for level, layers in enumerate(_SLICES[:levels]):
            if level > 0:
                x = torch.maximum(x[:, :, 1:], x[:, :, :-1])  # a maximum of 2 x 2 places at stride 1, quicker so
                x = torch.maximum(x[..., 1:], x[..., :-1])
                x = F.pad(x, (1, 1, 1, 1), mode="reflect")
                x = F.conv2d(x, self.blur.to(x.dtype).expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])
            for layer in layers:
                x = F.relu(F.conv2d(x, getattr(self, f"weight_{layer}"), getattr(self, f"bias_{layer}"), padding=1))
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


class ShiftTolerantAlex(nn.Module):
    """ST-LPIPS on AlexNet: cheaper than VGG-16, and what its authors recommend for ranking.

    The first convolution is blurred before its ReLU, every blur follows a reflection padding of 2, and a maximum of 3 x
    3 places at stride 1 stands before each later blur. Weights and errors as for `ShiftTolerantVGG`.
    """

    def __init__(self, path: Path | None = None):
        super().__init__()
        path = path or packaged("stlpips_pytorch", ALEX_WEIGHTS, "ST-LPIPS's weights")
        self.state = {key: value.float() for key, value in torch.load(path, "cpu", weights_only=True).items()}

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> the features of five levels, unit length over channels."""
        x, made = (images - self.state["scaling_layer.shift"]) / self.state["scaling_layer.scale"], list[Tensor]()
        for level, (name, padding) in enumerate(_ALEX, 1):
            if level in (2, 3):
                x = self._blurred(F.max_pool2d(x, 3, stride=1))
            weight, bias = (self.state[f"net.slice{level}.{name}.{part}"] for part in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=padding)
            x = F.relu(self._blurred(x) if level == 1 else x)
            made.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return made

    def distance(self, images: Tensor, truth: Tensor) -> Tensor:
        """(B,) sum over levels of the mean over places of mix·(f − f')²."""
        levels = zip(self.features(images), self.features(truth), strict=True)
        mixed = [((a - b).square() * self.state[f"lin{i}.model.1.weight"]).sum(1) for i, (a, b) in enumerate(levels)]
        return torch.stack([each.mean((1, 2)) for each in mixed]).sum(0)

    def _blurred(self, x: Tensor) -> Tensor:
        kernel = self.state["net.slice1.1.filt"][:1].expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


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
