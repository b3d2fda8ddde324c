"""Cutting text that is too long for one chunk and has no blocks of its own to cut at.

What belongs here: sizes in tokens, content-chosen segments of a long block, and semantic-text-splitter inside them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from pipeline.documents.anchors import content_key, find_anchors
from pipeline.documents.tokens import TokenCounter

_CANDIDATE = re.compile(r"\n\s*|[.!?][ \t]+|[。！？]")
_CHARS_PER_TOKEN = 4
_MOST_CHARS_PER_TOKEN = 16
_REACH_IN_CHUNKS = 2
_LONGEST_SEGMENT_IN_REACHES = 4
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

    def size_up_to(self, limit: int, text: str) -> int:
        """The size of ``text``, or something above ``limit`` without the cost of counting."""
        by_characters = len(text) // _MOST_CHARS_PER_TOKEN
        return by_characters if by_characters > limit else self.sizes([text])[0]


def split_long(text: str, start: int, end: int, room: int, sizer: TextSizer, *, markdown: bool) -> list[tuple[int, int]]:
    """Partition ``text[start:end]`` into ranges of at most ``room >= 1`` tokens, as far as characters can be cut apart."""
    # Sizing by callback is exact for every counter, and with counts kept by word several times faster than handing the
    # splitter a tokenizer of its own, which it encodes each candidate with.
    kind = MarkdownSplitter if markdown else TextSplitter
    splitter = kind.from_callback(partial(sizer.size_up_to, room), room, trim=False)
    ranges = []
    for first, last in _segments(text, start, end, room):
        position = first
        for piece in splitter.chunks(text[first:last]):
            ranges.append((position, position + len(piece)))
            position += len(piece)
    return ranges


def _segments(text: str, start: int, end: int, room: int) -> list[tuple[int, int]]:
    """Cut at content-chosen line and sentence starts, several chunks apart, so that an edit stays in its segment."""
    reach = _REACH_IN_CHUNKS * room * _CHARS_PER_TOKEN
    if end - start <= reach:
        return [(start, end)]
    positions = [start, *(match.end() for match in _CANDIDATE.finditer(text, start, end) if match.end() < end)]
    keys = [content_key(text, position) for position in positions]
    cuts = [positions[index] for index in find_anchors(keys, [*positions, end], reach)]
    segments = pairwise([start, *cuts, end])
    longest = _LONGEST_SEGMENT_IN_REACHES * reach
    return [(first, min(first + longest, last)) for begin, last in segments for first in range(begin, last, longest)]
