"""`attach`: a pipeline whose images are decoded by us wherever it is called, until it is detached.

The decoder stands in the place of `pipe.vae`, and the start of each call puts a view on the scheduler that ends the
loop at the stop: attributes of these objects alone, which `detach` takes off again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pixdec.integrations.diffusers.calls import check_nothing_skipped, latent_at, prompts_for, shared_space
from pixdec.integrations.diffusers.denoising import Loop, plain_timesteps, replaced, with_size, with_step, with_view
from pixdec.integrations.diffusers.noise import check_scheduler
from pixdec.integrations.diffusers.spaces import check_one_image
from pixdec.integrations.diffusers.stand_in import DecoderOptions, DecoderVAE
from pixdec.integrations.stops import Stop, check_stops

if TYPE_CHECKING:
    from torch import Tensor

    from pixdec.decoder import PixelDecoder
    from pixdec.latents import Latent


class Attachment:
    """A pipeline with a decoder attached; `detach()`, or leaving it as a context, gives the pipeline back as it was."""

    def __init__(self, pipe: Any, stand_in: DecoderVAE, stops: list[Stop]):
        self.pipe, self._stand_in, self._stops = pipe, stand_in, stops
        self._prompt: str | list[str] | None = None
        self._loop: Loop | None = None
        self._call, self._changes = ExitStack(), ExitStack()
        stand_in.latent_of, stand_in.captions = self._latent, self._captions
        self._changes.enter_context(replaced(pipe, "vae", stand_in))
        # Every pipeline calls one of these first, and tells it the prompt.
        first = "check_inputs" if hasattr(pipe, "check_inputs") else "encode_prompt"
        self._changes.enter_context(replaced(pipe, first, self._with_begin(getattr(pipe, first))))

    def detach(self) -> None:
        """Take the decoder off. Twice does no harm."""
        self._call.close()
        self._changes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _with_begin(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def first(*args: Any, **kwargs: Any) -> Any:
            self._begin(signature.bind(*args, **kwargs).arguments)
            return original(*args, **kwargs)

        return first

    def _begin(self, given: dict[str, Any]) -> None:
        """A call of the pipeline begins, with these arguments."""
        self._call.close()  # of a call that ended in an error, or decoded nothing
        if self._stand_in.is_idle:
            return
        check_nothing_skipped(self.pipe, given)
        pipe, prompt, scheduler = self.pipe, given.get("prompt"), self.pipe.scheduler  # which may be another by now
        check_scheduler(scheduler)
        self._prompt = list(prompt) if isinstance(prompt, list) else prompt
        self._loop = loop = Loop(
            scheduler, self._stand_in.space, self._stops, estimates=self._stand_in.decoder.space.is_image
        )
        self._call.callback(plain_timesteps, scheduler)
        self._call.enter_context(replaced(scheduler, "set_timesteps", with_view(scheduler, loop)))
        self._call.enter_context(replaced(scheduler, "step", with_step(scheduler, loop, show=True)))
        if (sized := with_size(pipe, loop)) is not None:
            self._call.enter_context(replaced(pipe, "prepare_latents", sized))

    def _latent(self, grid: Tensor) -> Latent:
        """The latents that the call decodes, with what its loop knows of them."""
        assert self._loop is not None, "the pipeline began by what we watch"
        (held,) = self._loop.at_stops(interrupted=bool(getattr(self.pipe, "interrupt", False)))
        latent = latent_at(self._loop, held, grid)
        self._call.close()
        return latent

    def _captions(self, batch: int) -> str | Sequence[str]:
        chosen = self._stand_in.options.prompt
        return prompts_for(self._prompt, batch) if chosen is None else chosen


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

    It returns what it always does, `pipe(...).images` or a tuple, of the `output_type` asked for; with
    output_type="latent" its own latents at the stop. The arguments are those of `generate`. Pipelines made from this
    one (`from_pipe`) share its components: make them before, or after `detach`.

    Raises:
        ValueError: a decoder of another space, a pipeline that `generate` could not run, or one attached already.
    """
    if isinstance(vars(pipe).get("vae"), DecoderVAE):
        raise ValueError(f"this {type(pipe).__name__} has a decoder attached already; detach that first")
    if isinstance(stop_after, list | tuple):
        raise ValueError(f"stop_after={stop_after!r}: an attached pipeline returns one set of images; give one stop")
    stops = check_stops(stop_after)
    check_scheduler(pipe.scheduler)
    check_one_image(pipe, {})
    check_nothing_skipped(pipe, {})
    own = shared_space(pipe, decoder, space)
    options = DecoderOptions(decoder_prompt, decoder_steps, decoder_seed)
    return Attachment(pipe, DecoderVAE(decoder, getattr(pipe, "vae", None), options, own), stops)
