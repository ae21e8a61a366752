"""`pixdec l2p`: a latent generator → a pixel model to train; what was trained → a whole model; prompts → images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pixdec.cli.generate import NOTHING, Asked, make_all
from pixdec.cli.options import Dtype, Flag, Output, check_device, torch_dtype
from pixdec.cli.report import Report
from pixdec.generation.settings import PixelGenerationSettings
from pixdec.io.files import prepare


@dataclass(frozen=True)
class Init:
    """Make a pixel model to train of a latent generator, or of a pixel model of smaller patches.

    Every tensor of the same name and shape is copied; the patch embedder and the head are new.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Z-Image, FLUX.2 klein or Qwen-Image by hub id or folder, a file of Z-Image or of a pixel model, or l2p-1k."""
    output: Output
    """The file to write, .safetensors."""
    patch: int = 16
    """Pixels a side: 16 for images of 1024, 64 for 4096, 128 for 8192, 160 for 10240."""
    shallow: int = 5
    """How many main blocks at either end are to be trained; it is counted here, and set when training begins."""
    seed: int = 42
    """Of what is new."""
    dtype: Dtype | None = None
    """Precision of the file; without it each tensor keeps its own."""
    json: Flag = False
    """Print one JSON object, with the name of every tensor."""

    def run(self) -> int:
        from pixdec.l2p.files import open_weights, save_weights
        from pixdec.l2p.model import PixelModel, shallow_only
        from pixdec.l2p.transfer import transplant

        _check_target(self.output)
        made, report = transplant(open_weights(self.source), self.patch, self.seed)
        trained = set(shallow_only(PixelModel(made.settings), self.shallow))
        prepare([Path(self.output)])
        save_weights(made, self.output, torch_dtype(self.dtype))
        learns = sum(tensor.numel() for key, tensor in made.tensors.items() if key in trained)
        total = sum(tensor.numel() for tensor in made.tensors.values())
        names = {"copied": report.copied, "new": report.new, "reshaped": report.reshaped, "dropped": report.dropped}
        counts = ", ".join(f"{len(keys)} {what}" for what, keys in names.items())
        Report(json_lines=self.json).done(
            {"input": self.source, "output": self.output, "parameters": total, "trained": learns, **names},
            f"{self.output}  tensors: {counts}; {total:,} parameters, of which {learns:,} learn",
        )
        return 0


@dataclass(frozen=True)
class Merge:
    """Put what training changed into the model it began with."""

    start: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="START")]
    """What `pixdec l2p init` wrote, and training began with."""
    trained: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAINED")]
    """What `pixdec train l2p` left."""
    output: Output
    """The file to write, .safetensors."""
    dtype: Dtype | None = None
    """Precision of the file; without it each tensor keeps its own."""
    json: Flag = False
    """Print one JSON object."""

    def run(self) -> int:
        from pixdec.l2p.files import open_weights, save_weights
        from pixdec.l2p.transfer import merge

        _check_target(self.output)
        start, trained = open_weights(self.start), open_weights(self.trained)
        merged = merge(start, trained)
        prepare([Path(self.output)])
        save_weights(merged, self.output, torch_dtype(self.dtype))
        counts = {"tensors": len(merged.tensors), "replaced": len(trained.tensors)}
        Report(json_lines=self.json).done(
            {"input": self.trained, "output": self.output, **counts},
            f"{self.output}  {counts['tensors']} tensors, of which {counts['replaced']} were trained",
        )
        return 0


@dataclass(frozen=True)
class Generate:
    """Generate images from prompts with a pixel model: no latent, no VAE.

    An image that is in the output already is not made again, so a run that was interrupted or had failures goes on when
    it is called again.
    """

    output: Output
    """A folder: it is created. For one --prompt also an image file (.png, .webp, .jpg)."""
    by: Annotated[PixelGenerationSettings, tyro.conf.arg(name="")]
    what: Asked = NOTHING
    json: Flag = False
    """Print one JSON object for each image."""

    def run(self) -> int:
        prompts = self.what.given()
        check_device(self.by.device)
        from pixdec.generation.pixels import PixelGeneration

        return make_all(PixelGeneration(prompts, self.output, self.by), json_lines=self.json)


def _check_target(output: str) -> None:
    if not output.endswith(".safetensors"):
        raise ValueError(f"{output}: expected the name of a file that ends in .safetensors")


@dataclass(frozen=True)
class L2p:
    """Turn a latent generator into one of pixels (L2P). Train between init and merge: `pixdec train l2p`."""

    action: tyro.conf.OmitArgPrefixes[
        Annotated[Init, tyro.conf.subcommand("init", prefix_name=False)]
        | Annotated[Merge, tyro.conf.subcommand("merge", prefix_name=False)]
        | Annotated[Generate, tyro.conf.subcommand("generate", prefix_name=False)]
    ]

    def run(self) -> int:
        return self.action.run()
