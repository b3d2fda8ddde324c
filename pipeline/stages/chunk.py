"""Chunks: payload pages into chunk rows; pure, so equal input gives equal bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.documents.arrow import DOCUMENT_COLUMNS, chunks_to_tables, pages_from_table
from pipeline.documents.chunking import chunk_document
from pipeline.documents.document import build_document
from pipeline.documents.models import Attachment, Chunk
from pipeline.ledger.models import FileRow
from pipeline.stages.export import Export
from pipeline.stages.report import StageReport
from pipeline.stages.stamps import known_tables, note_lost
from pipeline.stages.work import begin

_AT_ONCE = 16
"""Files held in memory at once: as many as the lake reads together from a bucket."""


async def chunk(export: Export, file_ids: list[str], *, run_id: str, is_attempt: bool = True) -> StageReport:
    """Cut the documents of these files whose chunks were made from another text or by another chunker. ``is_attempt`` as in
    ``fetch``."""
    report, rows = await begin(export, "chunk", file_ids, run_id)
    await asyncio.to_thread(_chunk, export, rows, report)
    if is_attempt:
        await asyncio.to_thread(export.record_failures, report.failures, run_id)
    return report.finish()


def _chunk(export: Export, rows: dict[str, FileRow], report: StageReport) -> None:
    keys = {file_id: export.chunks_key(row) for file_id, row in rows.items()}
    unfetched = [file_id for file_id, key in keys.items() if not key]
    report.not_ready = dict.fromkeys(unfetched, "it has no payload yet: materialize parsed_payloads first")
    stale = [rows[file_id] for file_id, key in keys.items() if key and key != rows[file_id].chunks_key]
    for start in range(0, len(stale), _AT_ONCE):
        _chunk_files(export, stale[start : start + _AT_ONCE], report)
        export.progress("chunk", report.worked, len(stale))


def _chunk_files(export: Export, rows: Sequence[FileRow], report: StageReport) -> None:
    """Chunk files into the lake, then note in the ledger what they have, or that their payload is gone."""
    payloads = known_tables(export, "parsed_payloads", rows, DOCUMENT_COLUMNS)
    objects: list[tuple[str, pa.Table, dict[str, str]]] = []
    updates: list[dict[str, Any]] = []
    lost = [row.file_id for row in rows if row.file_id not in payloads]
    report.failures |= dict.fromkeys(lost, "its payload is gone from the lake; it will be fetched again")
    found = [row for row in rows if row.file_id in payloads]
    cut = [_chunks(export, payloads.pop(row.file_id)) for row in found]
    for row, chunks, table in zip(found, cut, chunks_to_tables(cut), strict=True):
        key = export.chunks_key(row) or ""
        sizes = [chunk.chunk_token_count for chunk in chunks]
        tokens = sum(sizes)
        objects.append((row.file_id, table, {"chunks_key": key}))
        updates.append({"file_id": row.file_id, "chunks_key": key, "chunk_count": len(chunks), "token_count": tokens})
        report.worked += 1
        report.numbers["chunks"] += len(chunks)
        report.numbers["tokens"] += tokens
        report.sizes += sizes
        report.rows.append({"file": row.display_name, "file_id": row.file_id, "chunks": len(chunks), "tokens": tokens})
    export.lake.write_many("chunks", objects)
    export.ledger.update_files(updates)
    note_lost(export, "parsed_payloads", lost)


def _chunks(export: Export, pages: pa.Table) -> list[Chunk]:
    whole_file = json.loads((pages.schema.metadata or {}).get(b"attachments", b"[]"))
    settings = export.settings.chunking
    document = build_document(
        pages_from_table(pages),
        tuple(Attachment(*values) for values in whole_file),
        include_headers_footers=settings.include_headers_footers,
    )
    return chunk_document(document, settings, export.embedder.tokens, export.embedder.max_tokens)
