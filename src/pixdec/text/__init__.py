"""Captions to embeddings: the Gemma-2 encoder, its constants, and a disk cache so that it is seldom loaded."""

from pixdec.text.cache import EmbeddingCache
from pixdec.text.embeddings import CaptionEmbeddings
from pixdec.text.gemma import CaptionEncoder, CaptionSettings
from pixdec.text.instructions import CHI_PROMPT, NEGATIVE_PROMPT
from pixdec.text.source import GEMMA, EncoderUnavailableError

__all__ = [
    "CHI_PROMPT",
    "GEMMA",
    "NEGATIVE_PROMPT",
    "CaptionEmbeddings",
    "CaptionEncoder",
    "CaptionSettings",
    "EmbeddingCache",
    "EncoderUnavailableError",
]
