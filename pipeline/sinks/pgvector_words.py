"""Which words of a search text PostgreSQL ranks records by, and what each counts.

What belongs here: the arithmetic; nothing talks to a server. ``ts_rank`` knows no rarity of words and takes ``the`` for as good
as a name, so words about as rare are ranked together, and each such group counts as much as BM25 has a word of it count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

FEW: Final = 1_000
"""Records; a word that no more have is never left out."""

SHARE: Final = 20
"""A word that more than one in so many records has is left out where rarer ones are asked for too: it would have nearly all
records ranked, to little effect."""


@dataclass(frozen=True, slots=True)
class Word:
    """``query`` is the word as a tsquery, ``held`` the number of records that have it; beyond ``most_held`` it is one more."""

    query: str
    held: int


@dataclass(frozen=True, slots=True)
class Term:
    """Words joined by OR, as a tsquery, and what their joint ``ts_rank`` counts."""

    query: str
    weight: float


def most_held(records: int) -> int:
    """Records, of so many, that a word may be in and not be common."""
    return max(records // SHARE, FEW)


def terms(words: Iterable[Word], records: int) -> list[Term]:
    """What to rank ``records`` by; nothing where none of them has any of the words. Common words alone are ranked by too."""
    held = [word for word in words if word.held]
    together: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for word in [word for word in held if word.held <= most_held(records)] or held:
        rarity = math.log1p((records - word.held + 0.5) / (word.held + 0.5))
        together[round(2 * rarity)].append((word.query, rarity))
    # the weights are summed, for ts_rank divides by the number of words
    return [
        Term(" | ".join(query for query, _ in group), sum(rarity for _, rarity in group)) for _, group in sorted(together.items())
    ]
