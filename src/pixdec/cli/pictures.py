"""What the verbs that decode have in common: one latent into one image file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pixdec.cli.options import DecodeWith, Dtype, HowToRun, check_device, torch_dtype
from pixdec.cli.plan import Job
from pixdec.cli.report import Report

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from tqdm import tqdm

    from pixdec.cli.processes import Process
    from pixdec.decoder import PixelDecoder
    from pixdec.latents import Latent

_CAPTIONS_AT_ONCE = 64  # an embedding of one takes 1.4 MB


def check_output(target: Path, width: int, height: int) -> None:
    """Refuse an image that could not be written, before it is decoded.

    Raises:
        ValueError: one line that names the size and the limit.
    """
    from pixdec.io.images import MAX_SIDE, output_format

    output_format(target, width, height)
    if max(width, height) > MAX_SIDE:
        limit = f"the limit is {MAX_SIDE} a side"
        raise ValueError(f"{target}: the output would have {width}x{height} pixels; {limit}")


def parse_size(text: str) -> tuple[int, int]:
    """The (height, width) of `--size WIDTHxHEIGHT`.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise ValueError(f"--size {text}: expected WIDTHxHEIGHT in pixels, such as 1920x1280")
    return int(found[2]), int(found[1])


def check_shape(size: tuple[int, int], source: Path, image: tuple[int, int]) -> None:
    """Refuse a `--size` (height, width) that an image (height, width) would have to be distorted for.

    Raises:
        ValueError: one line that names sizes of the right shape.
    """
    from pixdec.inference.sizes import has_shape_of, nearest

    if not has_shape_of(size, image):
        asked, own, *others = (f"{width}x{height}" for height, width in (size, image, *nearest(size, image)))
        raise ValueError(
            f"--size {asked}: {source} has the shape of {own}; ask for {' or '.join(others)}, and crop the result"
        )


def check_run(run: HowToRun, device: str | None, team: int = 1) -> None:
    """Refuse, before anything is loaded, a device that is not there (None: the fastest that is), and what it cannot or
    what is not installed.

    Raises:
        ValueError: one line that names the option.
    """
    from pixdec.devices import best_device
    from pixdec.inference.config import parse_memory
    from pixdec.inference.kernels import kernel_of

    check_device(device)
    memory, kind = run.memory, str(best_device()) if device is None else device
    if team > 1 and memory == "auto":  # their plans could differ, and each would wait for what the other never does
        raise ValueError(
            f"--memory auto with --team {team}: each process would plan for what its own device has; say how much all "
            "of them may take, such as --memory 8GB"
        )
    if memory is not None and memory != "auto":
        with _as_option("memory", memory):
            parse_memory(memory)
    for option, value in (("quantise", "fp8"), ("compile", "graphs")):
        if getattr(run, option) == value and not kind.startswith("cuda"):
            raise ValueError(f"--{option} {value} on {kind}: needs a CUDA device; leave it out")
    if run.attention != "auto":
        with _as_option("attention", run.attention):
            kernel_of(run.attention)


def open_decoder(
    model: str,
    device: str | None,
    dtype: Dtype | None,
    space: str | None,
    *,
    caption: str,
    steps: int | None,
    lora: str | None = None,
    lora_strength: float = 1.0,
    run: HowToRun | None = None,
) -> PixelDecoder:
    """Load a decoder, with a LoRA if one is named, to be run so, and see that it takes this caption, so many steps and
    such tiles, once for all images. `check_run` comes first.

    Raises:
        ValueError: it does not, or as `PixelDecoder.from_pretrained`.
        OSError: as `PixelDecoder.from_pretrained`.
    """
    from pixdec.decoder import PixelDecoder
    from pixdec.inference.config import InferenceConfig
    from pixdec.sampling.flow import student_times

    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: expected at least 1")
    run = run or HowToRun()
    config = InferenceConfig(
        attention=run.attention, compile=run.compile, memory=run.memory, tile=run.tile or None, quantize=run.quantise
    )
    decoder = PixelDecoder.from_pretrained(model, device, torch_dtype(dtype), space=space, config=config)
    if steps is not None and decoder.model.kind == "student":
        student_times(decoder.model.times, steps, distilled=decoder.is_distilled)
    if caption and not decoder.model.needs_text:
        raise ValueError(f"--caption {caption!r}: {decoder.model.name} takes no text; leave it out")
    if lora is not None:
        decoder.load_lora(lora, lora_strength)
    elif lora_strength != 1:
        raise ValueError(f"--lora-strength {lora_strength}: of which LoRA? Name its file with --lora")
    if run.memory is None:
        try:
            decoder.prepare()
        except ValueError as error:
            said = str(error)
            for option, name in (("tile", "tile"), ("attention", "attention"), ("quantise", "quantize")):
                value = getattr(run, option)
                said = said.replace(f"{name}={value!r}", f"--{option} {value}", 1)
            raise ValueError(said) from error
    return decoder


def open_for(process: Process, by: DecodeWith, caption: str, *, any_images: bool) -> PixelDecoder | None:
    """The decoder of a process that shares images out, or an image with its team; None for one that has no images.

    Raises:
        ValueError, OSError: as `open_decoder`.
    """
    device = process.device(by.device)
    process.context(device, by.team)  # all processes meet, also those without images
    if not any_images:
        return None
    if not process.leads(by.team):
        warnings.simplefilter("ignore")  # the first of the team says it
    return open_decoder(
        by.model,
        device,
        by.dtype,
        by.space,
        caption=caption,
        steps=by.steps,
        lora=by.lora,
        lora_strength=by.lora_strength,
        run=by.how,
    )


def how_made(decoder: PixelDecoder, run: HowToRun, size: tuple[int, int] | None) -> dict[str, object]:
    """What an image records of a LoRA, of how the network was run as far as that changes the image, of the memory that
    tiles and precision were planned for, and of the (height, width) it was resampled to; nothing without."""
    lora = {} if decoder.lora is None else {"lora": decoder.lora.name, "lora_strength": decoder.lora_strength}
    changes = {name: value for name, value in run.changes.items() if value is not None}
    memory = {} if run.memory is None else {"memory": run.memory}
    return {**lora, **changes, **memory, **({} if size is None else {"width": size[1], "height": size[0]})}


def tell_plan(decoder: PixelDecoder, rows: int, columns: int, job: Job, report: Report) -> None:
    """Say how an image would be decoded, of a latent of so many rows and columns of cells, and what that would take.

    Raises:
        ValueError: it does not fit.
    """
    from pixdec.inference.sizes import Frame

    patch = decoder.network.patch
    plan = decoder.plan(*Frame.of(rows, columns, decoder.space.factor * decoder.scale, patch).whole)
    if report.json_lines:
        figures = {**asdict(plan), "dtype": str(plan.dtype).removeprefix("torch."), "how": plan.how}
        figures |= {"peak": plan.peak, "total": plan.total}
        report.done({"input": str(job.source), "output": str(job.target), "plan": figures}, "")
        return
    print(f"{job.source}:", *plan.lines(), sep="\n  ", flush=True)


def embed_captions(decoder: PixelDecoder, captions: Iterable[str], device: str | torch.device) -> None:
    """Embed into the cache, all at once, the texts that decoding with these captions asks for, if the decoder reads
    text: otherwise every decode would load the caption encoder for itself.

    Raises:
        ValueError: as `CaptionEmbeddings`.
    """
    texts = list(dict.fromkeys(captions))
    if not texts or not decoder.model.needs_text:
        return
    from pixdec.text import NEGATIVE_PROMPT, CaptionEmbeddings

    if decoder.model.kind == "teacher":  # which is guided away from it
        texts.append(NEGATIVE_PROMPT)
    embeddings = CaptionEmbeddings()
    missing = embeddings.missing(texts)
    for start in range(0, len(missing), _CAPTIONS_AT_ONCE):
        embeddings(missing[start : start + _CAPTIONS_AT_ONCE], device)


def decode_one(
    decoder: PixelDecoder,
    latent: Latent,
    *,
    caption: str,
    seed: int,
    steps: int | None,
    bar: tqdm[None],
    images: int,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, int]:
    """Decode a batch of one, moving the bar (of a run over so many images) at every step.

    Returns:
        The image (1, 3, H, W) in [-1, 1], of (height, width) `size` if that is given, and the number of steps taken.
    """
    last = None
    for step in decoder.stream(latent, caption, seed=seed, steps=steps, size=size):
        bar.total = images * step.total
        bar.update()
        last = step
    assert last is not None, "a decoder takes at least one step"
    return last.x0, last.total


@contextmanager
def _as_option(option: str, value: object, name: str | None = None) -> Generator[None]:
    """What a ValueError of the block says of an argument, `name` or the option's, it says of the option."""
    try:
        yield
    except ValueError as error:
        said, given, asked = str(error), f"{name or option}={value!r}", f"--{option} {value}"
        raise ValueError(said.replace(given, asked, 1) if given in said else f"{asked}: {said}") from error
