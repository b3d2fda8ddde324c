"""Full-text search of an emulated Azure AI Search: the simple query syntax and BM25."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline_tests.emulators.azure_ai_search_schema import bad

_SATURATION, _LENGTH = 1.2, 0.75
MAX_TEXT = 100_000
MAX_CLAUSES = 1024


def tokens(text: str) -> Counter[str]:
    """What the standard analyzer makes of a text."""
    return Counter(re.findall(r"\w+", text.lower()))


@dataclass(frozen=True)
class TextQuery:
    """Terms of which any must match, terms of which none may, prefixes; ``everything`` for ``*``."""

    terms: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    everything: bool = False

    def matches(self, words: Counter[str]) -> bool:
        if any(term in words for term in self.terms):
            return True
        if any(word.startswith(prefix) for prefix in self.prefixes for word in words):
            return True
        return any(term not in words for term in self.excluded)


def parse_text(text: str | None) -> TextQuery:
    """A query in the simple syntax. Operators count where they are not behind a backslash; phrases are taken word by word."""
    if text is None or text.strip() in ("", "*"):
        return TextQuery(everything=True)
    if len(text) > MAX_TEXT:
        raise bad(f"The search text has {len(text)} characters, more than {MAX_TEXT}.")
    terms: list[str] = []
    excluded: list[str] = []
    prefixes: list[str] = []
    for part in re.findall(r"(?:\\.|[^\s+|\"()])+", text):
        plain = re.sub(r"\\(.)", r"\1", part)
        if part.startswith("-") and len(part) > 1:
            excluded += tokens(plain)
        elif part.endswith("*") and not part.endswith("\\*"):
            prefixes += tokens(plain)
        else:
            terms += tokens(plain)
    if len(terms) + len(excluded) + len(prefixes) > MAX_CLAUSES:
        raise bad("Failed to parse query string: too many clauses.")
    return TextQuery(tuple(terms), tuple(excluded), tuple(prefixes))


def bm25(query: TextQuery, held: Sequence[Counter[str]], found: Iterable[int]) -> dict[int, float]:
    """The score of every document that matches, of ``found`` in ``held``."""
    lengths = [words.total() for words in held]
    average = sum(lengths) / max(1, len(held)) or 1.0
    rarities = {term: _rarity(sum(term in words for words in held), len(held)) for term in set(query.terms)}
    scores = {}
    for number in found:
        words = held[number]
        if not query.matches(words):
            continue
        norm = _SATURATION * (1 - _LENGTH + _LENGTH * lengths[number] / average)
        score = sum(rarities[term] * words[term] * (_SATURATION + 1) / (words[term] + norm) for term in rarities & words.keys())
        scores[number] = score or 1.0
    return scores


def _rarity(having: int, count: int) -> float:
    return math.log(1 + (count - having + 0.5) / (having + 0.5))
