"""Many payloads at once.

What belongs here: which presigned URLs come from listings and which from single requests, and the bounded window of
downloads in flight.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pipeline.llama_cloud.listing import FileEntry
from pipeline.llama_cloud.models import DirectoryFile

T = TypeVar("T")
ListWithUrls = Callable[[datetime | None, datetime | None], AsyncGenerator[list[FileEntry]]]

FILES_WORTH_A_LISTING = 25
"""A listed page of a thousand files costs about as much as this many single requests (25 ms against 1 ms of work)."""
_CLOCK_MARGIN = timedelta(seconds=1)
_IN_STOCK = 500
"""Entries whose turn comes within seconds. With more at hand no page is asked for: presigned URLs expire, and one that has costs
a request of its own."""


async def batches_with_urls(files: Sequence[DirectoryFile], list_with_urls: ListWithUrls) -> AsyncGenerator[list[FileEntry]]:
    """Every distinct one of ``files`` once, with a URL where a listing gave one.

    Listing goes on while pages hold enough of the wanted files; barren pages are forgiven as long as they cost less than
    asking one by one for what is still missing. A listed file whose ``file_id`` moved on is left to a single request, so
    the payload is the one the caller knows of.
    """
    missing = {file.id: file for file in files}
    if len(missing) >= FILES_WORTH_A_LISTING:
        barren = 0
        async with aclosing(list_with_urls(*_window(files))) as pages:
            async for entries in pages:
                found = [entry for entry in entries if entry.url and _same_payload(missing.get(entry.file.id), entry.file)]
                batch = [FileEntry(missing.pop(entry.file.id), entry.url) for entry in found if entry.file.id in missing]
                if batch:
                    yield batch
                if not batch or len(batch) * FILES_WORTH_A_LISTING < len(entries):
                    barren += 1
                if len(missing) < FILES_WORTH_A_LISTING * (barren + 1):
                    break
    if missing:
        yield [FileEntry(file, None) for file in missing.values()]


def _same_payload(wanted: DirectoryFile | None, listed: DirectoryFile) -> bool:
    return wanted is not None and wanted.file_id is not None and wanted.file_id == listed.file_id


def _window(files: Sequence[DirectoryFile]) -> tuple[datetime | None, datetime | None]:
    """The span of update times that holds all of ``files``, widened because filters may cut fractions of a second."""
    moments = [file.updated_at for file in files if file.updated_at is not None]
    if len(moments) < len(files):
        return None, None
    return min(moments) - _CLOCK_MARGIN, max(moments) + _CLOCK_MARGIN


async def in_completion_order(
    batches: AsyncGenerator[list[FileEntry]], fetch: Callable[[FileEntry], Coroutine[Any, Any, T]], *, limit: int
) -> AsyncGenerator[T]:
    """``fetch`` of every entry, at most ``limit`` at a time, results as they come; the next batch is asked for before the entries
    run out.

    In random order: neighbours in a listing may lie in one place that is broken, and the first results speak for all.
    The first exception ends it; what is still in flight is cancelled, as it is when the caller stops early.
    """
    backlog: list[FileEntry] = []
    running: set[asyncio.Task[T]] = set()
    upcoming: asyncio.Task[list[FileEntry] | None] | None = None
    is_more = True
    try:
        while backlog or running or is_more:
            while backlog and len(running) < limit:
                running.add(asyncio.create_task(fetch(backlog.pop())))
            if is_more and upcoming is None and len(backlog) < _IN_STOCK:
                upcoming = asyncio.create_task(_next_batch(batches))
            await asyncio.wait(_tasks(running, upcoming), return_when=asyncio.FIRST_COMPLETED)
            if upcoming and upcoming.done():
                batch = upcoming.result()
                backlog.extend(batch or ())
                random.shuffle(backlog)
                upcoming, is_more = None, batch is not None
            finished = {task for task in running if task.done()}
            for task in finished:
                running.discard(task)
                yield task.result()
    finally:
        left = _tasks(running, upcoming)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await batches.aclose()


def _tasks(running: set[asyncio.Task[T]], upcoming: asyncio.Task[list[FileEntry] | None] | None) -> list[asyncio.Task[Any]]:
    return [*running, upcoming] if upcoming else [*running]


async def _next_batch(batches: AsyncGenerator[list[FileEntry]]) -> list[FileEntry] | None:
    return await anext(batches, None)
