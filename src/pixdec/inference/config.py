"""How a decode is run: one frozen object that goes with each call."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch

KernelName = Literal["auto", "torch", "math", "flash", "efficient", "cudnn", "flash3", "sage"]
CompileMode = Literal["default", "graphs"]
Quantize = Literal["int8", "int8-weights", "fp8"]

DTYPES = torch.float32, torch.bfloat16, torch.float16
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b\s*", re.IGNORECASE)


@dataclass(frozen=True)
class InferenceConfig:
    """How a decode is run. The defaults compute what was loaded, as it was loaded.

    Attributes:
        dtype: of the weights that are computed with; None for those that were loaded, or what `memory` makes of them.
        attention: the kernel that computes attention (`pixdec.inference.kernels`); "auto" the fastest trusted one.
        compile: "default" compiles the network's blocks, "graphs" replays its calls as CUDA graphs too.
        memory: what a decode may take, weights included: "8GB", a number of bytes, or "auto" for what the device has.
            Chunks, tiles, precision and where the weights are follow from it (`PixelDecoder.plan`). None does not plan.
        tile: side in pixels of the tiles that network calls run in (`pixdec.sampling.tiling`); None decodes images as a
            whole within the trained sizes, and in tiles beyond.
        offload: keep the blocks' weights in host memory until their turn.
        quantize: "int8", "int8-weights" or "fp8": smaller or quicker, but not the same image
            (`pixdec.inference.quantize`).
        exact: give each image the same bits in whatever batch it is decoded: images are computed together only where
            that has been seen to change nothing, and a decode that lacks memory fails, where it would be arranged anew.
    """

    dtype: torch.dtype | None = None
    attention: KernelName = "torch"
    compile: CompileMode | None = None
    memory: str | int | None = None
    tile: int | None = None
    offload: bool = False
    quantize: Quantize | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        _one_of("attention", self.attention, get_args(KernelName))
        _one_of("compile", self.compile, (None, *get_args(CompileMode)))
        _one_of("quantize", self.quantize, (None, *get_args(Quantize)))
        _one_of("dtype", self.dtype, (None, *DTYPES))
        if self.memory != "auto" and self.memory is not None:
            parse_memory(self.memory)
        for name, value in (("compile", self.compile), ("quantize", self.quantize)):
            if value is not None and self.offload:
                raise ValueError(f"{name}={value!r} with offload: weights that move stay as they are; drop either")

    def check(self, device: torch.device) -> None:
        """See that a device can do it.

        Raises:
            ValueError: it cannot.
        """
        if self.compile == "graphs" and device.type != "cuda":
            raise ValueError(f"compile='graphs' on {device}: CUDA graphs need a CUDA device; take 'default'")
        if self.quantize == "int8" and device.type not in ("cpu", "cuda"):
            raise ValueError(f"quantize='int8' on {device}: needs a CPU or a CUDA device; take 'int8-weights'")
        if self.quantize == "fp8" and device.type != "cuda":
            raise ValueError(f"quantize='fp8' on {device}: needs CUDA capability 8.9 (Ada, Hopper) or later")

    def changes(self) -> dict[str, object]:
        """The settings that make an image another one, where the others change its rounding."""
        kernel = self.attention if self.attention == "sage" else None  # the one that is not exact
        found = {"tile": self.tile, "quantize": self.quantize, "attention": kernel}
        return {name: value for name, value in found.items() if value is not None}

    def with_old_names(self, old: Mapping[str, Any]) -> Self:
        """This config with what was given under the names of earlier versions, which warn.

        Raises:
            TypeError: a name that never was.
        """
        names = {"memory": "memory", "attention": "attention", "quantise": "quantize", "compile": "compile"}
        for name in old:
            if name not in names:
                raise TypeError(f"unexpected argument {name!r}")
            warnings.warn(
                f"{name}= goes with the config now: config=InferenceConfig({names[name]}=…)",
                FutureWarning,
                stacklevel=3,
            )
        return replace(self, **{names[name]: value for name, value in old.items()})


def config_of(config: InferenceConfig | None, usual: InferenceConfig) -> InferenceConfig:
    """The config that is given, or the usual one.

    Raises:
        ValueError: something else was given.
    """
    if config is not None and not isinstance(config, InferenceConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"config={config!r}: expected an InferenceConfig, such as InferenceConfig(memory='8GB')")
    return usual if config is None else config


def parse_memory(memory: str | int) -> int:
    """Bytes of "8GB" (10⁹), "7.5 GiB" (2³⁰) or a number of bytes.

    Raises:
        ValueError: anything else, and less than a megabyte, which is a slip.
    """
    expected = "expected an amount such as '8GB', '7.5GiB' or a number of bytes"
    if isinstance(memory, bool) or not isinstance(memory, int | str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"memory={memory!r}: {expected}")
    if isinstance(memory, str) and memory.strip().isdecimal():
        size = int(memory)
    elif isinstance(memory, str):
        if (found := _MEMORY.fullmatch(memory)) is None or (found[3] and not found[2]):
            raise ValueError(f"memory={memory!r}: {expected}")
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2].lower()])
    else:
        size = memory
    if size < 1_000_000:
        raise ValueError(f"memory={memory!r} is {size} bytes, and no network fits in that; {expected}")
    return size


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(str(each) for each in allowed if each is not None)
        raise ValueError(f"{name}={value!r}: expected one of {choices}")
