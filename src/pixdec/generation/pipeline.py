"""A diffusers pipeline by name: what can be told before its weights are loaded, loading it, and one call of it."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pixdec.devices import computes_in_bfloat16, is_out_of_memory
from pixdec.generation.prompts import Prompt
from pixdec.generation.settings import GenerationSettings
from pixdec.io.files import first_line_of
from pixdec.io.hub import HUB_ID, fetch_file, hub_reason
from pixdec.io.quiet import library
from pixdec.weights.checkpoint import SUFFIXES

if TYPE_CHECKING:
    import torch

    from pixdec.latents import LatentSpace

_INDEX = "model_index.json"
_WITHOUT_WEIGHTS = ("vae", "transformer", "unet", "scheduler")  # the components that space and schedule depend on


@dataclass(frozen=True)
class Blueprint:
    """A pipeline without weights: `name` (hub id or folder), its class, and an instance with the components that tell
    its latent space and its schedule, none of which can compute."""

    name: str
    kind: type
    hollow: Any

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What a call takes."""
        call: Any = self.kind.__call__
        return inspect.signature(call).parameters

    @property
    def guidance(self) -> str | None:
        """The argument that is the strength of guidance: Qwen-Image has two, and `guidance_scale` is not the one."""
        own, true = self.parameters.get("guidance_scale"), self.parameters.get("true_cfg_scale")
        if true is not None and (own is None or own.default is None):
            return "true_cfg_scale"
        return None if own is None else "guidance_scale"

    def steps(self, asked: int | None) -> int | None:
        """Steps of the full schedule; None if not even the pipeline's default is known."""
        default = self.parameters.get("num_inference_steps")
        return asked if asked is not None else None if default is None else default.default


def find_pipeline(name: str) -> Blueprint:
    """Read what a pipeline is, from its folder or from the hub, without its weights.

    Raises:
        ValueError: diffusers is missing; no such folder or repository, no pipeline in it, or of a class or with
            components that this diffusers does not know.
    """
    library = diffusers()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / _INDEX).is_file():
            raise ValueError(f"{name}: there is no {_INDEX} in this folder; expected what pipe.save_pretrained wrote")
        name = str(folder)
    elif folder.is_file():
        raise ValueError(
            f"{name}: a single file; expected the folder of a pipeline, or a hub id. Make the folder once in Python: "
            "diffusers' class of the model, .from_single_file(file).save_pretrained(folder)"
        )
    elif not HUB_ID.fullmatch(name) or folder.suffix in SUFFIXES:
        raise ValueError(f"{name}: there is no such folder, and a hub id has the form owner/name")
    index = _index(name)
    kind = getattr(library, str(index.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, library.DiffusionPipeline)):
        raise ValueError(
            f"{name}: a {index.get('_class_name')}, which diffusers {library.__version__} does not have; a newer one "
            "may, and pipelines with code of their own can be used from Python only"
        )
    hollow: Any = object.__new__(kind)
    for component in _WITHOUT_WEIGHTS:
        origin, class_name = index.get(component) or (None, None)
        if origin == "diffusers":
            with _naming(name, f"its {component} cannot be read"):
                vars(hollow)[component] = _hollow(getattr(library, str(class_name)), name, component)
    return Blueprint(name, kind, hollow)


def load_pipeline(blueprint: Blueprint, device: str, dtype: torch.dtype | None, *, offload: bool) -> Any:
    """The pipeline with its weights, on `device`; its own progress bar is shown on a terminal only.

    dtype None: bfloat16, but float32 on a CPU without bfloat16 matrix units. offload: on CUDA each component is on the
    GPU only while it is at work.

    Raises:
        ValueError: it cannot be loaded, or is more than the device holds.
    """
    import torch

    if dtype is None:
        dtype = torch.bfloat16 if computes_in_bfloat16(torch.device(device)) else torch.float32
    with _naming(blueprint.name, "cannot be loaded"), short_of_memory(device):
        pipe = diffusers().DiffusionPipeline.from_pretrained(blueprint.name, torch_dtype=dtype)
        if offload and device.startswith("cuda"):
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipe


def check_call(blueprint: Blueprint, space: LatentSpace, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that the pipeline does not take, would ignore, or would round. `where` names their prompt.

    Raises:
        ValueError: one line.
    """
    kind, parameters = blueprint.kind.__name__, blueprint.parameters
    unknown = next((name for name in arguments if name not in parameters), None)
    if unknown is not None:
        raise ValueError(f"{where}: {kind} takes no {unknown}; leave it out")
    true = parameters.get("true_cfg_scale")
    if "negative_prompt" in arguments and true is not None and blueprint.guidance != "true_cfg_scale":
        raise ValueError(
            f"{where}: {kind} heeds a negative prompt only with true_cfg_scale, which is not set here; leave it out"
        )
    if arguments.get("true_cfg_scale") is not None and "negative_prompt" not in arguments:
        raise ValueError(f"{where}: {kind} guides only against a negative prompt; give one, --negative ' ' will do")
    multiple = space.factor * (space.token_patch or 1)
    for side in ("height", "width"):
        if arguments.get(side, multiple) % multiple:
            raise ValueError(f"{where}: {side} {arguments[side]}; expected a multiple of {multiple} for {space.name}")


def call_arguments(blueprint: Blueprint, prompt: Prompt, settings: GenerationSettings) -> dict[str, Any]:
    """The arguments of a call that are settings, under the pipeline's own names; without those that are None. What a
    prompt's line says goes before the run's own."""
    arguments = {
        "prompt": prompt.text,
        "negative_prompt": settings.negative if prompt.negative is None else prompt.negative,
        "num_inference_steps": settings.steps,
        blueprint.guidance or "guidance_scale": settings.guidance,
        "height": settings.height if prompt.height is None else prompt.height,
        "width": settings.width if prompt.width is None else prompt.width,
    }
    return {name: value for name, value in arguments.items() if value is not None}


@contextmanager
def pipeline_errors(device: str) -> Generator[None]:
    """Whatever a pipeline's code raises, as a ValueError: one prompt's failure must not end a run of thousands."""
    with short_of_memory(device):
        try:
            yield
        except (ValueError, OSError, MemoryError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(f"the pipeline failed: {_brief(error)}") from error


@contextmanager
def short_of_memory(device: str) -> Generator[None]:
    """A device without enough memory, as a ValueError that says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"out of memory on {device}; try --offload, or smaller images") from None


def _index(name: str) -> dict[str, Any]:
    """The components of a pipeline, by name: (library, class)."""
    try:
        file = Path(name) / _INDEX if Path(name).is_dir() else fetch_file(name, _INDEX)
    except OSError as error:
        raise ValueError(str(error)) from error
    with _naming(name, f"its {_INDEX} cannot be read"):
        index: object = json.loads(file.read_bytes())
    if not isinstance(index, dict):
        raise ValueError(f"{name}: its {_INDEX} is no list of components")
    return cast("dict[str, Any]", index)


def diffusers() -> Any:  # Any: it exports its classes lazily, where type checkers do not see them
    """The library; ValueError if it is not there."""
    return library("diffusers", "pixdec generate", "pipelines")


def _hollow(kind: Any, name: str, component: str) -> Any:
    """A component as far as its settings go: a scheduler whole, a VAE with meta tensors, of a denoiser its class."""
    import torch

    if component == "scheduler":
        return kind.from_pretrained(name, subfolder=component)
    if component != "vae":
        return object.__new__(kind)
    config = kind.load_config(name, subfolder=component)
    with torch.device("meta"):
        return kind.from_config(config)


@contextmanager
def _naming(name: str, what: str) -> Generator[None]:
    """Whatever loading raises, of the libraries or of what lies beneath them, as a ValueError of one line.

    Their warnings are about their own calls of each other.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = hub_reason(error, name) if not Path(name).is_dir() else _brief(error)
        raise ValueError(f"{name}: {what} ({reason})") from error


def _brief(error: BaseException) -> str:
    """Kind and first line of an error of someone else's code."""
    kind, line = type(error).__name__, first_line_of(error)
    return kind if line == kind else f"{kind}: {line}"
