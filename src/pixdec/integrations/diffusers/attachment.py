"""`attach`: a pipeline whose images are decoded by us wherever it is called, until it is detached."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pixdec.integrations.diffusers.calls import DecoderOptions, decoded, shared_space, with_images
from pixdec.integrations.diffusers.noise import check_scheduler
from pixdec.integrations.diffusers.stops import Stop, check_stops

if TYPE_CHECKING:
    from pixdec.decoder import PixelDecoder


class Attachment:
    """A pipeline with a decoder attached; `detach()`, or leaving it as a context, gives the pipeline back as it was."""

    def __init__(self, pipe: Any, original: type):
        self.pipe, self._original = pipe, original

    def detach(self) -> None:
        """Take the decoder off. Twice does no harm."""
        self.pipe.__class__ = self._original

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    pipe: Any,
    decoder: PixelDecoder,
    *,
    stop_after: Stop = None,
    space: str | None = None,
    decoder_prompt: str | Sequence[str] | None = None,
    decoder_steps: int | None = None,
    decoder_seed: int | Sequence[int] = 0,
) -> Attachment:
    """From now on `pipe(...)` stops after `stop_after` steps and returns images that `decoder` made, 4x larger.

    It returns what it always does, `pipe(...).images` or a tuple, of the `output_type` asked for. With
    output_type="latent" it is left alone entirely: its own latents, of the full run. The arguments are those of
    `generate`. Pipelines made from this one (`from_pipe`) are not attached.

    Only the object's class changes, to a subclass with another `__call__`: python looks calls up there. Nothing is
    added to pipeline, scheduler or VAE.

    Raises:
        ValueError: a decoder of another space, a pipeline that `generate` could not run, or one attached already.
    """
    original = type(pipe)
    if getattr(original, "_pixdec_attached", False):
        raise ValueError(f"this {original.__name__} has a decoder attached already; detach that first")
    if isinstance(stop_after, list | tuple):
        raise ValueError(f"stop_after={stop_after!r}: an attached pipeline returns one set of images; give one stop")
    stops = check_stops(stop_after)
    check_scheduler(pipe.scheduler)
    shared_space(pipe, decoder, space)
    options = DecoderOptions(decoder_prompt, decoder_steps, decoder_seed)
    run: Any = original.__call__
    signature = inspect.signature(run)

    @functools.wraps(run)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        del arguments["self"]
        for extra in (p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD):
            arguments.update(arguments.pop(extra, {}))
        if arguments.get("output_type") == "latent":  # which is also how `generate` itself calls the pipeline
            return run(self, **arguments)
        wrapped = arguments.pop("return_dict", True)
        images, output = decoded(self, decoder, stops, space, options, arguments)
        return with_images(output, images[0]) if wrapped else (images[0],)

    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    pipe.__class__ = type(original.__name__, (original,), {**names, "__call__": call, "_pixdec_attached": True})
    return Attachment(pipe, original)
