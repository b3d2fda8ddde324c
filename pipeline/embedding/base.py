"""The Embedder protocol and the identity of a model.

What belongs here: what the rest of the pipeline may know of any model. Implementations are modules beside this one.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.documents.tokens import TokenCounter
from pipeline.errors import ConfigError, EmbedderUnavailable, IndexportError

Vectors = npt.NDArray[np.float32]
"""Shape (n, dimension), dtype float32."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which vectors may stand beside each other.

    ``name`` is what people call the model; ``fingerprint`` also covers everything that changes a vector (weights digest,
    pooling, normalisation, prefix, requested dimensions), so equal fingerprints mean interchangeable vectors.
    """

    name: str
    fingerprint: str
    dimension: int

    @property
    def slug(self) -> str:
        """Lower-case ``[a-z0-9-]`` name for collections, tables and namespaces; ends with 8 hex digits of the fingerprint.

        At most 41 characters, so that a prefix still fits the tightest stores: Pinecone's index names have 45, PostgreSQL's 63
        bytes hold ``data_``, a prefix of 16, ``_`` and this.
        """
        base = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:32].rstrip("-")
        return f"{base}-{hashlib.sha256(self.fingerprint.encode()).hexdigest()[:8]}"


def unusable(vectors: Vectors) -> list[int]:
    """Positions of vectors no store can search: NaN, infinite or all zero."""
    norms = np.linalg.norm(vectors, axis=1) if len(vectors) else np.empty(0)
    return [int(position) for position in np.flatnonzero(~np.isfinite(norms) | (norms == 0))]


class PartlyEmbedded(EmbedderUnavailable):
    """The model has stopped answering half way, because of ``cause``. ``vectors`` has a row of NaN for a text it has not
    answered."""

    def __init__(self, cause: EmbedderUnavailable | ConfigError, vectors: Vectors) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.vectors = vectors


class EmbeddingCancelled(asyncio.CancelledError):
    """The embedding was cancelled half way. ``vectors`` has a row of NaN for a text that was not answered until then."""

    def __init__(self, vectors: Vectors) -> None:
        super().__init__()
        self.vectors = vectors


class TextsRefused(IndexportError):
    """The model has answered all texts but those in ``refused``, which it does not take: its reason by the text's index.
    ``vectors`` has a row of NaN for each of these."""

    def __init__(self, refused: Mapping[int, str], vectors: Vectors) -> None:
        index, reason = min(refused.items())
        super().__init__(f"the model refused {len(refused)} of {len(vectors)} texts, text {index}: {reason}")
        self.refused = refused
        self.vectors = vectors


def stopped(cause: EmbedderUnavailable | ConfigError, vectors: Vectors) -> EmbedderUnavailable | ConfigError:
    """What an embedder raises that has filled ``vectors``, NaN at first, as far as it could."""
    return cause if np.isnan(vectors).all() else PartlyEmbedded(cause, vectors)


@contextmanager
def keeping(vectors: Vectors) -> Iterator[None]:
    """A cancellation of the block takes along the ``vectors`` that it has filled, NaN at first, as far as it could."""
    try:
        yield
    except asyncio.CancelledError:
        raise EmbeddingCancelled(vectors) from None


async def side_by_side(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run so many of a worker, which take their work from a common queue. The first error, or a cancellation, ends all."""
    tasks = [asyncio.create_task(worker()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Embedder(Protocol):
    """Turns texts into vectors. Implementations run blocking work in threads."""

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def max_tokens(self) -> int:
        """The model's own input limit, special tokens included; a longer text would be cut silently."""
        ...

    @property
    def tokens(self) -> TokenCounter: ...

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        """Embed passages; row i belongs to ``texts[i]``. Batching and ordering are the embedder's business.

        Raises EmbedderUnavailable when the model cannot answer, ConfigError when the settings are why (PartlyEmbedded when it has
        answered some), TextsRefused when it does not take some of the texts, ValueError when a text exceeds ``max_tokens``, and
        EmbeddingCancelled in place of a CancelledError.
        A vector that is not finite comes back as it is: the caller knows which file it belongs to.
        """
        ...

    async def embed_query(self, text: str) -> Vectors:
        """Embed a search query (some models prefix queries); shape (dimension,). Raises ValueError for one longer than
        ``max_tokens``, and what ``embed`` raises where the model cannot answer."""
        ...
