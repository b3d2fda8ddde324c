"""Payloads: from LlamaCloud into the lake, gated twice.

The listing's change token says whether a payload must be fetched; our own digest of the normalised payload says whether
anything after it must run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from pipeline.documents.arrow import pages_to_tables
from pipeline.errors import PayloadError, PayloadOutOfReach, SourceUnavailable
from pipeline.ledger.models import FileRow
from pipeline.llama_cloud.digests import payload_digest, text_digest
from pipeline.llama_cloud.models import DirectoryFile, Payload
from pipeline.sinks.records import canonical_json
from pipeline.stages.export import Export
from pipeline.stages.report import StageReport
from pipeline.stages.work import begin

_STORE_AT_ONCE = 64
_BYTES_AT_ONCE = 16 * 2**20
"""Of payloads that wait to be stored: what is held is some ten times as much where they are structured items."""
_MANY = 32
"""So many failed downloads in a row mean that the storage is at fault (or twice ``max_concurrent_downloads``, if that is more):
single bad files fail slowly, after the good ones."""


async def fetch(
    export: Export, file_ids: list[str], *, run_id: str, refetch: bool = False, is_attempt: bool = True
) -> StageReport:
    """Bring the payloads of these files into the lake where their change token moved (or all, with ``refetch``).

    A download that fails in a way that may pass is a failure of its file, which counts towards no parking, when the run has
    other files to go on with, or none; where none of several came, it is the source's. After very many in a row the rest of the
    run's are left for later. Raises SourceUnavailable when LlamaCloud or its storage cannot be used; what was fetched until then
    is kept. What fails is told and not counted as an attempt of its file unless it ``is_attempt``.
    """
    report, rows = await begin(export, "fetch", file_ids, run_id)
    wanted = [_listed(row) for row in rows.values() if refetch or not row.is_fetched]
    arrivals = _Arrivals(export, rows, report)
    down = await _receive(export, wanted, arrivals)
    await arrivals.store()
    missed = arrivals.out_of_reach
    if is_attempt:
        await asyncio.to_thread(export.record_failures, report.failures, run_id)
    if report.worked or len(wanted) < len(rows) or len(rows) == 1:
        if is_attempt:
            await asyncio.to_thread(export.record_failures, missed, run_id, parks=False)
        report.failures |= missed
    elif missed and not down:
        down = SourceUnavailable(f"none of {len(missed)} payloads can be had; of the first: {next(iter(missed.values()))}")
    if down:
        raise down
    left = (file.id for file in wanted if file.id not in arrivals.seen)
    report.not_ready = dict.fromkeys(left, "too many downloads in a row have failed before it was tried")
    return report.finish()


async def _receive(export: Export, wanted: list[DirectoryFile], arrivals: _Arrivals) -> SourceUnavailable | None:
    """Take what comes until all has, very many downloads in a row have failed, or the source refuses, which is the answer."""
    many = max(_MANY, 2 * export.settings.index.max_concurrent_downloads)
    async with export.source() as source, aclosing(source.fetch_payloads(wanted)) as outcomes:
        try:
            async for file, outcome in outcomes:
                await arrivals.take(file, outcome)
                export.progress("fetch", len(arrivals.seen), len(wanted))
                if arrivals.failed_in_a_row >= many:
                    break
        except SourceUnavailable as error:
            return error
    return None


class _Arrivals:
    """What has become of the payloads of a run so far; those that have come are stored in groups."""

    def __init__(self, export: Export, rows: dict[str, FileRow], report: StageReport) -> None:
        self._export = export
        self._rows = rows
        self._report = report
        self._batch: list[tuple[DirectoryFile, Payload]] = []
        self._size = 0
        self.seen: set[str] = set()
        self.out_of_reach: dict[str, str] = {}
        """File id -> why its download failed, where that may pass."""
        self.failed_in_a_row = 0
        """Downloads since the last that was no failure of this kind."""

    async def take(self, file: DirectoryFile, outcome: Payload | PayloadError) -> None:
        self.seen.add(file.id)
        if isinstance(outcome, PayloadOutOfReach):
            self.out_of_reach[file.id] = outcome.reason
            self.failed_in_a_row += 1
            return
        self.failed_in_a_row = 0
        if isinstance(outcome, PayloadError):
            self._report.failures[file.id] = outcome.reason
            return
        self._batch.append((file, outcome))
        self._size += outcome.size
        if len(self._batch) >= _STORE_AT_ONCE or self._size >= _BYTES_AT_ONCE:
            await self.store()

    async def store(self) -> None:
        """Store what waits to be."""
        await asyncio.to_thread(_store, self._export, self._rows, self._batch, self._report)
        self._batch, self._size = [], 0


def _store(export: Export, rows: dict[str, FileRow], batch: Iterable[tuple[DirectoryFile, Payload]], report: StageReport) -> None:
    fetched: list[tuple[str, Payload, dict[str, str]]] = []
    updates = []
    for file, payload in batch:
        row = rows[file.id]
        digest = payload_digest(payload, file)
        text = text_digest(payload)
        provenance = _provenance(file, payload)
        moved = digest != row.payload_digest
        metadata = {
            "payload_digest": digest,
            "text_digest": text,
            "provenance": provenance,
            "change_token": file.change_token,
        }
        if payload.attachments:
            metadata["attachments"] = canonical_json([[a.attachment_name, a.source_id, a.type] for a in payload.attachments])
        fetched.append((file.id, payload, metadata))
        report.worked += 1
        report.numbers["pages"] += len(payload.pages)
        report.numbers["changed"] += moved
        report.numbers["failed_pages"] += len(payload.failed_pages)
        report.rows.append(
            {
                "file": file.display_name,
                "file_id": file.id,
                "pages": len(payload.pages),
                "failed_pages": ", ".join(map(str, payload.failed_pages)),
                "changed": moved,
            }
        )
        updates.append(
            {
                "file_id": file.id,
                "fetched_token": file.change_token,
                "payload_digest": digest,
                "text_digest": text,
                "provenance": provenance,
            }
        )
    tables = pages_to_tables([payload.pages for _, payload, _ in fetched])
    # Also of a payload that the ledger knows already: the lake may hold one that a dead run has written over it.
    objects = [(file_id, table, metadata) for (file_id, _, metadata), table in zip(fetched, tables, strict=True)]
    report.numbers["bytes"] += sum(export.lake.write_many("parsed_payloads", objects))
    export.ledger.update_files(updates)
    export.ledger.refetched({file.id: rows[file.id].metadata for file, _ in batch if rows[file.id].refetch})


def _provenance(file: DirectoryFile, payload: Payload) -> str:
    """What every record of the file shares, as canonical JSON."""
    modified = payload.source_modified_at
    values: dict[str, Any] = {
        "file_name": file.display_name,
        "content_fingerprint_hash": payload.content_fingerprint_hash,
        "source_modified_at": modified.isoformat(timespec="milliseconds") if modified else None,
        "metadata": file.metadata,
    }
    return canonical_json(values)


def _listed(row: FileRow) -> DirectoryFile:
    return DirectoryFile(
        id=row.file_id,
        display_name=row.display_name,
        file_id=row.storage_id,
        metadata=json.loads(row.metadata),
        updated_at=datetime.fromtimestamp(row.updated_at, UTC) if row.updated_at is not None else None,
    )
