"""Cutting text that is too long for one chunk and has no blocks of its own to cut at.

What belongs here: sizes in tokens, content-chosen segments of a long block, the sentences of prose in them, and
semantic-text-splitter for what is no prose and for a sentence that is too long itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from pipeline.documents.anchors import content_key, halve
from pipeline.documents.tokens import TokenCounter

_CLOSING = r"""["'”’»›)\]}」』）】〉》*_]*"""
_LOWER = "a-zß-öø-ÿα-ωа-џ"
_LINE_END = rf"(?:(?<![^\n]{{40}}[\w,;])\n|\n(?![^\S\n]*[{_LOWER}](?![.)])))\s*"
"""Not where prose is wrapped: behind a long line that ends without a stop, before one that goes on in lower case."""
_SENTENCE_END = re.compile(rf"{_LINE_END}|[.!?…؟۔։]{_CLOSING}[ \t]++(?![{_LOWER}])|[。．！？｡।॥།။។።]{_CLOSING}[ \t]*")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\w{1,3}[.)])[ \t]")
_WORD_END = re.compile(r"\S(?=\s)")
_KEY_LENGTH = 32
_LARGER_THAN_KEYS = 1 << 32
_CHARS_PER_TOKEN = 4
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
        return [max(count - special, self.least(len(text))) for count, text in zip(self.tokens.count(texts), texts, strict=True)]

    def least(self, characters: int) -> int:
        """What a text of so many characters has at least."""
        return characters // _MOST_CHARS_PER_TOKEN

    def context_size(self, context: str) -> int:
        """What a context adds to the text behind it."""
        alone, together = self.sizes([".", context + "."])
        return together - alone

    def size_up_to(self, limit: int, text: str) -> int:
        """The size of ``text``, or something above ``limit`` without the cost of counting."""
        by_characters = self.least(len(text))
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
        if markdown:
            ranges += _sentences(text, first, last, room, sizer, splitter)
        else:
            ranges += _split(text, first, last, splitter)
    return ranges


def _split(text: str, start: int, end: int, splitter: MarkdownSplitter | TextSplitter) -> list[tuple[int, int]]:
    borders = list(accumulate(map(len, splitter.chunks(text[start:end])), initial=start))
    return list(pairwise(borders))


def _sentences(
    text: str, start: int, end: int, room: int, sizer: TextSizer, splitter: MarkdownSplitter | TextSplitter
) -> list[tuple[int, int]]:
    """As many sentences or lines in each range as fit, so that no quote, link or emphasis is where it ends: the splitter cuts
    there first, and is for what is too long itself."""
    units = list(pairwise([start, *_ends(_SENTENCE_END, text, start, end), end]))
    sizes = sizer.sizes([text[first:last] for first, last in units])
    if max(sizes) > room:
        split = [_split(text, *unit, splitter) if size > room else [unit] for unit, size in zip(units, sizes, strict=True)]
        units = list(chain.from_iterable(split))
        sizes = sizer.sizes([text[first:last] for first, last in units])
    # At least 1 each: any number of units that hold nothing the tokenizer sees would fit.
    sizes = [max(1, size) for size in sizes]
    preferred = [_is_list_item(text, first) for first, _ in units]
    return [(units[first][0], units[last - 1][1]) for first, last in _filled(sizes, preferred, room)]


def _is_list_item(text: str, start: int) -> bool:
    return text[start - 1 : start] == "\n" and _LIST_ITEM.match(text, start) is not None


def _filled(sizes: Sequence[int], preferred: Sequence[bool], room: int) -> list[tuple[int, int]]:
    """Ranges of units, as full as they can be; one that is half full ends where the last preferred unit begins."""
    totals = [0, *accumulate(sizes)]
    ranges = []
    first = 0
    while first < len(sizes):
        last = max(first + 1, bisect_right(totals, totals[first] + room) - 1)
        if last < len(sizes):
            half = bisect_left(totals, totals[first] + room / 2, first + 1, last)
            last = next((unit for unit in range(last, half - 1, -1) if preferred[unit]), last)
        ranges.append((first, last))
        first = last
    return ranges


def _segments(text: str, start: int, end: int, size: int, room: int, sizer: TextSizer) -> Iterator[tuple[int, int]]:
    """A few chunks' worth each, cut where list items begin whose content says so, else sentences or lines, else words: an edit
    stays in its segment.

    Only a word that is too long itself is cut anywhere.
    """
    longest = _LONGEST_SEGMENT_IN_CHUNKS * room
    most_chars = longest * _MOST_CHARS_PER_TOKEN_IN_SEGMENT
    if size <= longest and end - start <= most_chars:
        yield start, end
        return
    sentences = [start, *_ends(_SENTENCE_END, text, start, end)]
    borders = _borders(text, start, end, room, sizer)
    starts: list[int] = []
    keys: list[int] = []
    for first, last in pairwise([*sentences, end]):
        starts.append(first)
        keys.append(content_key(text, first, _KEY_LENGTH) + (0 if _is_list_item(text, first) else _LARGER_THAN_KEYS))
        if borders(last) - borders(first) > room:
            words = _ends(_WORD_END, text, first, last)
            starts += words
            keys += [2 * _LARGER_THAN_KEYS + content_key(text, word, _KEY_LENGTH) for word in words]
    starts.append(end)
    for first, last in halve(keys, [borders(position) for position in starts], longest):
        begin, stop = starts[first], starts[last]
        yield from ((position, min(position + most_chars, stop)) for position in range(begin, stop, most_chars))


def _ends(pattern: re.Pattern[str], text: str, start: int, end: int) -> list[int]:
    return [match.end() for match in pattern.finditer(text, start, end) if match.end() < end]


def _borders(text: str, start: int, end: int, room: int, sizer: TextSizer) -> Callable[[int], float]:
    """About the size of the text up to a position: counted a chunk's worth of characters at a time, and evenly in between."""
    step = _CHARS_PER_TOKEN * room
    texts = [text[position : min(position + step, end)] for position in range(start, end, step)]
    sizes = [
        max(size, len(part) / _MOST_CHARS_PER_TOKEN_IN_SEGMENT) for part, size in zip(texts, sizer.sizes(texts), strict=True)
    ]
    totals = [0, *accumulate(sizes)]

    def border(position: int) -> float:
        index, rest = divmod(position - start, step)
        return totals[index] + (sizes[index] * rest / len(texts[index]) if rest else 0)

    return border
