"""Cutting work into requests a store accepts, and preparing the next one while the present one is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from pipeline.sinks.records import FileRecords

T = TypeVar("T")
R = TypeVar("R")


def _no_size(_: object) -> int:
    return 0


def slices(items: Sequence[T], *, count: int, size: int = 0, size_of: Callable[[T], int] = _no_size) -> Iterator[list[T]]:
    """Runs of at most ``count`` items that together have at most ``size``; an item larger than that comes alone."""
    held: list[T] = []
    total = 0
    for item in items:
        own = size_of(item)
        if held and (len(held) == count or total + own > size):
            yield held
            held, total = [], 0
        held.append(item)
        total += own
    if held:
        yield held


def file_slices(files: Sequence[FileRecords], *, count: int, size: int) -> list[list[FileRecords]]:
    """Runs of at most ``count`` files whose tables together have at most ``size`` bytes; a larger file comes alone."""
    return list(slices(files, count=count, size=size, size_of=lambda file: file.table.nbytes))


def named_slices(names: Sequence[T] | None, *, count: int) -> Iterator[list[T] | None]:
    """What to name in each of the requests for these; one request that names none, ``None``, for all there are."""
    if names is None:
        yield None
    else:
        yield from slices(names, count=count)


async def each(items: Iterable[T], send: Callable[[T], Awaitable[None]], *, concurrency: int) -> None:
    """Send all items, some at once. After a failure no further one is begun; it is raised when those on their way ended."""
    coming = iter(items)
    failures: list[BaseException] = []

    async def work() -> None:
        for item in coming:
            if failures:
                return
            try:
                await send(item)
            except BaseException as error:
                failures.append(error)
                raise

    await asyncio.gather(*(work() for _ in range(concurrency)), return_exceptions=True)
    if failures:
        raise failures[0]


async def one_ahead(items: Sequence[T], work: Callable[[T], R]) -> AsyncIterator[tuple[T, R]]:
    """Each item with what ``work`` makes of it, in a thread: of the next one while the caller is busy with the present."""
    coming: asyncio.Task[R] | None = None
    try:
        for number, item in enumerate(items):
            ready = coming or asyncio.create_task(asyncio.to_thread(work, item))
            coming = None
            result = await ready
            if number + 1 < len(items):
                coming = asyncio.create_task(asyncio.to_thread(work, items[number + 1]))
            yield item, result
    finally:
        if coming:
            await asyncio.gather(coming, return_exceptions=True)
