"""A recipe of one's own in a file: TOML, which changes fields of a named one, or a Python function that returns it.

recipe = "tiny"          # mine.toml: what it begins with
space = "flux2"
[loop]
steps = 10000
[network.backbone]
hidden = 256

def recipe():            # mine.py, which is run
    return replace(decoder_tiny(), name="mine")
"""

import json
import runpy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pixdec.io.files import reason_of
from pixdec.train.recipes import KINDS, RECIPES, AnyRecipe
from pixdec.weights.network_settings import settings_from_json, settings_to_json

SUFFIXES = (".toml", ".py")


def open_recipe(stage: str, name: str) -> AnyRecipe:
    """The recipe of a stage: one of `RECIPES`, or of a file.

    Raises:
        ValueError: one line: an unknown name, or a file that cannot be read or gives no recipe of this stage.
    """
    if Path(name).suffix in SUFFIXES:
        try:
            return _from_python(stage, Path(name)) if name.endswith(".py") else _from_toml(stage, Path(name))
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: {reason_of(error)}") from error
    if (make := RECIPES[stage].get(name.replace("-", "_"))) is None:
        what = f"train {stage} {name}: unknown recipe" if name else f"train {stage}: name a recipe"
        raise ValueError(f"{what}; expected {choices(stage)}")
    return make()


def choices(stage: str) -> str:
    """What can be named as a recipe of a stage, in words."""
    names = ", ".join(each.replace("_", "-") for each in RECIPES[stage])
    return f"one of {names}, or a file that ends in {' or '.join(SUFFIXES)}"


def _from_toml(stage: str, path: Path) -> AnyRecipe:
    values = tomllib.loads(path.read_text("utf-8"))
    base = values.pop("recipe", None)
    if not isinstance(base, str):
        raise ValueError(f'expected recipe = "…" at its head, one of {", ".join(RECIPES[stage])}')
    begun = json.loads(settings_to_json(open_recipe(stage, base)))
    return settings_from_json(json.dumps(_changed(begun, values)), KINDS[stage])


def _changed(begun: Any, values: Any) -> Any:
    """What is begun with, changed by what TOML has, in which "none" stands for nothing."""
    if isinstance(begun, Mapping) and isinstance(values, Mapping):
        mine, theirs = cast("Mapping[str, Any]", begun), cast("Mapping[str, Any]", values)
        return {**mine, **{key: _changed(mine.get(key), value) for key, value in theirs.items()}}
    return None if values == "none" else values


def _from_python(stage: str, path: Path) -> AnyRecipe:
    try:
        made: object = runpy.run_path(str(path))["recipe"]()
    except OSError:
        raise
    except KeyError as error:
        raise ValueError("expected a function recipe() that returns a recipe") from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__} ({reason_of(error)})") from error
    if not isinstance(made, KINDS[stage]):
        raise ValueError(f"recipe() returns a {type(made).__name__}; expected a {KINDS[stage].__name__}")
    return made
