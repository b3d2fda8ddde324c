"""What every stage works within: a lease on its files that lasts as long as it does, their rows, bounded groups, and sinks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import pyarrow as pa

from pipeline.errors import LedgerUnavailable
from pipeline.ledger.models import FileRow
from pipeline.sinks.base import Exporter
from pipeline.sinks.slicing import slices
from pipeline.stages.export import LEASE_SECONDS, Export
from pipeline.stages.report import StageReport

Answer = TypeVar("Answer")
GROUP_CHUNKS = Exporter.chunks_at_once
"""Chunks that are held in memory at once where no sink says otherwise."""


async def begin(
    export: Export, stage: str, file_ids: list[str], run_id: str, *, leaving: bool = False
) -> tuple[StageReport, dict[str, FileRow]]:
    """Lease the files to the run; answers a fresh report and the rows of the files the run holds. Ids that are no file's have
    failed. ``leaving`` as in ``Export.claim``."""
    return await asyncio.to_thread(_begin, export, stage, file_ids, run_id, leaving)


def _begin(export: Export, stage: str, file_ids: list[str], run_id: str, leaving: bool) -> tuple[StageReport, dict[str, FileRow]]:
    report = StageReport(stage, files=len(file_ids))
    held = export.claim(file_ids, run_id, leaving=leaving)
    rows = export.ledger.files(held)
    elsewhere = export.ledger.files(set(file_ids) - set(held))
    report.held_elsewhere = list(elsewhere)
    unknown = sorted(set(file_ids) - set(held) - elsewhere.keys())
    report.failures = dict.fromkeys(unknown, "no file of this export's directory")
    report.names = {file_id: row.display_name for file_id, row in (*rows.items(), *elsewhere.items())}
    return report, rows


@asynccontextmanager
async def kept(export: Export, run_id: str, *, lease_seconds: float = LEASE_SECONDS) -> AsyncIterator[None]:
    """Renew what the run holds for as long as the block takes: a slow model or store is not a dead one."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease_seconds / 3)
            with suppress(LedgerUnavailable):  # the lease outlasts it, and a ledger that stays away fails the work itself
                await asyncio.to_thread(export.ledger.renew, run_id, seconds=lease_seconds)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing


async def while_kept(export: Export, run_id: str, work: Awaitable[Answer]) -> Answer:
    """What ``work`` answers, with what the run holds ``kept`` until then."""
    async with kept(export, run_id):
        return await work


@asynccontextmanager
async def borrowed(export: Export, run_id: str) -> AsyncIterator[None]:
    """``kept``, and given back at the end, for holders whose end nobody else records."""
    try:
        async with kept(export, run_id):
            yield
    finally:
        await asyncio.to_thread(export.ledger.drop_leases, run_id)


def groups_of(rows: Sequence[FileRow], at_once: int | None = None) -> Iterator[list[FileRow]]:
    """Consecutive files of at most ``at_once`` chunks together, GROUP_CHUNKS by default; a larger file is a group alone."""
    return slices(rows, count=len(rows), size=at_once or GROUP_CHUNKS, size_of=lambda row: row.chunk_count or 0)


def opened_sink(export: Export, sink: str, tenant_id: str) -> AbstractAsyncContextManager[Exporter]:
    """A provisioned exporter of a sink, closed at the end."""
    return provisioned(partial(export.sink, sink, tenant_id))


@asynccontextmanager
async def provisioned(make: Callable[[], Exporter]) -> AsyncIterator[Exporter]:
    """The exporter that ``make`` builds in a thread, provisioned, and closed at the end."""
    async with unprovisioned(make) as exporter:
        await exporter.provision()
        yield exporter


@asynccontextmanager
async def unprovisioned(make: Callable[[], Exporter]) -> AsyncIterator[Exporter]:
    """The exporter that ``make`` builds in a thread, closed at the end."""
    exporter = await asyncio.to_thread(make)
    try:
        yield exporter
    finally:
        await exporter.close()


@asynccontextmanager
async def read_whole_or_closed(tables: AsyncIterator[pa.Table]) -> AsyncIterator[AsyncIterator[pa.Table]]:
    """What a sink is read as, ended at the end of the block, and so while its exporter is open, wherever the reading stops."""
    try:
        yield tables
    finally:
        if isinstance(tables, AsyncGenerator):
            await tables.aclose()
