"""Counting tokens the way the embedding model does.

What belongs here: the ``TokenCounter`` protocol and its implementations. The chunker sizes chunks with one; embedders
own one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer


class TokenCounter(Protocol):
    """Counts tokens of texts, the model's special tokens included, without truncation."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """One count a text, in order."""
        ...


class HuggingFaceTokens:
    """A ``tokenizers`` tokenizer with truncation and padding switched off, so that a count is never capped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(list(texts))]
