"""What keeps a LanceDB table quick and small: its indexes, compaction, old versions, and no trace of erased rows.

What belongs here: when and how what writes have left is put in order. Rows that no index has yet are found by scanning them, and
rewriting a table for a few of them costs more than that, so Lance's ``optimize``, which compacts, indexes and prunes at once,
waits until it is worth it. That is read from the table itself, as many processes write to it in turn.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pipeline.sinks.lancedb_store import LanceStore
from pipeline.sinks.lancedb_sweep import sweep
from pipeline.urls import local_directory

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

# Meant by who purges. For the whole process: to catch a warning around one call is not safe among threads.
warnings.filterwarnings("ignore", r"optimize\(cleanup_older_than=0\) removes every version except the latest", UserWarning)

_WORDS: Final[Mapping[str, Any]] = {
    "base_tokenizer": "icu",
    "stem": False,
    "remove_stop_words": False,
    "max_token_length": 256,
}
"""Right for text of any language: Unicode word boundaries, nothing that knows English alone. Words are shorter than 256 bytes,
as Lucene's are: nobody searches for what is longer, such as an image in base64."""

_BITS: Final = 4
"""For each dimension of a vector in the index. With Lance's one bit the nearest of many that are alike are not among the
candidates whose exact vectors are compared."""

_SCANNED_ROWS: Final = 10_000
_SCANNED_SHARE: Final = 0.1
"""Of a table's rows, whichever is less: as many as every search may scan because no index has them. A text search of 2,000
chunks of 180 words takes up to 50 ms for that. ``optimize`` rewrites a table of up to a million rows, so a first load that called
it for every 2,000 of them would write each row many times."""

_SMALL_FRAGMENTS: Final = 20
"""Commits of few rows: as many as LanceDB's documentation advises between two calls of ``optimize``."""

_SEGMENTS: Final = 20
"""Parts of the vector index, each of which every search looks into; a call of ``optimize`` adds one."""


@dataclass(frozen=True)
class Upkeep:
    """Of one table, whoever has written to it."""

    store: LanceStore
    dimension: int
    index_threshold_rows: int
    keep: timedelta
    """Versions younger than this stay, for their readers."""

    async def create_indexes(self, table: AsyncTable) -> None:
        await self.store.commit("create the indexes", partial(_create_indexes, table))

    async def optimize(self, table: AsyncTable) -> None:
        await self.store.commit("build the vector index", partial(self._build_vector_index, table))
        await self.store.commit("rebuild the text index", partial(_renew_text_index, table))
        if await self.store.call("look what is to be done", partial(self._is_due, table)):
            await self._tidy(table, self.keep)
        await self._sweep(table)

    async def purge(self, table: AsyncTable) -> None:
        """Write every row and every text index anew and drop all else: deleted rows lie on in the files they were in.

        Lance drops old versions before it brings the vector index up to date, so the index over the deleted rows goes with
        the second call.
        """
        await self.store.commit("rewrite the table", partial(rewrite_rows, table))
        await self.store.commit("rebuild the indexes", partial(_create_indexes, table, replace=True))
        await self._tidy(table, timedelta(0))
        without_them = await self.store.call("read its version", table.version)
        await self._tidy(table, timedelta(0))
        await self._sweep(table)
        await self._check_that_none_is_older(table, without_them)

    async def _check_that_none_is_older(self, table: AsyncTable, version: int) -> None:
        """Lance says nothing of files that a store refuses to delete. Raises SinkUnavailable."""
        versions = await self.store.call("list its versions", table.list_versions)
        if former := sum(held["version"] < version for held in versions):
            raise self.store.unpurged(former)

    async def _tidy(self, table: AsyncTable, keep: timedelta) -> None:
        await self.store.commit("optimize the table", partial(table.optimize, cleanup_older_than=keep))

    async def _sweep(self, table: AsyncTable) -> None:
        await self.store.call("sweep the table", partial(_sweep, table))

    async def _build_vector_index(self, table: AsyncTable) -> None:
        """Once it pays, and anew when it is worn; it answers until the new one does."""
        from lancedb.index import IvfFlat, IvfRq

        # RaBitQ packs eight dimensions into a byte.
        config = IvfFlat(distance_type="cosine") if self.dimension % 8 else IvfRq(distance_type="cosine", num_bits=_BITS)
        for index in await table.list_indices():
            if "vector" in index.columns:
                if index.index_type == type(config).__name__ and _is_worn(index):
                    await table.create_index("vector", config=config, replace=True)
                return
        if await table.count_rows() >= self.index_threshold_rows:
            await table.create_index("vector", config=config)

    async def _is_due(self, table: AsyncTable) -> bool:
        """Whether many rows are in no index, many commits were small, or versions are twice as old as they need to be."""
        stats: Any = await table.stats()  # mappings, whatever their annotation says
        indexes: list[Any] = list(await table.list_indices())
        scanned = max((index.num_unindexed_rows or 0 for index in indexes), default=0)
        if scanned > min(_SCANNED_ROWS, stats["num_rows"] * _SCANNED_SHARE):
            return True
        # Lance merges no fragments that different parts of an index cover.
        apart = max((index.num_segments or 1 for index in indexes), default=1)
        if stats["fragment_stats"]["num_small_fragments"] - apart >= _SMALL_FRAGMENTS:
            return True
        oldest = min(version["timestamp"] for version in await table.list_versions())  # type: ignore[no-untyped-call]
        return bool(datetime.now(UTC) - oldest.astimezone(UTC) > 2 * self.keep)


async def rewrite_rows(table: AsyncTable) -> None:
    """Every row as it is, in new data files."""
    await table.update(updates_sql={"chunk_count": "chunk_count"})


async def _create_indexes(table: AsyncTable, *, replace: bool = False) -> None:
    from lancedb.index import FTS, BTree

    wanted: dict[str, Any] = {"text": FTS(**_WORDS), "parsed_directory_file_id": BTree()}
    held = {column for index in await table.list_indices() for column in index.columns}
    for column, config in wanted.items():
        if replace or column not in held:
            await table.create_index(column, config=config, replace=replace)


async def _renew_text_index(table: AsyncTable) -> None:
    """Replace one that has other words, as earlier versions made it; it answers until the new one does."""
    from lancedb.index import FTS

    held = [index.index_details for index in await table.list_indices() if "text" in index.columns]
    if any(not _WORDS.items() <= (words or {}).items() for words in held):
        await table.create_index("text", config=FTS(**_WORDS), replace=True)


def _is_worn(vector_index: Any) -> bool:
    """Whether it has become many parts, or is as coarse as earlier versions made it."""
    bits = vector_index.index_details.get("compression", {}).get("num_bits", _BITS)
    return bool(vector_index.num_segments > _SEGMENTS or bits < _BITS)


async def _sweep(table: AsyncTable) -> None:
    directory = local_directory(await table.uri())
    if directory:
        await asyncio.to_thread(sweep, directory)
