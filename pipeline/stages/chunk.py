"""Chunks: payload pages into chunk rows; pure, so equal input gives equal bytes."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.compute as pc

from pipeline.documents.arrow import chunks_to_table, pages_from_table
from pipeline.documents.chunking import chunk_document
from pipeline.documents.document import build_document
from pipeline.documents.models import Attachment
from pipeline.ledger.models import FileRow
from pipeline.stages.export import Export
from pipeline.stages.report import StageReport
from pipeline.stages.work import begin

_LEDGER_AT_ONCE = 200


async def chunk(export: Export, file_ids: list[str], *, run_id: str) -> StageReport:
    """Cut the documents of these files whose chunks were made from another text or by another chunker."""
    report, rows = await begin(export, "chunk", file_ids, run_id)
    await asyncio.to_thread(_chunk, export, rows, report)
    await asyncio.to_thread(export.record_failures, report.failures, run_id)
    return report.finish()


def _chunk(export: Export, rows: dict[str, FileRow], report: StageReport) -> None:
    stale = [row for row in rows.values() if (key := export.chunks_key(row)) and key != row.chunks_key]
    if stale:
        _ = export.embedder, export.chunker
    updates: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for row, made in zip(stale, pool.map(lambda row: _chunk_file(export, row), stale), strict=True):
            if made is None:
                lost.append({"file_id": row.file_id, "fetched_token": None, "payload_digest": None, "text_digest": None})
                report.failures[row.file_id] = "its payload is gone from the lake; it will be fetched again"
                continue
            updates.append(made)
            report.worked += 1
            report.numbers["chunks"] += made["chunk_count"]
            report.numbers["tokens"] += made["token_count"]
            report.sizes += made.pop("sizes")
            report.rows.append(
                {"file": row.display_name, "file_id": row.file_id, "chunks": made["chunk_count"], "tokens": made["token_count"]}
            )
            export.progress("chunk", report.worked, len(stale))
            if len(updates) >= _LEDGER_AT_ONCE:
                export.ledger.update_files(updates)
                updates = []
    export.ledger.update_files(updates)
    export.ledger.update_files(lost)


def _chunk_file(export: Export, row: FileRow) -> dict[str, Any] | None:
    """Chunk one file into the lake; its ledger columns, or ``None`` when its payload is gone."""
    pages = export.lake.read("parsed_payloads", row.file_id)
    if pages is None:
        return None
    whole_file = json.loads((pages.schema.metadata or {}).get(b"attachments", b"[]"))
    document = build_document(
        pages_from_table(pages),
        tuple(Attachment(*values) for values in whole_file),
        include_headers_footers=export.settings.chunking.include_headers_footers,
    )
    embedder = export.embedder
    chunks = chunk_document(document, export.settings.chunking, embedder.tokens, embedder.max_tokens)
    table = chunks_to_table(chunks)
    key = export.chunks_key(row) or ""
    export.lake.write("chunks", row.file_id, table, {"chunks_key": key})
    return {
        "file_id": row.file_id,
        "chunks_key": key,
        "chunk_count": len(chunks),
        "token_count": int(pc.sum(table["chunk_token_count"]).as_py() or 0),
        "sizes": table["chunk_token_count"].to_pylist(),
    }
