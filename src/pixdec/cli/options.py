"""Options that several verbs share: how they are spelt on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pixdec.files import first_line_of

if TYPE_CHECKING:
    import torch

Inputs = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN ...", help_behavior_hint="(one or more)")
]
Output = Annotated[str, tyro.conf.arg(aliases=("-o",), metavar="OUT")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Format = Literal["png", "webp", "jpg"]
Dtype = Literal["float32", "bfloat16"]


def torch_dtype(name: Dtype | None) -> torch.dtype | None:
    """The torch dtype of that name."""
    import torch

    return {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def check_device(name: str | None) -> None:
    """See that a device is there before anything is loaded.

    Raises:
        ValueError: PyTorch does not know it, or it is not on this machine.
    """
    if name is None:
        return
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch has no one kind for this
        raise ValueError(f"--device {name}: not available here ({first_line_of(error)})") from error
