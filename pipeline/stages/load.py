"""Records: vectors and provenance into one sink, file by file replaced, files whose snapshot matches skipped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import pyarrow as pa

from pipeline.errors import SINK_ERRORS
from pipeline.ledger.models import FileRow
from pipeline.sinks.base import UNKNOWN_RECORD_SET, Exporter, Snapshot
from pipeline.sinks.records import FileProvenance, FileRecords, build_record_sets
from pipeline.stages.export import Export
from pipeline.stages.orphans import take_into_use
from pipeline.stages.report import StageReport
from pipeline.stages.stamps import known_tables, note_lost
from pipeline.stages.work import begin, groups_of, opened_sink


async def load(export: Export, sink: str, file_ids: list[str], *, run_id: str) -> StageReport:
    """Make a sink hold the current records of these files; a file whose vectors are not current is left as it is.

    Raises SinkUnavailable or ConfigError when the sink as a whole fails; it then backs off and no file's attempts are counted.
    """
    report, rows = await begin(export, f"load {sink}", file_ids, run_id)
    scope = await export.scope()
    try:
        async with opened_sink(export, sink, scope[0]) as exporter:
            await take_into_use(export, sink, exporter, scope[1])
            await _load(export, sink, exporter, scope, rows, report, run_id)
            await exporter.optimize()
    except SINK_ERRORS as error:
        await asyncio.to_thread(export.record_sink_state, sink, str(error))
        raise
    await asyncio.to_thread(export.record_sink_state, sink, None)
    await asyncio.to_thread(export.record_failures, report.failures, run_id)
    report.numbers["files_settled"] = await asyncio.to_thread(export.settle, list(rows), scope)
    return report.finish()


async def _load(
    export: Export,
    sink: str,
    exporter: Exporter,
    scope: tuple[str, str],
    rows: dict[str, FileRow],
    report: StageReport,
    run_id: str,
) -> None:
    ready = [row for row in rows.values() if export.records_key(row, scope)]
    unready = rows.keys() - {row.file_id for row in ready}
    report.not_ready = dict.fromkeys(unready, "it has no vectors of its present chunks: materialize embeddings first")
    listed = await exporter.list_snapshots(export_config_id=scope[1], parsed_directory_file_ids=[row.file_id for row in ready])
    recorded = await asyncio.to_thread(export.ledger.sink_hashes, [row.file_id for row in ready])
    snapshots = by_file(listed, recorded.get(sink, {}))
    for group in groups_of(ready, exporter.chunks_at_once):
        unknown = [row for row in group if not _matches(export, row, scope, snapshots.get(row.file_id))]
        built = await asyncio.to_thread(build_records, export, unknown, scope, report)
        stale = [file for file in built if not holds(snapshots.get(file.file_id), file.record_set_hash, file.table.num_rows)]
        outcome = await exporter.replace_files(stale) if stale else None
        refused = {error.file_id: error.reason for error in outcome.refused} if outcome else {}
        report.failures.update(refused)
        refusals = {file.file_id: file.record_set_hash for file in stale if file.file_id in refused}
        await asyncio.to_thread(export.ledger.register.record_refusals, sink, refusals)
        if outcome:
            report.numbers["records"] += outcome.records_written
            report.numbers["bytes"] += outcome.bytes_written
        written = [file for file in stale if file.file_id not in refused]
        report.worked += len(written)
        report.rows += [
            {"file": file.provenance.file_name, "file_id": file.file_id, "records": file.table.num_rows} for file in written
        ]
        hashes = {row.file_id: row.record_set_hash or "" for row in group} | {f.file_id: f.record_set_hash for f in built}
        standing = {file_id: digest for file_id, digest in hashes.items() if digest and file_id not in report.failures}
        await asyncio.to_thread(export.ledger.record_sink, export.held_in(sink), standing)
        await asyncio.to_thread(log_written, export, f"loaded into {sink}", group, written, run_id)
        export.progress(f"load {sink}", report.worked, len(ready))


def _matches(export: Export, row: FileRow, scope: tuple[str, str], snapshot: Snapshot | None) -> bool:
    """The sink holds this file's records as the ledger last digested them: nothing needs to be read."""
    current = row.record_set_hash is not None and export.records_are_current(row, scope)
    return current and holds(snapshot, row.record_set_hash or "", row.chunk_count or 0)


def by_file(listed: Iterable[Snapshot], recorded: Mapping[str, str]) -> dict[str, Snapshot]:
    """A snapshot a file, completed. Of a file that has two, nobody knows which records it holds, so that it is replaced."""
    found: dict[str, Snapshot] = {}
    for snapshot in listed:
        file_id = snapshot.parsed_directory_file_id
        twice = file_id in found
        found[file_id] = replace(snapshot, record_set_hash=UNKNOWN_RECORD_SET) if twice else complete_snapshot(snapshot, recorded)
    return found


def complete_snapshot(snapshot: Snapshot, recorded: Mapping[str, str]) -> Snapshot:
    """A plugged-in exporter may keep no digest: then what the ledger recorded of the last load stands in for it."""
    if snapshot.record_set_hash != UNKNOWN_RECORD_SET:
        return snapshot
    return replace(snapshot, record_set_hash=recorded.get(snapshot.parsed_directory_file_id, UNKNOWN_RECORD_SET))


def holds(snapshot: Snapshot | None, record_set_hash: str, records: int) -> bool:
    return snapshot.record_set_hash == record_set_hash if snapshot else records == 0


def build_records(export: Export, rows: list[FileRow], scope: tuple[str, str], report: StageReport) -> list[FileRecords]:
    """Record sets from the lake; notes their digests in the ledger for the other sinks."""
    tables = known_tables(export, "embeddings", rows)
    lost = [row.file_id for row in rows if row.file_id not in tables]
    report.failures |= dict.fromkeys(lost, "its vectors are gone from the lake; they will be made again")
    found = [row for row in rows if row.file_id in tables]
    built = record_sets(export, [(row, tables[row.file_id]) for row in found], scope)
    export.ledger.update_files(
        [
            {"file_id": row.file_id, "records_key": export.records_key(row, scope), "record_set_hash": records.record_set_hash}
            for row, records in zip(found, built, strict=True)
        ]
    )
    note_lost(export, "embeddings", lost)
    return built


def record_sets(export: Export, files: Sequence[tuple[FileRow, pa.Table]], scope: tuple[str, str]) -> list[FileRecords]:
    """What every sink should hold of these files, from their partitions of ``embeddings``."""
    given = [(_provenance(row, scope), table, table["embedding"].combine_chunks()) for row, table in files]
    return build_record_sets(given, export.embedder.identity)


def _provenance(row: FileRow, scope: tuple[str, str]) -> FileProvenance:
    values = json.loads(row.provenance or "{}")
    modified = values["source_modified_at"]
    return FileProvenance(
        tenant_id=scope[0],
        export_config_id=scope[1],
        parsed_directory_file_id=row.file_id,
        file_name=values["file_name"],
        content_fingerprint_hash=values["content_fingerprint_hash"],
        source_modified_at=datetime.fromisoformat(modified) if modified else None,
        metadata=values["metadata"],
    )


def log_written(export: Export, event: str, rows: Iterable[FileRow], written: Sequence[FileRecords], run_id: str) -> None:
    """Note in the history what was written of these files, and what it was made from."""
    if not written:
        return
    model = export.embedder.identity
    payloads = {row.file_id: row.payload_digest for row in rows}
    events = [
        (
            file.file_id,
            event,
            {
                "records": file.table.num_rows,
                "model": model.name,
                "fingerprint": model.fingerprint,
                "payload_digest": payloads[file.file_id],
                "content_fingerprint_hash": file.provenance.content_fingerprint_hash,
                "record_set_hash": file.record_set_hash,
            },
        )
        for file in written
    ]
    export.ledger.log(events, run_id=run_id)
