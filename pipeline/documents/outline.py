"""The heading tree over a document's blocks.

What belongs here: which heading path is in force where, and where a stretch of text is cut first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise

from pipeline.documents.blocks import Block, BlockKind

_SEPARATOR = " > "


class Outline:
    """Heading runs (headings with nothing in between) and heading paths of a sequence of blocks."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._runs: list[int] = []
        self._levels: list[int] = []
        self.paths: list[tuple[str, ...]] = []
        """Titles in force where a block starts, outermost first; a heading's own title is not among them."""
        self._build()

    def _build(self) -> None:
        open_headings: list[Block] = []
        path: tuple[str, ...] = ()
        in_run = False
        for index, block in enumerate(self._blocks):
            if block.kind is not BlockKind.HEADING:
                self.paths.append(path)
                in_run = False
                continue
            while open_headings and open_headings[-1].level >= block.level:
                open_headings.pop()
            self.paths.append(_titles(open_headings))
            open_headings.append(block)
            path = _titles(open_headings)
            if in_run:
                self._levels[-1] = min(self._levels[-1], block.level)
            else:
                self._runs.append(index)
                self._levels.append(block.level)
            in_run = True

    def _body_start(self, first: int, last: int) -> int:
        """The first block of ``[first, last)`` that is no heading; ``last`` when all are."""
        while first < last and self._blocks[first].kind is BlockKind.HEADING:
            first += 1
        return first

    def parts(self, first: int, last: int) -> list[tuple[int, int]]:
        """Cut ``[first, last)`` before its highest inner heading runs; without any, into blocks.

        A heading stays with what follows it.
        """
        low = bisect_left(self._runs, first + 1)
        high = bisect_left(self._runs, last)
        if low < high:
            top = min(self._levels[low:high])
            cuts = [self._runs[i] for i in range(low, high) if self._levels[i] == top]
        else:
            cuts = list(range(self._body_start(first, last) + 1, last))
        return list(pairwise([first, *cuts, last]))


def _titles(headings: Sequence[Block]) -> tuple[str, ...]:
    return tuple(heading.title for heading in headings if heading.title)


def heading_context(path: tuple[str, ...], limit: int, weigh: Callable[[Sequence[str]], list[int]]) -> str:
    """``"Guide > Install\\n\\n"``; outer titles go first when it weighs more than ``limit``, then all."""
    candidates = [_SEPARATOR.join(path[skipped:]) + "\n\n" for skipped in range(len(path))]
    weights = weigh(candidates)
    return next((text for text, weight in zip(candidates, weights, strict=True) if weight <= limit), "")
