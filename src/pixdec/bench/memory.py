"""How decodes by the released networks' size fit into a card, as `pixdec.inference.memory` plans them; as Markdown.

python -m pixdec.bench.memory > docs/benchmarks/memory.md
"""

import shlex
import sys

import torch

from pixdec.inference.memory import plan_decode
from pixdec.models.pid import PiDSettings
from pixdec.weights.catalog import TWO_TO_FOUR_K

HEAD = """# Memory of a decode, planned

Made by `{command}`.

The full-size network (version 1) in bfloat16, one image, trained from 2K to 4K, on a CUDA device. These are
predictions, counted on the network itself without values; nothing here was measured on a GPU. In GB (10⁹ bytes): the
peak of tensors, and with an assumed allowance for the device's context and fragments what must be free. The caption
encoder is gone by then.

| output | allowed | peak | in all | how |
|---|---:|---:|---:|---|"""


def main(sides: tuple[int, ...] = (2048, 4096, 8192), limits: tuple[float, ...] = (24, 12, 8, 6, 4)) -> None:
    """Prints a table of outputs of `sides` x `sides` pixels within `limits` GB."""
    print(HEAD.format(command=shlex.join(["python", "-m", "pixdec.bench.memory", *sys.argv[1:]])))
    for side in sides:
        for limit in limits:
            try:
                plan = plan_decode(
                    PiDSettings(),
                    side,
                    side,
                    dtype=torch.bfloat16,
                    limit=int(limit * 1e9),
                    device_type="cuda",
                    sizes=TWO_TO_FOUR_K,
                )
                row = (f"{plan.peak / 1e9:.2f}", f"{plan.total / 1e9:.2f}", plan.how)
            except ValueError:
                row = ("", "", "does not fit")
            print(f"| {side}² | {limit:g} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
