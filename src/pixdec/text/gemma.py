"""Captions to embeddings with Gemma-2, exactly as the released decoders were trained.

Legend: B captions, L tokens of the padded prompt, T tokens kept (300), E their width (2304).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pixdec.io.files import first_line_of
from pixdec.io.quiet import quiet
from pixdec.text.instructions import CHI_PROMPT
from pixdec.text.source import GEMMA, EncoderUnavailableError, fetch


@dataclass(frozen=True)
class CaptionSettings:
    """What, besides the encoder and the caption, determines an embedding.

    Attributes:
        chi_prompt: the instruction put before every caption.
        tokens: T, the number of positions kept: the first one and the last T-1.
        width: E, the width of the encoder's hidden states.
    """

    chi_prompt: str = CHI_PROMPT
    tokens: int = 300
    width: int = 2304

    def __post_init__(self) -> None:
        if not self.chi_prompt:
            raise ValueError("chi_prompt is empty: expected the instruction the weights were trained with")
        if self.tokens < 3:
            raise ValueError(f"tokens is {self.tokens}: expected at least 3 (first token, end of chi_prompt, caption)")


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    bos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, text: list[str]) -> Mapping[str, list[list[int]]]: ...


class CaptionEncoder:
    """Gemma-2's decoder as an encoder: `encoder(captions)` is (B, T, E), bfloat16.

    The prompt is `chi_prompt + caption`, padded on the right or cut to L = tokens(chi_prompt) + T - 2 tokens, the
    leading <bos> counted; of the last hidden states (after the final norm) position 0 and the last T-1 are kept. So a
    caption has room for T-2 tokens; the end of a longer one is cut off with a warning. Padding is masked as a key; its
    own hidden states are part of the embedding, as in training. Source: PiD (arXiv 2605.23902) and its checkpoints.

    Args:
        tokenizer: puts <bos> first and has a padding token; on which side it pads does not matter.
        model: takes `input_ids`, `attention_mask` (B, L) and returns `last_hidden_state` (B, L, E).
        settings: chi_prompt, T and E.

    Raises:
        ValueError: the tokenizer has no padding token or puts no <bos> first.
    """

    def __init__(self, tokenizer: Tokenizer, model: nn.Module, settings: CaptionSettings | None = None) -> None:
        self.settings = settings or CaptionSettings()
        self._tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False)
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token: expected Gemma-2's, with <pad>")
        self._padding = tokenizer.pad_token_id
        chi_tokens = self._tokenize([self.settings.chi_prompt])[0]
        if tokenizer.bos_token_id is None or chi_tokens[0] != tokenizer.bos_token_id:
            raise ValueError(
                f"the tokenizer puts token {chi_tokens[0]} first: expected <bos> ({tokenizer.bos_token_id})"
            )
        self.length = len(chi_tokens) + self.settings.tokens - 2

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = GEMMA,
        *,
        revision: str = "main",
        device: str | torch.device = "cpu",
        settings: CaptionSettings | None = None,
    ) -> CaptionEncoder:
        """Load tokenizer and bfloat16 weights (5.2 GB for the real one) from a hub repository or a local folder.

        Raises:
            EncoderUnavailableError: transformers is not installed, or `source` is not there, cannot be fetched, or is
                not a whole Gemma-2 of the expected width.
        """
        settings = settings or CaptionSettings()
        library = _transformers()  # before the download, which is long
        tokenizer, model = _load(library, fetch(source, revision))
        if model.config.hidden_size != settings.width:
            raise EncoderUnavailableError(
                f"the caption encoder {str(source)!r} is {model.config.hidden_size} wide; expected {settings.width}"
            )
        return cls(tokenizer, model.to(device), settings)

    @torch.no_grad()  # and not inference_mode: a trainer saves embeddings for its backward pass
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Encode captions.

        Returns:
            (B, T, E) bfloat16 on the encoder's device.

        Raises:
            ValueError: an embedding is not finite.
        """
        device = next(self._model.parameters()).device
        token_ids, mask = (tensor.to(device) for tensor in self._prompts(captions))  # (B, L)
        # The caller's autocast must not choose the precision of an embedding that is kept on disk.
        with torch.autocast(device.type, enabled=False):
            output = self._model(input_ids=token_ids, attention_mask=mask, use_cache=False)
            hidden = output.last_hidden_state  # (B, L, E)
            kept = torch.cat([hidden[:, :1], hidden[:, 1 - self.settings.tokens :]], dim=1)  # (B, T, E)
        if not torch.isfinite(kept).all():
            raise ValueError(
                f"the caption encoder gave values that are not finite on {device}: encode on another device"
            )
        return kept.to(torch.bfloat16)

    def _prompts(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L), padded on the right, and the mask (B, L) of those that are not padding."""
        rows = self._tokenize([self.settings.chi_prompt + caption for caption in captions])
        for caption, row in zip(captions, rows, strict=True):
            if len(row) > self.length:
                warnings.warn(
                    f"the caption {shorten(caption)} is {len(row) - self.length} tokens too long, its end is ignored: "
                    f"expected at most {self.settings.tokens - 2} tokens",
                    stacklevel=2,
                )
        # By hand, not by the tokenizer: Gemma's pads on the left by default, and that setting travels with its files.
        token_ids = torch.full((len(rows), self.length), self._padding, device="cpu")
        mask = torch.zeros_like(token_ids)
        for index, row in enumerate(rows):
            kept = row[: self.length]
            token_ids[index, : len(kept)] = torch.tensor(kept, device="cpu")
            mask[index, : len(kept)] = 1
        return token_ids, mask

    def _tokenize(self, prompts: list[str]) -> list[list[int]]:
        return self._tokenizer(prompts)["input_ids"]


def shorten(caption: str) -> str:
    """A caption in quotes, on one line and at most 40 characters long, to name it in a message."""
    return repr(caption if len(caption) <= 40 else caption[:37] + "...")


def _transformers() -> Any:  # Any: its auto classes are hardly typed
    try:
        import transformers
    except ImportError as error:
        raise EncoderUnavailableError(
            "encoding a caption needs transformers, which is not installed: run `pip install 'pixdec[pipelines]'`"
        ) from error
    return transformers


def _load(library: Any, folder: Path) -> tuple[Tokenizer, Any]:
    """Tokenizer and model out of a folder, all of it or an error."""
    try:
        with quiet("transformers"):
            tokenizer = library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model, report = library.AutoModel.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.bfloat16,  # its RMSNorms compute in float32 whatever the dtype of weights and input
                attn_implementation="eager",  # flash attention would zero the states of the padding, which are used
                output_loading_info=True,
            )
    except Exception as error:  # transformers, tokenizers and safetensors each fail with classes of their own
        raise EncoderUnavailableError(
            f"the caption encoder in {folder} cannot be loaded: {first_line_of(error)}"
        ) from error
    if report["missing_keys"]:  # transformers would go on with random weights in their place
        missing = sorted(report["missing_keys"])
        raise EncoderUnavailableError(
            f"the caption encoder in {folder} lacks {len(missing)} tensors, the first is {missing[0]!r}: fetch it again"
        )
    return tokenizer, model
