"""Short captions of known words → embeddings, for generators small enough to be trained here: each word has a fixed
random vector, and the transformer's own text blocks learn what it means."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

SCHEME = "words:"  # of what a file names as the place of its text encoder: words:a the red circle
_LONGEST = 31  # words; with the beginning they fill the 32 tokens that Z-Image pads a text to


class Words:
    """`Embed` of a closed vocabulary: (T,E), one token for the beginning and one for each word."""

    def __init__(self, known: Sequence[str], width: int):
        self.known = tuple(known)
        self.table = {word: _vector(word, width) for word in ("", *known)}

    @classmethod
    def named(cls, place: str, width: int) -> "Words":
        """By what a file states, `SCHEME` and the words."""
        return cls(place.removeprefix(SCHEME).split(), width)

    def __call__(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> list[Tensor]:
        """Raises ValueError for a word that the model does not know, or too many of them."""
        return [torch.stack([self.table[word] for word in ("", *self._words(prompt))]).to(device) for prompt in prompts]

    def _words(self, prompt: str) -> list[str]:
        words = prompt.lower().replace(",", " ").replace(".", " ").split()
        if unknown := [word for word in words if word not in self.table]:
            raise ValueError(
                f"prompt {prompt[:60]!r}: this small model does not know {unknown[0]!r}; its words are "
                f"{' '.join(self.known)}"
            )
        if len(words) > _LONGEST:
            raise ValueError(f"prompt {prompt[:60]!r}: {len(words)} words; expected {_LONGEST} at most")
        return words


def _vector(word: str, width: int) -> Tensor:
    """Standard normal, always the same for a word."""
    return torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
