"""What a run says as it goes: metrics.jsonl, one line for each step, and the same as curves in TensorBoard."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixdec.io.files import write_whole
from pixdec.io.json_lines import read_lines
from pixdec.train.loop import Progress


class Log:
    """metrics.jsonl and TensorBoard. Lines of steps that are taken again, after a stop between two checkpoints, are
    dropped."""

    def __init__(self, folder: Path, step: int, *, active: bool = True):
        self.active, self.path = active, folder / "metrics.jsonl"
        self.board: Any = None
        if not active:
            return
        if self.path.exists():
            lines = read_lines(self.path, dict[str, Any], "is damaged; remove it")
            write_whole(self.path, "".join(f"{json.dumps(line)}\n" for line in lines if line["step"] <= step))
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def write(self, progress: Progress) -> None:
        """One step."""
        if not self.active:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(_finite(asdict(progress))) + "\n")
        if self.board is not None:
            values = {**{f"loss/{k}": v for k, v in progress.losses.items()}, "gradient_norm": progress.gradient_norm}
            for name, value in {**values, "learning_rate": progress.learning_rate}.items():
                self.board.add_scalar(name, value, progress.step)

    def picture(self, path: Path, step: int) -> None:
        """A sheet that was written."""
        if self.board is not None:
            self.board.add_image("sheet", np.asarray(Image.open(path)), step, dataformats="HWC")


def _finite(values: Any) -> Any:
    """JSON has no NaN: null takes its place."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values
