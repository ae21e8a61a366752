"""The short path beside the exact one: error, seconds, bytes; as Markdown.

python -m pixdec.bench.shortcuts --images FOLDER > docs/benchmarks/shortcuts.md

A shortcut is worth keeping that takes at least a tenth from the seconds, or from the weights, at more than 45 dB.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pixdec.bench.machine import library_versions, machine_facts
from pixdec.decoder import PixelDecoder
from pixdec.encoder import ImageEncoder
from pixdec.inference.compiled import compile_blocks
from pixdec.inference.memory import CHUNKS
from pixdec.inference.quantised import Kind, quantise, stored_bytes
from pixdec.io.images import READABLE, read_image, resize, to_tensor
from pixdec.latents import Latent
from pixdec.models.cost import Inputs, random_inputs
from pixdec.models.pid import PiD, PiDSettings

ENOUGH = 45.0  # dB
GAIN = 0.9
KINDS: tuple[Kind, ...] = ("int8", "int8-weights", "fp8")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

HEAD = """# The short path, beside the exact one

Made by `{command}`.

- PSNR is against the exact path, uncompiled in {dtype}, on the image in [0,1] before it is rounded to 8 bits: the mean
  over {images}, the worst in parentheses.
  Latents are the bundled encoder's, of the photographs' middle squares scaled to a quarter of the output.
- Seconds are {clock}: the median of one decode of each photograph.
  The exact path and the shortcuts take turns in an order that rotates; ×0.65 is the median of the seconds in parts of
  those of the exact path (compiled as the shortcut is, or not) in the same round.
- *Kept* is what takes at least a tenth from the seconds, or from the weights, at every size and stays above
  {enough:.0f} dB. All shortcuts are off unless they are asked for.
"""

TAIL = """
On a CPU eight-bit integers pay where the network is compiled, and at the released networks' width; the bundled one, 192
wide, loses uncompiled most of what it gains to the passes that round its activations.

Reuse of what blocks add to their input, which the last rows try out, is not in the package: the noise is drawn anew
between the steps, so that too little stays the same. It is tried where it costs the image least, in the last of the
four steps: for two of the six patch blocks (the first and the fourth) and for all but the first and the last, as it was
in the step before ("kept") or with its change since the one before that added ("extrapolated", of first order).

Sparse attention: not built. Attention of the bundled network is windowed as it was trained; for the released networks,
where it would pay beyond 4K, an error can only be measured with their weights.
"""


@dataclass(frozen=True)
class Way:
    """A way to compute an image: `call` of an input. `base` is the name of the exact way it is to be faster than, its
    own for an exact way. `weights` in bytes."""

    name: str
    base: str
    call: Callable[[Latent], Tensor]
    weights: int
    warm: bool = False  # whether the first call of a size is not to count


@dataclass(frozen=True)
class Figures:
    """Of one way at one size, one of each for every round: seconds, PSNR in dB (infinite for the exact way), seconds in
    parts of those of its base; and the most bytes that a call allocated on the device, None on a CPU."""

    seconds: Sequence[float]
    psnr: Sequence[float]
    ratios: Sequence[float]
    peak: int | None

    @property
    def cell(self) -> str:
        """As a table has it."""
        error = "" if min(self.psnr) > 120 else f"{statistics.fmean(self.psnr):.1f} dB ({min(self.psnr):.1f}), "
        peak = "" if self.peak is None else f", {self.peak / 2**20:,.0f} MiB"
        return f"{error}{statistics.median(self.seconds):.2f} s (×{statistics.median(self.ratios):.2f}){peak}"


@torch.inference_mode()
def main(
    images: Path,
    model: str = "pixdec-nano",
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    sides: tuple[int, ...] = (512, 1024, 2048),
    runs: tuple[int, ...] = (5, 3, 1),
    compiled: tuple[int, ...] = (512,),
    full_size: tuple[int, ...] = (),
    threads: int = 1,
) -> None:
    """Prints the page for `model` on the photographs in a folder.

    `runs`: photographs for each of `sides`, in pixels of the output; `compiled`: the sides at which compiled networks
    are measured too; `full_size`: sides at which a call of the released networks' architecture is timed, in bfloat16
    with random weights (compiled too, but not on a CPU, where that takes very long); `threads`: on a CPU.
    """
    if len(runs) != len(sides):
        raise ValueError(f"runs={runs} for sides={sides}: expected one number for each side")
    place = torch.device(device)
    torch.set_num_threads(threads)
    # The blocks share their code, and each size has its own shapes.
    torch._dynamo.config.recompile_limit = 256  # pyright: ignore[reportPrivateUsage]
    photographs = sorted(each for each in images.iterdir() if each.suffix.lower() in READABLE)[: max(runs)]
    if not photographs:
        raise ValueError(f"{images}: no images here")

    plain, missing = ways_of(model, place, PRECISIONS[dtype], compiled=False)
    fast = ways_of(model, place, PRECISIONS[dtype], compiled=True)[0] if compiled else []
    encoder = ImageEncoder.from_pretrained(device="cpu")
    found: dict[str, dict[int, Figures]] = {}
    for side, count in zip(sides, runs, strict=True):
        given = [latent_of(path, side // 4, encoder) for path in photographs[:count]]
        taking = [*plain, *(fast if side in compiled else [])]
        for name, figures in measured(taking, given, place).items():
            found.setdefault(name, {})[side] = figures
        print(f"{side} done", file=sys.stderr)

    print(
        HEAD.format(
            command=f"python -m pixdec.bench.shortcuts {' '.join(sys.argv[1:])}",
            dtype=dtype,
            images=f"{' / '.join(map(str, runs))} photographs of `{images.name}`",
            clock="of the device" if place.type == "cuda" else f"of the processor, all threads ({threads})",
            enough=ENOUGH,
        )
    )
    for line in facts(place):
        print(f"- {line}")
    print(f"\n## {model}\n")
    print_table([*plain, *fast], found, sides)
    for line in missing:
        print(f"\n{line}")
    print(TAIL, end="")
    if full_size:
        print_full_size(full_size, place, compiled=bool(compiled) and place.type != "cpu")


def facts(device: torch.device) -> list[str]:
    """What was measured on."""
    versions = {"torch": torch.__version__, **library_versions()}
    return [
        ", ".join(f"{key} {value}" for key, value in machine_facts(device).items()),
        ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchao", "triton") if name in versions),
    ]


def latent_of(path: Path, side: int, encoder: ImageEncoder) -> Latent:
    """The latent of a photograph's middle square at side x side pixels."""
    image = to_tensor(read_image(path))
    height, width = image.shape[2:]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    return encoder.encode(resize(image[:, :, top : top + least, left : left + least], side, side))


def ways_of(model: str, device: torch.device, dtype: torch.dtype, *, compiled: bool) -> tuple[list[Way], list[str]]:
    """The exact way first, then the shortcuts; and a line for each that this device does not have."""
    ending = ", compiled" if compiled else ""
    base = f"exact{ending}"
    ways, missing = list[Way](), list[str]()

    def add(name: str, precision: torch.dtype, change: Callable[[PixelDecoder], None]) -> None:
        decoder = PixelDecoder.from_pretrained(model, device=device, dtype=precision)
        try:
            change(decoder)
        except ValueError as error:
            missing.append(f"{name}: not measured here; {error}.")
            return
        if compiled:
            compile_blocks(decoder.network)
        weights = stored_bytes(decoder.network)
        warm = compiled or device.type == "cuda"
        ways.append(Way(f"{name}{ending}", base, lambda latent: decoder.decode(latent, output="pt"), weights, warm))

    add("exact", dtype, lambda _: None)
    if dtype != torch.bfloat16:
        add("bfloat16", torch.bfloat16, lambda _: None)
    for kind in KINDS:
        precision = torch.bfloat16 if kind == "fp8" else dtype
        add(kind, precision, lambda decoder, kind=kind: quantise(decoder.network, kind))
    if not compiled:
        for some, blocks in (("two", (0, 3)), ("four", (1, 2, 3, 4))):
            for how, order in (("kept", 0), ("extrapolated", 1)):
                add(
                    f"{some} blocks {how}",
                    dtype,
                    lambda decoder, blocks=blocks, order=order: reuse(decoder, blocks, order),
                )
    return ways, missing


def reuse(decoder: PixelDecoder, blocks: Sequence[int], order: int) -> None:
    """In a decode's last step some of the patch blocks add what they added in the step before (order 0), or that plus
    its change since the one before it (order 1), instead of being computed."""
    steps, backbone = len(decoder.model.times) - 1, decoder.network.backbone
    calls = itertools.count()
    step = 0

    def begin(*_: object) -> None:
        nonlocal step
        step = next(calls) % steps
        for history in histories:
            history.append([])

    def wrapped(block: nn.Module, history: list[list[Tensor]]) -> Callable[..., tuple[Tensor, Tensor | None]]:
        exact = block.forward

        def forward(x: Tensor, text: Tensor | None, *rest: object) -> tuple[Tensor, Tensor | None]:
            assert text is None, "the text would have to be kept too"
            del history[:-3]
            place = len(history[-1])  # which band of tokens this is
            if step < steps - 1:
                made, _ = exact(x, text, *rest)
                history[-1].append(made - x)
                return made, None
            before = history[-2][place]
            added = before if order == 0 else 2 * before - history[-3][place]
            history[-1].append(added)
            return x + added, None

        return forward

    chosen = [backbone.patch_blocks[i] for i in blocks]
    histories: list[list[list[Tensor]]] = [[] for _ in chosen]
    backbone.register_forward_pre_hook(begin)
    for block, history in zip(chosen, histories, strict=True):
        block.forward = wrapped(block, history)


def measured(ways: Sequence[Way], inputs: Sequence[Latent], device: torch.device) -> dict[str, Figures]:
    """All ways on all inputs, in turns. The first way is the exact one that PSNR is against."""
    for way in ways:
        if way.warm:
            way.call(inputs[0])
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    errors: dict[str, list[float]] = {way.name: [] for way in ways}
    peaks: dict[str, int] = {}
    for number, given in enumerate(inputs):
        made: dict[str, Tensor] = {}
        start = number % len(ways)
        for way in [*ways[start:], *ways[:start]]:
            before = start_of(device)
            made[way.name] = way.call(given)
            seconds[way.name].append(clock(device) - before)
            if device.type == "cuda":
                peaks[way.name] = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        for name, image in made.items():
            error = (image.double() - made[ways[0].name].double()).square().mean()
            errors[name].append(float(-10 * error.log10()))
    return {
        way.name: Figures(
            seconds[way.name],
            errors[way.name],
            [ours / exact for ours, exact in zip(seconds[way.name], seconds[way.base], strict=True)],
            peaks.get(way.name),
        )
        for way in ways
    }


def start_of(device: torch.device) -> float:
    """The clock, from an idle device whose memory is counted anew."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    return clock(device)


def clock(device: torch.device) -> float:
    """Seconds: those of the process on a CPU, so that other work on the machine does not count."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def print_table(ways: Sequence[Way], found: dict[str, dict[int, Figures]], sides: Sequence[int]) -> None:
    """One row for each way."""
    exact = ways[0].weights
    print("| | weights | " + " | ".join(f"{side}²" for side in sides) + " | kept for |")
    print("|---|---|" + "---|" * (len(sides) + 1))
    for way in ways:
        mine = found[way.name]
        cells = [mine[side].cell if side in mine else "" for side in sides]
        weights = f"{way.weights / 2**20:,.1f} MiB"
        print(f"| {way.name} | {weights} | {' | '.join(cells)} | {verdict(way, list(mine.values()), exact)} |")


def verdict(way: Way, figures: Sequence[Figures], exact: int) -> str:
    """What the way is worth keeping for."""
    if way.name == way.base:
        return ""
    if min(error for each in figures for error in each.psnr) <= ENOUGH:
        return "dropped"
    reasons = {
        "time": all(statistics.median(each.ratios) <= GAIN for each in figures),
        "weights": way.weights <= GAIN * exact,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds) or "dropped"


def print_full_size(sides: Sequence[int], device: torch.device, *, compiled: bool, runs: int = 3) -> None:
    """Seconds of one call of the released networks' architecture."""
    print("\n## One call of the full-size network, bfloat16\n")
    print(
        f"The median of {runs} calls, in turns, with random weights: speed does not depend on them, and an error would"
    )
    print("mean nothing.\n")
    print("| | weights | " + " | ".join(f"{side}²" for side in sides) + " |")
    print("|---|---|" + "---|" * len(sides))
    rows: dict[str, tuple[int, list[str]]] = {}
    for ending in ("", ", compiled") if compiled else ("",):
        networks: dict[str, PiD] = {}
        for kind in (None, *KINDS):
            with device:
                network = PiD(PiDSettings()).to(torch.bfloat16).requires_grad_(False).eval()
            if kind is not None:
                try:
                    quantise(network, kind)
                except ValueError:
                    continue
            if ending:
                compile_blocks(network)
            networks[f"{kind or 'exact'}{ending}"] = network
        for side in sides:
            given = random_inputs(PiDSettings(), side, side, dtype=torch.bfloat16, device=device)
            times: dict[str, list[float]] = {name: [] for name in networks}
            for number in range(runs + 1):
                for name, network in networks.items():
                    before = start_of(device)
                    call(network, given)
                    if number:  # the first ones warm up
                        times[name].append(clock(device) - before)
            for name, network in networks.items():
                ratios = [a / b for a, b in zip(times[name], times[f"exact{ending}"], strict=True)]
                row = rows.setdefault(name, (stored_bytes(network), []))
                row[1].append(f"{statistics.median(times[name]):.3f} s (×{statistics.median(ratios):.2f})")
    for name, (weights, cells) in rows.items():
        print(f"| {name} | {weights / 2**20:,.0f} MiB | {' | '.join(cells)} |")


def call(network: PiD, given: Inputs) -> Tensor:
    """The velocity, from a condition that is made anew."""
    assert given.latent is not None
    return network.velocity(given.x_t, given.t, given.text, network.condition(given.latent), given.sigma, CHUNKS[0])


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
