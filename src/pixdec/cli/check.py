"""`pixdec check`: whether a decoder is as good as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pixdec.cli.options import Flag, Inputs


@dataclass(frozen=True)
class Check:
    """See that a decoder is as good as when the figures of a reference were saved: exit code 0, or 1 with the metric
    that got worse and the images where it did most.

    Photographs are shrunk and decoded, latents decoded, with the same seed; a metric fails if its mean got worse by
    more than the tolerance beyond chance (bootstrap over the images). A better decoder passes.
    """

    inputs: Inputs
    """Photographs or latents, or folders of them."""
    reference: Annotated[str, tyro.conf.arg(aliases=("-r",))]
    """A JSON file: written with --save, else compared with."""
    save: Flag = False
    """Save the figures, in place of those that were there."""
    model: str = "pixdec-nano"
    """The decoder: a name that `pixdec models` lists, or a file or folder."""
    device: str | None = None
    """Such as cpu or cuda:1; without it the fastest there is."""
    metrics: str = "consistency,spectrum_error_high,color_drift,pattern"
    """Separated by commas, as of `pixdec eval`."""
    steps: int | None = None
    """Decoding steps; without it as many as the model is made for."""
    strength: float = 0.0
    """How much may be invented, as of `pixdec upscale`."""
    seed: int = 0
    """The same for every image."""
    crop: int = 256
    """Of larger photographs the middle, at most so many pixels a side; 0 takes all."""
    tolerance: float = 0.02
    """How much worse a metric may get, as a part of its mean."""

    def run(self) -> int:
        from pixdec.evaluate.check import How, compare, read_reference, score, write_reference
        from pixdec.evaluate.metrics.table import open_metrics
        from pixdec.generation.decoding import open_decoder
        from pixdec.generation.settings import DecodingSettings
        from pixdec.inference.config import InferenceConfig
        from pixdec.io.arguments import check_range
        from pixdec.io.files import files_below
        from pixdec.io.images import READABLE

        check_range(self, ["tolerance"], 0)
        path, files = Path(self.reference), list[Path]()
        for given in map(Path, self.inputs):
            kinds = READABLE | {".safetensors"}
            files += [given / file for file in files_below(given, kinds)] if given.is_dir() else [given]
        if not files:
            raise ValueError(f"{' '.join(self.inputs)}: no photographs or latents there")
        before = {} if self.save else read_reference(path)
        metrics = open_metrics([name.strip() for name in self.metrics.split(",")])
        for name, why in metrics.absent.items():
            raise ValueError(f"metric {name}: {why}")
        by = DecodingSettings(device=self.device)
        decoder = open_decoder(self.model, by, InferenceConfig(), steps=self.steps)
        how = How(self.seed, self.steps, self.strength, self.crop)
        found = dict(score(decoder, files, metrics, how))
        if self.save:
            write_reference(path, found, {"model": self.model, "steps": self.steps, "seed": self.seed})
            print(f"{path}: the figures of {len(found)} images")
            return 0
        changes = compare(before, found, self.tolerance)
        for change in changes:
            print(change.line())
        return int(any(change.failed for change in changes))
