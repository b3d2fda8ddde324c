"""Never embedding the same text twice.

What belongs here: the pure side of vector reuse. Where known vectors are kept is the caller's affair.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.embedding.base import Embedder, EmbeddingCancelled, PartlyEmbedded, TextsRefused, Vectors


@dataclass(frozen=True, slots=True)
class EmbedStats:
    """What one call did. ``computed + reused + duplicates`` is the number of texts given."""

    computed: int
    """Texts the model was run on."""
    reused: int
    """Texts whose vector was known before."""
    duplicates: int
    """Texts that repeat one computed in the same call."""
    tokens_computed: int
    seconds: float
    refused: Mapping[int, str] = field(default_factory=dict)
    """Texts the model does not take, whose vectors are NaN: its reason by the text's index."""


def embedding_digest(text: str) -> bytes:
    """16 bytes that name an embedding text: the head of the SHA-256 of its UTF-8 form."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


async def embed_missing(
    embedder: Embedder,
    texts: Sequence[str],
    token_counts: Sequence[int],
    known: Mapping[bytes, npt.NDArray[np.float32]],
) -> tuple[Vectors, EmbedStats]:
    """Vectors of all ``texts`` in order, running the model only on texts ``known`` (by digest) lacks, once each.

    ``known`` vectors must come from the same model. Raises ValueError when one has another dimension, and what
    ``Embedder.embed`` raises but TextsRefused: PartlyEmbedded and EmbeddingCancelled with a row for each of ``texts``.
    """
    if len(texts) != len(token_counts):
        raise ValueError(f"{len(texts)} texts came with {len(token_counts)} token counts")
    started = time.perf_counter()
    digests = [embedding_digest(text) for text in texts]
    first = {digest: index for index, digest in reversed(list(enumerate(digests))) if digest not in known}
    missing = sorted(first.values())
    counts = [token_counts[index] for index in missing]
    ended: PartlyEmbedded | EmbeddingCancelled | None = None
    reasons: Mapping[int, str] = {}
    try:
        fresh = await embedder.embed([texts[index] for index in missing], counts)
    except (PartlyEmbedded, EmbeddingCancelled) as partly:
        ended, fresh = partly, partly.vectors
    except TextsRefused as refusal:
        reasons, fresh = refusal.refused, refusal.vectors
    row_of = {digests[index]: row for row, index in enumerate(missing)}
    vectors = np.empty((len(texts), embedder.identity.dimension), np.float32)
    refused: dict[int, str] = {}
    reused = 0
    for index, digest in enumerate(digests):
        row = row_of.get(digest)
        if row is None:
            vectors[index] = _known_vector(known[digest], embedder.identity.dimension)
            reused += 1
        else:
            vectors[index] = fresh[row]
            if row in reasons:
                refused[index] = reasons[row]
    if ended:
        raise PartlyEmbedded(ended.cause, vectors) if isinstance(ended, PartlyEmbedded) else EmbeddingCancelled(vectors)
    stats = EmbedStats(
        computed=len(missing),
        reused=reused,
        duplicates=len(texts) - len(missing) - reused,
        tokens_computed=sum(counts),
        seconds=time.perf_counter() - started,
        refused=refused,
    )
    return vectors, stats


def _known_vector(vector: npt.NDArray[np.float32], dimension: int) -> npt.NDArray[np.float32]:
    if vector.shape != (dimension,):
        raise ValueError(f"a known vector has shape {vector.shape}, the model answers ({dimension},)")
    return vector
