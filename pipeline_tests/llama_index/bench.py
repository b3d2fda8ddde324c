"""What the tests of this package share: an embedder whose vectors are those of the records, and filled sinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.documents.tokens import EstimatedTokens, TokenCounter
from pipeline.embedding.base import ModelIdentity, Vectors
from pipeline_tests.conformance.harness import MODEL, unit_vectors

REASON = "LlamaIndex is not installed here: `make test-llama-index` runs these tests in an environment of its own"


class NamedVectors:
    """Embeds the text ``file/version/number`` as that chunk's vector in ``Bench.file``, any other text as one of its own."""

    @property
    def identity(self) -> ModelIdentity:
        return MODEL

    @property
    def max_tokens(self) -> int:
        return 512

    @property
    def tokens(self) -> TokenCounter:
        return EstimatedTokens()

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        assert len(token_counts) == len(texts)
        return np.vstack([_vector(text) for text in texts])

    async def embed_query(self, text: str) -> Vectors:
        return _vector(text)

    async def close(self) -> None:
        """Nothing is held."""


def _vector(text: str) -> Vectors:
    file, _, number = text.rpartition("/")
    if not number.isdigit():
        return _last(text, 1)
    return _last(f"{file}/{MODEL.fingerprint}", int(number) + 1)


def _last(seed: str, count: int) -> Vectors:
    vector: Vectors = unit_vectors(seed, count)[-1]
    return vector
