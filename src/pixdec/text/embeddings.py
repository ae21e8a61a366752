"""The way from captions to the `text` a network is given: cache first, encoder only if something is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pixdec.devices import release_memory
from pixdec.io.json_lines import json_digest
from pixdec.text.cache import EmbeddingCache
from pixdec.text.gemma import CaptionEncoder, CaptionSettings, shorten
from pixdec.text.source import GEMMA, EncoderUnavailableError, identity

_FORMAT = 1  # raise it when the way from caption to embedding changes: all keys change with it


class CaptionEmbeddings:
    """Caption embeddings (B, T, E), each computed once in the life of a cache folder.

    The encoder is loaded only when a caption is not cached and is gone when the call returns, so it never shares the
    memory with a decode.

    Args:
        source: the encoder, a hub id or a local folder.
        revision: branch, tag or commit of a hub repository; a local folder has none.
        cache: where embeddings are kept; None is the user's cache folder.
        settings: chi_prompt, T and E; None is what the released weights were trained with.
        batch: the number of captions encoded at a time.
    """

    def __init__(
        self,
        source: str | Path = GEMMA,
        *,
        revision: str = "main",
        cache: EmbeddingCache | None = None,
        settings: CaptionSettings | None = None,
        batch: int = 8,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}: expected at least 1")
        self.source = source
        self.revision = revision
        self.cache = cache or EmbeddingCache()
        self.settings = settings or CaptionSettings()
        self.batch = batch

    def __call__(
        self,
        captions: Sequence[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> Tensor:
        """Embed captions; the encoder, if it is needed, runs on `device`.

        Returns:
            (B, T, E) on `device`. Embeddings are computed and kept in bfloat16: a wider dtype adds no precision.

        Raises:
            ValueError: `captions` is empty, a single string, or holds something else than strings.
            EncoderUnavailableError: a caption is not cached and the encoder cannot be had (a ValueError as well).
        """
        _check(captions)
        cached = {caption: self._cached(caption) for caption in dict.fromkeys(captions)}
        found = {caption: embedding for caption, embedding in cached.items() if embedding is not None}
        missing = [caption for caption in cached if caption not in found]
        if missing:
            found.update(self._encode(missing, device))
        return torch.stack([found[caption] for caption in captions]).to(device, dtype)  # (B, T, E)

    def missing(self, captions: Sequence[str]) -> list[str]:
        """The distinct captions of these that a call would load the encoder for."""
        _check(captions)
        return [caption for caption in dict.fromkeys(captions) if self._cached(caption) is None]

    def key(self, caption: str) -> str:
        """The name of a caption's embedding in the cache: SHA-256 of all that determines it."""
        parts = {"format": _FORMAT, "encoder": self._identity, "caption": caption, **asdict(self.settings)}
        return json_digest(parts)

    @cached_property
    def _identity(self) -> str:
        return identity(self.source, self.revision)

    def _cached(self, caption: str) -> Tensor | None:
        return self.cache.load(self.key(caption), (self.settings.tokens, self.settings.width))

    def _encode(self, captions: list[str], device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
        """Yield every caption with its embedding (T, E), stored; the encoder lives as long as this runs."""
        try:
            encoder = CaptionEncoder.from_pretrained(
                self.source, revision=self.revision, device=device, settings=self.settings
            )
        except EncoderUnavailableError as error:
            raise EncoderUnavailableError(
                f"the caption {shorten(captions[0])} has no embedding in {self.cache.folder} yet, and {error}; "
                "captions, the empty one too, can also be embedded once on another machine and that folder copied here"
            ) from error
        try:
            for start in range(0, len(captions), self.batch):
                some = captions[start : start + self.batch]
                for caption, embedding in zip(some, encoder(some).cpu(), strict=True):
                    self.cache.store(self.key(caption), embedding)
                    yield caption, embedding
        finally:
            del encoder
            release_memory()


def _check(captions: Sequence[str]) -> None:
    if isinstance(captions, str):
        raise ValueError(f"captions is the single string {shorten(captions)}: expected a list of strings")
    if not captions:
        raise ValueError("captions is empty: expected at least one string ('' is the empty caption)")
    for caption in captions:
        if not isinstance(caption, str):  # pyright: ignore[reportUnnecessaryIsInstance]  a public border
            raise ValueError(f"a caption is {caption!r}: expected a string")
