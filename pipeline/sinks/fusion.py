"""Joining several rankings into one, for stores that search vectors and text separately."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.sinks.base import SearchHit

HYBRID_DEPTH = 50
"""Candidates of each search, of vectors and of text, that are fused into a hybrid answer, or ``k`` where that is more."""

_RANK_CONSTANT = 60
"""The constant of Cormack, Clarke and Buettcher (SIGIR 2009): how little the first ranks stand out."""


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], k: int) -> list[tuple[str, float]]:
    """The best ``k`` ids with their scores, best first; a tie is decided by the first ranking an id appears in."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, found in enumerate(ranking, start=1):
            scores[found] = scores.get(found, 0.0) + 1 / (_RANK_CONSTANT + rank)
    return sorted(scores.items(), key=lambda item: -item[1])[:k]


def fuse_hits(found: Sequence[Sequence[SearchHit]], k: int) -> list[SearchHit]:
    """The best ``k`` records of several rankings, by reciprocal rank fusion."""
    records = {hit.record.id: hit.record for hits in found for hit in hits}
    fused = reciprocal_rank_fusion([[hit.record.id for hit in hits] for hits in found], k)
    return [SearchHit(records[name], score) for name, score in fused]
