"""Libraries of others: imported where they are wanted, and told to say less: what they tell of themselves is not for
whoever decodes an image."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

# Libraries of kernels for devices that are not there, which are tried as torchao is imported.
_KERNELS = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet(*libraries: str) -> Generator[None]:
    """Inside, diffusers or transformers, as named, say errors only and show loading bars on a terminal only; torchao
    and the hub's client say errors only.

    Raises:
        ImportError: one of them is not there.
    """
    barred: list[Any] = [import_module(f"{library}.utils.logging") for library in libraries]
    hub: Any = import_module("huggingface_hub.utils.logging")
    with ExitStack() as restore:
        for logger in map(logging.getLogger, _KERNELS):
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        for switch in (*barred, hub):
            restore.callback(switch.set_verbosity, switch.get_verbosity())
            switch.set_verbosity_error()
        for switch in barred:
            restore.callback(
                switch.enable_progress_bar if switch.is_progress_bar_enabled() else switch.disable_progress_bar
            )
            (switch.enable_progress_bar if sys.stderr.isatty() else switch.disable_progress_bar)()
        yield


def library(name: str, what: str, extra: str) -> Any:
    """A library of one of our extras, or a module of ours that imports one, imported.

    Raises:
        ValueError: it is not there; says what needs it, and what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{what} needs {error.name or name}: pip install 'pixdec[{extra}]'") from error
