"""A sink beside its vendor's own client: the same batches, written by both in turns.

What belongs here: the turns, and what is told of them. How a client writes is its own module's.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Generic, Protocol, TypeVar

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.records import FileRecords

TURNS = 3


class Timed(Protocol):
    """What was measured of one step."""

    @property
    def seconds(self) -> float: ...


M = TypeVar("M", bound=Timed)
E = TypeVar("E", bound=Exporter)


@dataclass(frozen=True)
class Comparison(ABC, Generic[E]):
    """Both ways of writing the same batches, each turn into a place that is new."""

    context: SinkContext
    batches: Sequence[Sequence[FileRecords]]

    client: ClassVar[str]
    """What the client does, for the table."""

    @abstractmethod
    async def exporter(self, prefix: str) -> E:
        """The sink, provisioned under this prefix."""

    @abstractmethod
    def by_client(self) -> Callable[[E], Awaitable[None]]:
        """Writes what somebody who uses the client has in hand to where the sink would; having it in hand is not timed."""

    @abstractmethod
    async def drop(self, exporter: E) -> None:
        """Close the sink and delete what was written."""

    async def replace_all(self, exporter: E) -> None:
        for files in self.batches:
            await exporter.replace_files(files)

    async def run(self, timed: Callable[[str, int, Callable[[], Awaitable[None]]], Awaitable[M]]) -> list[M]:
        """The median turn of the client and that of the sink, which take turns at being first."""
        records = sum(file.table.num_rows for files in self.batches for file in files)
        ways = {self.client: self.by_client(), "replace_files": self.replace_all}
        found: dict[str, list[M]] = {name: [] for name in ways}
        for turn in range(TURNS):
            for name in list(ways)[:: -1 if turn % 2 else 1]:
                exporter = await self.exporter(f"{'client' if name == self.client else 'sink'}{turn}")
                found[name].append(await timed(f"{name}, median turn", records, partial(ways[name], exporter)))
                await self.drop(exporter)
        return [median_turn(turns) for turns in found.values()]


def median_turn(turns: Sequence[M]) -> M:
    """The turn whose time is the median, the lower one of two."""
    middle = statistics.median_low(turn.seconds for turn in turns)
    return next(turn for turn in turns if turn.seconds == middle)
