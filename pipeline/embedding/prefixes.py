"""Models that were trained with words before a passage or a question, such as ``passage: `` and ``query: ``.

What belongs here: an embedder around another that puts them there. fastembed and the endpoints leave them to their callers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipeline.documents.tokens import TokenCounter
from pipeline.embedding.base import Embedder, ModelIdentity, Vectors


class PrefixedEmbedder:
    """``inner`` with a prefix before every passage and every question. Passages have that much less room, and vectors with
    and without a prefix never stand beside each other."""

    def __init__(self, inner: Embedder, *, passage: str, query: str) -> None:
        self._inner = inner
        self._passage = passage
        self._query = query
        self._passage_tokens = inner.tokens.count([passage])[0] if passage else 0
        self._identity = _with_prefix(inner.identity, passage) if passage else inner.identity

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def max_tokens(self) -> int:
        return self._inner.max_tokens - self._passage_tokens

    @property
    def tokens(self) -> TokenCounter:
        return self._inner.tokens

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        prefixed = [self._passage + text for text in texts]
        return await self._inner.embed(prefixed, [count + self._passage_tokens for count in token_counts])

    async def embed_query(self, text: str) -> Vectors:
        return await self._inner.embed_query(self._query + text)


def _with_prefix(model: ModelIdentity, passage: str) -> ModelIdentity:
    digest = hashlib.sha256(passage.encode()).hexdigest()[:16]
    return ModelIdentity(model.name, f"{model.fingerprint}+{digest}", model.dimension)
