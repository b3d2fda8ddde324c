"""Joining a ranking by vectors and one by words into one, for stores that search the two separately."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TypeVar

from pipeline.sinks.base import SearchHit

T = TypeVar("T")

HYBRID_DEPTH = 50
"""Candidates of each search, of vectors and of text, that are fused into a hybrid answer, or ``k`` where that is more."""

Ranking = Sequence[tuple[str, float]]
"""Ids with the scores of one search, which are larger for better ones."""


def relative_score_fusion(by_vector: Ranking, by_text: Ranking, k: int) -> list[tuple[str, float]]:
    """The best ``k`` ids, best first, with scores from 0 to 1: the mean of where an id's scores lie between the lowest (0) and
    the highest (1) of each ranking. What a ranking lacks, or has without a number, has 0 there.

    Unlike ranks, scores tell an exact match from the fiftieth that shares a common word. A tie goes to the better by text, which
    has the words that were asked for, then to the smaller id.
    """
    vector = _relative(by_vector)
    # A ranking by words that is not full has all that match, so 0 is what the others score: the last of it is better than none.
    text = _relative(by_text, floor=0.0 if len(by_text) < max(k, HYBRID_DEPTH) else math.inf)
    scores = {name: (vector.get(name, 0.0) + text.get(name, 0.0)) / 2 for name, _ in (*by_vector, *by_text)}
    return sorted(scores.items(), key=lambda item: (-item[1], -text.get(item[0], 0.0), item[0]))[:k]


def _relative(ranking: Ranking, floor: float = math.inf) -> dict[str, float]:
    """Scores between the lowest, or ``floor`` if that is lower, and the highest, as 0 to 1; 1 where there is nothing between."""
    finite = {name: score for name, score in ranking if math.isfinite(score)}
    if not finite:
        return {}
    lowest, highest = min(floor, *finite.values()), max(finite.values())
    return {name: (score - lowest) / (highest - lowest) if highest > lowest else 1.0 for name, score in finite.items()}


def fused(
    by_vector: Sequence[tuple[T, float]], by_text: Sequence[tuple[T, float]], k: int, id_of: Callable[[T], str]
) -> list[tuple[T, float]]:
    """The best ``k`` of what both searches found, whatever a store answers with, by ``relative_score_fusion``."""
    found = {id_of(one): one for one, _ in (*by_vector, *by_text)}
    vector, text = ([(id_of(one), score) for one, score in ranking] for ranking in (by_vector, by_text))
    return [(found[name], score) for name, score in relative_score_fusion(vector, text, k)]


def fuse_hits(by_vector: Sequence[SearchHit], by_text: Sequence[SearchHit], k: int) -> list[SearchHit]:
    """``fused``, of hits."""
    vector, text = ([(hit.record, hit.score) for hit in hits] for hits in (by_vector, by_text))
    return [SearchHit(record, score) for record, score in fused(vector, text, k, attrgetter("id"))]
