"""Cutting text that is too long for one chunk and has no blocks of its own to cut at.

What belongs here: sizes in tokens, content-chosen segments of a long block, and semantic-text-splitter inside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from math import ceil
from typing import NamedTuple

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from pipeline.documents.anchors import content_key, halve
from pipeline.documents.tokens import TokenCounter

_CLOSING = r"""["'”’»›)\]}」』）】〉》*_]*"""
_SENTENCE_END = re.compile(rf"\n\s*|[.!?…؟۔։]{_CLOSING}[ \t]+|[。．！？｡।॥།။។።]{_CLOSING}[ \t]*")
_WORD_END = re.compile(r"\S(?=\s)")
_KEY_LENGTH = 32
_LARGER_THAN_KEYS = 1 << 32
_MOST_CHARS_PER_TOKEN = 16
_LONGEST_SEGMENT_IN_CHUNKS = 5
_MOST_CHARS_PER_TOKEN_IN_SEGMENT = 6
"""The splitter's time grows with the square of a segment that has no word or sentence in it."""


class TextSizer:
    """Sizes of texts in tokens, special tokens left out.

    A text of a great many characters and few tokens (base64 is one unknown word to WordPiece, column padding is nothing)
    is sized by its characters, so that no chunk grows beyond what a store can hold.
    """

    def __init__(self, tokens: TokenCounter) -> None:
        self.tokens = tokens
        self.special_tokens = tokens.count([""])[0]

    def sizes(self, texts: Sequence[str]) -> list[int]:
        """One size a text."""
        special = self.special_tokens
        return [
            max(count - special, len(text) // _MOST_CHARS_PER_TOKEN)
            for count, text in zip(self.tokens.count(texts), texts, strict=True)
        ]

    def context_size(self, context: str) -> int:
        """What a context adds to the text behind it."""
        alone, together = self.sizes([".", context + "."])
        return together - alone

    def size_up_to(self, limit: int, text: str) -> int:
        """The size of ``text``, or something above ``limit`` without the cost of counting."""
        by_characters = len(text) // _MOST_CHARS_PER_TOKEN
        return by_characters if by_characters > limit else self.sizes([text])[0]


def split_long(
    text: str, start: int, end: int, size: int, room: int, sizer: TextSizer, *, markdown: bool
) -> list[tuple[int, int]]:
    """Partition ``text[start:end]`` into ranges of at most ``room >= 1`` tokens, as far as characters can be cut apart.

    ``size`` is that of the whole; a larger one does no harm.
    """
    # Sizing by callback is exact for every counter, and with counts kept by word several times faster than handing the
    # splitter a tokenizer of its own, which it encodes each candidate with.
    kind = MarkdownSplitter if markdown else TextSplitter
    splitter = kind.from_callback(partial(sizer.size_up_to, room), room, trim=False)
    ranges = []
    for first, last in _segments(text, start, end, size, room, sizer):
        position = first
        for piece in splitter.chunks(text[first:last]):
            ranges.append((position, position + len(piece)))
            position += len(piece)
    return ranges


def _segments(text: str, start: int, end: int, size: int, room: int, sizer: TextSizer) -> Iterator[tuple[int, int]]:
    """A few chunks' worth each, cut where lines, sentences or words begin whose content says so: an edit stays in its segment.

    Only a word that is too long itself is cut anywhere.
    """
    longest = _LONGEST_SEGMENT_IN_CHUNKS * room
    most_chars = longest * _MOST_CHARS_PER_TOKEN_IN_SEGMENT
    if size <= longest and end - start <= most_chars:
        yield start, end
        return
    units = _units(text, start, end, room, sizer)
    starts = [*(unit.start for unit in units), end]
    borders = [0, *accumulate(unit.size for unit in units)]
    for first, last in halve([unit.key for unit in units], borders, longest):
        begin, stop = starts[first], starts[last]
        yield from ((position, min(position + most_chars, stop)) for position in range(begin, stop, most_chars))


class _Unit(NamedTuple):
    start: int
    size: int
    key: int


def _units(text: str, start: int, end: int, room: int, sizer: TextSizer) -> list[_Unit]:
    """Lines and sentences, or the words of those that are longer than a chunk; no word's key is as small as a sentence's."""
    units = []
    sentences = _cut(_SENTENCE_END, text, start, end, sizer)
    for sentence, stop in zip(sentences, [*(unit.start for unit in sentences[1:]), end], strict=True):
        if sentence.size <= room:
            units.append(sentence)
            continue
        first, *others = _cut(_WORD_END, text, sentence.start, stop, sizer)
        units += [first._replace(key=sentence.key), *(word._replace(key=_LARGER_THAN_KEYS + word.key) for word in others)]
    return units


def _cut(ends: re.Pattern[str], text: str, start: int, end: int, sizer: TextSizer) -> list[_Unit]:
    starts = [start, *(match.end() for match in ends.finditer(text, start, end) if match.end() < end)]
    texts = [text[first:last] for first, last in pairwise([*starts, end])]
    return [
        _Unit(first, max(size, ceil(len(unit) / _MOST_CHARS_PER_TOKEN_IN_SEGMENT)), content_key(text, first, _KEY_LENGTH))
        for first, unit, size in zip(starts, texts, sizer.sizes(texts), strict=True)
    ]
