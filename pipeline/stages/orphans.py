"""Orphans: files that a sink holds and the directory does not have. They go the way of every removed file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping

from pipeline.ledger.models import FileRow
from pipeline.sinks.base import Exporter, Snapshot
from pipeline.stages.export import Export


async def take_into_use(export: Export, sink: str, exporter: Exporter, config: str) -> None:
    """Register a sink's collection before anything is written to it. At the first time, or the first since another model had
    its turn or the sink was elsewhere or not in the settings, adopt its orphans: what was removed meanwhile stands there."""
    if await asyncio.to_thread(export.ledger.register.record_collection, export.held_in(sink)):
        return
    listed = await exporter.list_snapshots(export_config_id=config)
    if listed:
        rows = await asyncio.to_thread(export.ledger.files, {snapshot.parsed_directory_file_id for snapshot in listed})
        await asyncio.to_thread(adopt_orphans, export, rows, listed)


def adopt_orphans(export: Export, rows: Mapping[str, FileRow], listed: Iterable[Snapshot]) -> int:
    """Take what is in a sink and in none of these rows into the ledger as missing; answers how many files that are."""
    found = {}
    for snapshot in listed:
        row = rows.get(snapshot.parsed_directory_file_id)
        if row is None or row.status == "removed":
            name = row.display_name if row else _name_in_lake(export, snapshot.parsed_directory_file_id)
            found[snapshot.parsed_directory_file_id] = (name, snapshot.chunk_count)
    export.ledger.register.adopt_orphans(found)
    return len(found)


def _name_in_lake(export: Export, file_id: str) -> str:
    provenance = (export.lake.metadata("parsed_payloads", file_id) or {}).get("provenance")
    return str(json.loads(provenance)["file_name"]) if provenance else file_id
