"""The process that decodes on one device: it loads models, makes batches of works that fit together, and stops what is
no longer wanted within a step.

A process, because a library that crashes, hangs or leaks takes nothing with it but what it held. It talks through one
pipe; messages are tuples whose first item says what they are:

    to it       ("work", [(id, Work, previews)]) · ("cancel", id)
    from it     ("ready", {model: description}) · ("unusable", why a model cannot be loaded) · ("models", names, bytes)
                ("started", id, seconds, size, first) · ("step", id, index, total, preview or None)
                ("latent", id, bytes, shape, seconds) · ("done", id, Pixels, seconds, peak bytes)
                ("failed", id, ServiceError) · ("idle",)
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from pixdec.decoder import TEACHER_STEPS, PixelDecoder
from pixdec.devices import release_memory
from pixdec.generation.decoding import open_decoder
from pixdec.generation.enlarge import encoder_for
from pixdec.generation.pipeline import (
    Blueprint,
    call_arguments,
    check_call,
    find_pipeline,
    load_pipeline,
    pipeline_errors,
)
from pixdec.generation.prompts import Prompt
from pixdec.generation.settings import DecodingSettings, GenerationSettings
from pixdec.inference.config import parse_memory
from pixdec.inference.engine import MemoryExhaustedError
from pixdec.inference.quantize import stored
from pixdec.integrations.diffusers import capture
from pixdec.integrations.diffusers.spaces import space_of
from pixdec.io.files import first_line_of
from pixdec.latents import Latent
from pixdec.serve.jobs import Work
from pixdec.serve.pieces import Loaded, Piece, failure_of, finished, prepared, preview_of
from pixdec.serve.settings import ModelSettings, ServeSettings
from pixdec.weights.load import find_weights

BEAT = 0.25  # seconds between signs of life


def run_worker(connection: Connection, settings: ServeSettings, device: str, beat: Any) -> None:
    """What the process does: `beat` is a shared number that tells when it was last alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # oneDNN keeps what it has compiled for each shape, 1024 of them without this: 80 MB where every size is another.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

    def live() -> None:
        while True:
            beat.value = time.monotonic()
            time.sleep(BEAT)

    threading.Thread(target=live, daemon=True).start()
    try:
        Worker(connection, settings, device).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        os._exit(0)


class Cancelled(Exception):  # noqa: N818  # nothing went wrong
    """A work is no longer wanted."""


class Worker:
    """Does works one batch after the other, and looks between the steps whether they are still wanted."""

    def __init__(self, connection: Connection, settings: ServeSettings, device: str):
        self.connection, self.settings, self.device = connection, settings, device
        self.models: OrderedDict[str, Loaded] = OrderedDict()
        self.pipelines: dict[str, tuple[Blueprint, Any]] = {}
        self.cancelled: set[str] = set()

    def run(self) -> None:
        """Until the pipe is closed."""
        torch.set_grad_enabled(False)
        descriptions = dict[str, dict[str, Any]]()
        try:
            for name in self.settings.models:
                descriptions[name] = _description(self.model(name))
                if not self.settings.load:
                    self._evict(0)
            for name in self.settings.pipelines if self.settings.load else ():
                self.pipeline(name)
        except (ValueError, OSError) as error:
            self.send("unusable", first_line_of(error))
            return
        self.send("ready", descriptions)
        self._tell_models()
        while True:
            message = self.receive()
            if message[0] == "cancel":  # of what has ended already
                continue
            self.cancelled.clear()
            self.batch(message[1])
            self.send("idle")

    def send(self, *message: object) -> None:
        # Not `Connection.send`, which hands tensors over as files that outlive a killed process.
        self.connection.send_bytes(pickle.dumps(message, protocol=5))

    def receive(self) -> tuple[Any, ...]:
        return pickle.loads(self.connection.recv_bytes())

    def wanted(self, id: str) -> bool:
        """Whether nobody has cancelled it so far."""
        while self.connection.poll():
            message = self.receive()
            assert message[0] == "cancel", "a worker gets one batch at a time"
            self.cancelled.add(message[1])
        return id not in self.cancelled

    # Models

    def model(self, name: str) -> Loaded:
        """A decoder, loaded if it is not, in the place of those that were not used for longest."""
        if name not in self.models:
            self.models[name] = self._load(name, self.settings.models[name])
            self._tell_models()
        self.models.move_to_end(name)
        return self.models[name]

    def pipeline(self, name: str) -> tuple[Blueprint, Any]:
        """A pipeline, which stays."""
        if name not in self.pipelines:
            settings = self.settings.pipelines[name]
            blueprint = find_pipeline(settings.source)
            self.pipelines[name] = blueprint, load_pipeline(blueprint, self.device, None, offload=settings.offload)
        return self.pipelines[name]

    def _load(self, name: str, settings: ModelSettings) -> Loaded:
        if self.settings.model_memory is not None:
            path = find_weights(settings.source)
            coming = (
                path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.safetensors"))
            )
            self._evict(parse_memory(self.settings.model_memory) - coming)
        by = DecodingSettings(device=self.device, dtype=settings.dtype, space=settings.space)
        decoder = open_decoder(settings.source, by, settings.config())
        try:
            encoder = encoder_for(decoder, settings.vae)
        except ValueError:
            if settings.vae is not None:
                raise
            encoder = None  # it decodes latents only
        return Loaded(decoder, encoder, sum(tensor.nbytes for tensor in stored(decoder.network)))

    def _evict(self, budget: int) -> None:
        while self.models and sum(each.size for each in self.models.values()) > budget:
            self.models.popitem(last=False)
        release_memory()

    def _tell_models(self) -> None:
        self.send("models", list(self.models), sum(each.size for each in self.models.values()))

    # Works

    def batch(self, works: Sequence[tuple[str, Work, bool]]) -> None:
        """Works of one `Work.batch_key`."""
        if works[0][1].kind == "generate":
            for each in works:
                self._guarded([each[0]], self._generate, *each)
            return
        pieces = list[Piece]()
        for each in works:
            if self.wanted(each[0]):
                self._guarded([each[0]], self._prepare, pieces, *each)
        groups: dict[object, list[Piece]] = {}
        for piece in pieces:  # a header tells a size as it is stored, which may lie on its side
            groups.setdefault((piece.latent.tensor.shape, piece.latent.tensor.dtype), []).append(piece)
        for group in groups.values():
            self._guarded([piece.id for piece in group], self._decode, group)

    def _guarded(self, ids: Sequence[str], do: Any, *arguments: Any) -> None:
        """Whatever goes wrong is the failure of these works alone, of those that have not ended."""
        try:
            do(*arguments)
        except Cancelled:
            pass
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            for id in ids:
                self.send("failed", id, failure_of(error))

    def _prepare(self, pieces: list[Piece], id: str, work: Work, previews: bool) -> None:
        piece, size, first = prepared(
            (id, work, previews), self.model(work.model), self.settings.models[work.model].vae
        )
        self.send("started", id, piece.seconds, size, first)
        pieces.append(piece)

    def _decode(self, pieces: Sequence[Piece]) -> None:
        """Pieces of one shape, all at once, or in halves where they do not fit."""
        try:
            self._decode_together(pieces)
        except MemoryExhaustedError:
            left = [piece for piece in pieces if piece.wanted]
            if len(left) < 2:
                raise
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                self._guarded([piece.id for piece in half], self._decode, half)

    def _decode_together(self, pieces: Sequence[Piece]) -> None:
        work, decoder = pieces[0].work, self.model(pieces[0].work.model).decoder
        latents = [piece.latent for piece in pieces]
        tensor, sigma = (torch.cat([getattr(each, name) for each in latents]) for name in ("tensor", "sigma"))
        joined = Latent(tensor, latents[0].space, sigma, statistics=False)
        reads = decoder.model.needs_text  # a prompt for a pipeline may end at one that does not
        prompts = [piece.work.prompt if reads else "" for piece in pieces]
        seeds = [piece.work.seed for piece in pieces]
        if decoder.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(decoder.device)
        started = time.perf_counter()
        steps = decoder.stream(joined, prompts, seed=seeds, steps=work.steps)
        step, rows = next(steps), None
        while True:
            is_last = step.index + 1 == step.total
            for piece, x0 in zip(pieces, step.x0, strict=True):
                if piece.wanted and not self.wanted(piece.id):
                    piece.wanted, rows = False, []
                if piece.wanted and not is_last:
                    self._tell_step(piece.id, step.index, step.total, x0 if piece.previews else None)
            if not any(piece.wanted for piece in pieces):
                steps.close()
                return
            if is_last:
                break
            rows = None if rows is None else [row for row, piece in enumerate(pieces) if piece.wanted]
            step, rows = steps.send(rows), None
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated(decoder.device) if decoder.device.type == "cuda" else None
        for row, piece in enumerate(pieces):
            if piece.wanted:
                piece.seconds["decode"] = seconds
                pixels = finished(piece, step, row, decoder)
                self.send("done", piece.id, pixels, piece.seconds, peak)
                piece.wanted = False

    def _tell_step(self, id: str, index: int, total: int, x0: Tensor | None) -> None:
        self.send("step", id, index + 1, total, None if x0 is None else preview_of(x0))

    def _generate(self, id: str, work: Work, previews: bool) -> None:
        """A pipeline as far as it is to run; its latent goes back, to be decoded where its decoder is."""
        assert work.pipeline is not None
        settings, asked = self.settings.pipelines[work.pipeline], work.options
        blueprint, pipe = self.pipeline(work.pipeline)
        generation = GenerationSettings(
            pipeline=settings.source,
            steps=asked.get("generator_steps", settings.steps),
            guidance=asked.get("guidance", settings.guidance),
            negative=asked.get("negative"),
            height=asked.get("height"),
            width=asked.get("width"),
        )
        call = call_arguments(blueprint, Prompt(work.prompt, ""), generation)
        check_call(blueprint, space_of(pipe, None), call, "the request")
        total = blueprint.steps(call.get("num_inference_steps")) or 0
        started = time.perf_counter()

        def after_step(_pipe: Any, index: int, _t: Any, held: dict[str, Any]) -> dict[str, Any]:
            if not self.wanted(id):
                raise Cancelled
            self._tell_step(id, index, asked.get("stop_after") or max(total, index + 1), None)
            return held

        if not self.wanted(id):
            raise Cancelled
        self.send("started", id, {}, None, None)
        generator = torch.Generator("cpu").manual_seed(work.seed)
        try:
            with pipeline_errors(self.device):
                latent = capture(
                    pipe,
                    stop_after=asked.get("stop_after"),
                    space="rgb" if asked["as_image"] else None,
                    generator=generator,
                    callback_on_step_end=after_step,
                    **call,
                )
        except ValueError as error:
            if isinstance(error.__cause__, Cancelled):
                raise Cancelled from error
            raise
        self.send("latent", id, latent.to_bytes(), tuple(latent.tensor.shape), time.perf_counter() - started)


def _description(loaded: Loaded) -> dict[str, Any]:
    """What clients and the engine must know of a decoder."""
    decoder = loaded.decoder
    trained = len(decoder.model.times) - 1 if decoder.model.kind == "student" else None
    return {
        "space": decoder.space.name,
        "spaces": list(decoder.model.spaces),
        "scale": decoder.scale,
        "factor": decoder.space.factor,
        "steps": [1, trained],
        "default_steps": decoder.model.default_steps or TEACHER_STEPS,
        "licence": decoder.model.licence,
        "needs_text": decoder.model.needs_text,
        "encodes": loaded.encoder is not None or decoder.space.is_image,
        "speed": _first_speed(decoder) if decoder.space.is_image else None,
    }


def _first_speed(decoder: PixelDecoder, side: int = 128) -> float:
    """Pixels a second of a small image, so that the first client too is told how long it takes. Decoders of latents are
    too slow to be asked."""
    latent = Latent(torch.zeros(1, 3, side, side), decoder.space)
    decoder.decode(latent)  # the first call of all is slower than any other
    begun = time.perf_counter()
    decoder.decode(latent)
    return (side * decoder.scale) ** 2 / (time.perf_counter() - begun)
