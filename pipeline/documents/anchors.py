"""Cutting a sequence where its content says so.

What belongs here: content-chosen anchors and the packing between them. A cut that depends on content near it, and not on
how much text stands before it, survives edits elsewhere; that is what keeps vectors of unchanged text in use.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise


def content_key(text: str, start: int, length: int = 64) -> int:
    """A number of 32 bits that depends on nothing but the text right after ``start``: the less, the fewer an edit changes."""
    return zlib.crc32(text[start : start + length].encode("utf-8", "surrogatepass"))


def find_anchors(keys: Sequence[int], borders: Sequence[float], reach: float) -> list[int]:
    """Indices whose key is the smallest within ``reach`` on both sides; of equal keys the first counts.

    Unit i lies between ``borders[i]`` and ``borders[i + 1]``, in any measure. Nothing within reach of either end is an
    anchor. Anchors are at least ``reach`` apart, about twice as far on average. An edit moves only anchors within reach.
    """
    is_anchor = [False] * len(keys)
    ascending: list[int] = []
    for index, key in enumerate(keys):
        position = borders[index]
        while ascending and keys[ascending[-1]] > key:
            larger = ascending.pop()
            is_anchor[larger] = is_anchor[larger] and position - borders[larger] > reach
        left = borders[ascending[-1] if ascending else 0]
        is_anchor[index] = position - left >= reach
        ascending.append(index)
    for index in ascending:
        is_anchor[index] = is_anchor[index] and borders[-1] - borders[index] > reach
    return [index for index, value in enumerate(is_anchor) if value]


def halve(keys: Sequence[int], borders: Sequence[float], longest: float) -> list[tuple[int, int]]:
    """Partition one or more units into ranges ``[first, last)`` of at most ``longest``: cut at anchors, then in two where the key
    is smallest in the middle half of what lies between them, and the halves again.

    Unit i lies between ``borders[i]`` and ``borders[i + 1]``; one that is larger is a range of its own. An edit moves a cut only
    where it makes another key the smallest, and never one far beyond the anchors around it.
    """
    ranges = []
    pending = list(pairwise([0, *find_anchors(keys, borders, longest), len(keys)]))[::-1]
    while pending:
        first, last = pending.pop()
        size = borders[last] - borders[first]
        if size <= longest or last - first == 1:
            ranges.append((first, last))
            continue
        low = bisect_left(borders, borders[first] + size / 4, first + 1, last)
        high = bisect_right(borders, borders[last] - size / 4, low, last)
        middle = min(range(low, high), key=keys.__getitem__) if low < high else min(low, last - 1)
        pending += [(middle, last), (first, middle)]
    return ranges


def pack(sizes: Sequence[int], rooms: Sequence[int], keys: Sequence[int], reach: int) -> list[tuple[int, int]]:
    """Partition one or more units into ranges ``[first, last)`` that fit, never across an anchor, as full as possible in between.

    ``rooms[i]`` is what a range starting at unit i may hold; a unit larger than its room is a range of its own.
    """
    anchors = set(find_anchors(keys, [0, *accumulate(sizes)], reach))
    ranges: list[tuple[int, int]] = []
    first, total = 0, 0
    for index, size in enumerate(sizes):
        if index > first and (index in anchors or total + size > rooms[first]):
            ranges.append((first, index))
            first, total = index, 0
        total += size
    return [*ranges, (first, len(sizes))]
