"""Payloads: from LlamaCloud into the lake, gated twice.

The listing's change token says whether a payload must be fetched; our own digest of the normalised payload says whether
anything after it must run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pipeline.documents.arrow import pages_to_tables
from pipeline.errors import PayloadError
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


async def fetch(export: Export, file_ids: list[str], *, run_id: str, refetch: bool = False) -> StageReport:
    """Bring the payloads of these files into the lake where their change token moved (or all, with ``refetch``).

    Raises SourceUnavailable when LlamaCloud cannot be used; what was fetched until then is kept.
    """
    report, rows = await begin(export, "fetch", file_ids, run_id)
    wanted = [_listed(row) for row in rows.values() if refetch or row.refetch or row.fetched_token != row.change_token]
    batch: list[tuple[DirectoryFile, Payload]] = []
    size = 0
    async with export.source() as source:
        async for file, outcome in source.fetch_payloads(wanted):
            if isinstance(outcome, PayloadError):
                report.failures[file.id] = outcome.reason
            else:
                batch.append((file, outcome))
                size += outcome.size
            if len(batch) >= _STORE_AT_ONCE or size >= _BYTES_AT_ONCE:
                await asyncio.to_thread(_store, export, rows, batch, report)
                batch, size = [], 0
            export.progress("fetch", report.worked + len(report.failures), len(wanted))
    await asyncio.to_thread(_store, export, rows, batch, report)
    await asyncio.to_thread(export.record_failures, report.failures, run_id)
    return report.finish()


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
        report.rows.append({"file": file.display_name, "file_id": file.id, "pages": len(payload.pages), "changed": moved})
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
