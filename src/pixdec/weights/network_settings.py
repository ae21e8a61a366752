"""Settings of a network from a file: inferred from the shapes of its tensors, or read from JSON."""

from __future__ import annotations

import contextlib
import json
import math
import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pixdec.latents import SPACES
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.catalog import CARDS, accepted_spaces

Shapes = Mapping[str, tuple[int, ...]]  # by original key
S = TypeVar("S")

_CONV_IN = "lq_proj.latent_proj.0.weight"
_RELEASED_INTERVAL = 2  # patch blocks
_REFERENCE_SIDE = {"v1": 1024, "v1.5": 2048}


def is_prior(shapes: Shapes) -> bool:
    """Whether the network has no latent adapter."""
    return not _has(shapes, "lq_proj.")


def version_of(shapes: Shapes) -> str:
    """ "v1.5" has a latent head for its pixel blocks, "v1" has none. The prior shares v1.5's reference size."""
    return "v1.5" if _has_pixel_head(shapes) or is_prior(shapes) else "v1"


def _has(shapes: Shapes, *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in shapes)


def _has_pixel_head(shapes: Shapes) -> bool:
    return _has(shapes, "lq_proj.pit_head.", "pit_lq_gate.")


def scale_of(space: str) -> int:
    """Upscaling factor of the released decoders of a space."""
    spaces = accepted_spaces(space) or ("",)
    return next(card.scale for card in CARDS if card.space in spaces and card.repository is not None)


def _unpack(space: str, version: str) -> int:
    return SPACES[space].patch if version == "v1.5" else 1


def possible_spaces(shapes: Shapes) -> tuple[str, ...]:
    """The spaces whose latents fit the first convolution of the adapter; of those that share latents the first."""
    version, channels = version_of(shapes), size(shapes, _CONV_IN, 1)
    fits = [s for s in SPACES.values() if s.channels == channels * _unpack(s.name, version) ** 2 and not s.is_image]
    return tuple(s.name for i, s in enumerate(fits) if not any(s.holds_latents_of(other) for other in fits[:i]))


def size(shapes: Shapes, key: str, axis: int) -> int:
    """One side of a tensor. Raises ValueError if the tensor is missing, has fewer axes, or is empty."""
    shape = shapes.get(key)
    if shape is None:
        raise ValueError(f"missing tensor {key}")
    if axis >= len(shape) or shape[axis] == 0:
        raise ValueError(f"mis-shaped tensor {key}, {list(shape)}")
    return shape[axis]


def _agreed(shapes: Shapes, *places: tuple[str, int]) -> int:
    """What most of these sides say, so that a single mis-shaped tensor is the one that is complained about later."""
    return Counter(size(shapes, key, axis) for key, axis in places).most_common(1)[0][0]


def _count(shapes: Shapes, prefix: str, first: int = 0) -> int:
    """How many numbered blocks there are."""
    numbers = {
        int(number)
        for key in shapes
        if key.startswith(prefix) and (number := key[len(prefix) :].split(".")[0]).isdigit()
    }
    return len([number for number in numbers if number >= first])


def _interval(depth: int, heads: int) -> int:
    """Patch blocks from one injection point to the next: ceil(depth / interval) = heads."""
    fitting = [interval for interval in range(1, depth + 1) if math.ceil(depth / interval) == heads]
    if _RELEASED_INTERVAL in fitting:
        return _RELEASED_INTERVAL
    if len(fitting) != 1:
        raise ValueError(f"{heads} latent heads for {depth} patch blocks: cannot tell where they belong")
    return fitting[0]


def settings_from_shapes(shapes: Shapes, space: str, scale: int) -> PiDSettings:
    """Settings of an original network: sizes from its tensors, what leaves no trace in them (rotary reference,
    padding, latent factor, unpacking) from its version and space. `space` and `scale` are not read for a prior.

    Raises:
        ValueError: a tensor that is needed to tell is missing, or sizes that no network has.
    """
    version = version_of(shapes)
    side = _REFERENCE_SIDE[version]
    depth = _count(shapes, "patch_blocks.")
    hidden = _agreed(
        shapes, ("s_embedder.proj.weight", 0), ("t_embedder.mlp.0.weight", 0), ("t_embedder.mlp.2.weight", 0)
    )
    head = _agreed(
        shapes, *((f"patch_blocks.0.attn.{norm}.weight", 0) for norm in ("q_norm_x", "k_norm_x", "q_norm_y"))
    )
    width = _agreed(
        shapes, ("pixel_embedder.proj.weight", 0), ("final_layer.norm.weight", 0), ("final_layer.linear.weight", 1)
    )
    block = "pixel_blocks.0."
    pixel_hidden = _agreed(
        shapes, (block + "attn.proj.weight", 0), (block + "attn.qkv.weight", 1), (block + "compress_to_attn.weight", 0)
    )
    flat = _agreed(  # p²·c
        shapes,
        (block + "compress_to_attn.weight", 1),
        (block + "expand_from_attn.weight", 0),
        (block + "expand_from_attn.bias", 0),
    )
    backbone = PixDiTSettings(
        patch=math.isqrt(flat // width),
        hidden=hidden,
        heads=hidden // head or 1,
        depth=depth,
        pixel_width=width,
        pixel_hidden=pixel_hidden,
        pixel_heads=pixel_hidden // size(shapes, block + "attn.q_norm.weight", 0) or 1,
        pixel_depth=_count(shapes, "pixel_blocks."),
        text_width=size(shapes, "y_embedder.proj.weight", 1),
        text_length=size(shapes, "y_pos_embedding", 1),
        reference=(side, side),
    )
    if is_prior(shapes):
        return PiDSettings(backbone, adapter=None)
    unpack = _unpack(space, version)
    return PiDSettings(
        backbone,
        AdapterSettings(
            latent_channels=size(shapes, _CONV_IN, 1) * unpack**2,
            latent_factor=SPACES[space].factor,
            scale=scale,
            width=_agreed(
                shapes, (_CONV_IN, 0), ("lq_proj.latent_proj.2.weight", 0), ("lq_proj.latent_proj.2.weight", 1)
            ),
            blocks=_count(shapes, "lq_proj.latent_proj.", first=3),
            interval=_interval(depth, _count(shapes, "lq_proj.output_heads.")),
            unpack=unpack,
            padding="replicate" if version == "v1.5" else "zeros",
            gate="token" if size(shapes, "lq_proj.gate_modules.0.content_proj.weight", 0) == 1 else "channel",
            pixel_head=_has_pixel_head(shapes),
            aux_rgb=_has(shapes, "lq_proj.lq_aux_rgb_head."),
        ),
    )


def settings_to_json(settings: object) -> str:
    """A settings dataclass, nested ones included, as JSON."""
    assert is_dataclass(settings) and not isinstance(settings, type)
    return json.dumps(asdict(settings))


def settings_from_json(text: str, kind: type[S]) -> S:
    """The settings dataclass `kind` from what `settings_to_json` wrote. Fields that are left out take their defaults.

    Raises:
        ValueError: not JSON, a field that `kind` does not have (written by a newer pixdec, perhaps), a value of the
        wrong
            type, or values that contradict each other.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"its settings are not JSON ({error})") from error
    return cast("S", _read(kind, values, "settings"))


def _read(hint: Any, value: object, where: str) -> object:
    """`value`, as JSON has it, as the type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        values, hints = cast("dict[str, object]", value), get_type_hints(hint)
        unknown = sorted(set(values) - {field.name for field in fields(hint)})
        if unknown:
            raise ValueError(f"{where} has the unknown field {unknown[0]!r}; was the file written by a newer pixdec?")
        given = {name: _read(hints[name], item, f"{where}.{name}") for name, item in values.items()}
        try:
            return hint(**given)
        except ArithmeticError as error:
            raise ValueError(f"{where}: no network can have {given}") from error
    if origin is Literal and value in arguments:
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        *others, last = (a for a in arguments if a is not types.NoneType)
        for kind in others:
            with contextlib.suppress(ValueError):
                return _read(kind, value, where)
        return _read(last, value, where)
    if origin is tuple and arguments[1:] == (...,) and isinstance(value, list):
        return tuple(_read(arguments[0], item, where) for item in _items(value))
    if origin is tuple and len(items := _items(value)) == len(arguments):
        return tuple(_read(a, item, where) for a, item in zip(arguments, items, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:  # a bool is no int here
        return value
    raise ValueError(f"{where}={value!r}: expected {hint if origin else getattr(hint, '__name__', hint)}")


def _items(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
