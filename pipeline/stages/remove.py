"""Removal: a file's records leave every sink, then its tables leave the lake."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pipeline.stages.export import Export
from pipeline.stages.needs import needs_of
from pipeline.stages.report import StageReport
from pipeline.stages.work import begin


@dataclass(frozen=True, slots=True)
class Removal:
    """A file the directory has no longer, and what its records wait for: ``grace period``, ``approval``, or nothing (``now``)."""

    file_id: str
    file: str
    records: int
    missing_since: float | None
    waits_for: str


def pending_removals(export: Export) -> list[Removal]:
    """What would go from every sink, by name, in the order of names. Reads the ledger alone."""
    state = export.ledger.state()
    needs = needs_of(export, (state.tenant_id or "", state.export_config_id or ""))
    waits = {
        **dict.fromkeys(needs.awaiting_grace, "grace period"),
        **dict.fromkeys(needs.awaiting_approval, "approval"),
        **dict.fromkeys([*needs.removable, *needs.removing], "now"),
    }
    rows = export.ledger.files(list(waits))
    found = [Removal(f, row.display_name, row.chunk_count or 0, row.missing_since, waits[f]) for f, row in rows.items()]
    return sorted(found, key=lambda removal: (removal.file, removal.file_id))


async def remove(export: Export, file_ids: list[str], *, run_id: str) -> StageReport:
    """Delete these files from every sink and from the lake; can be run again after any failure.

    A file that another live run holds, or that has been listed again meanwhile, is left alone.
    Raises SinkUnavailable when a sink cannot be reached: the files then stay marked for removal.
    """
    report, rows = await begin(export, "remove", file_ids, run_id, leaving=True)
    marked = [row for row in rows.values() if row.status == "removing"]
    tenant_id, config = await export.scope()
    doomed = [row.file_id for row in marked]
    for sink in export.settings.sinks if doomed else ():
        exporter = await asyncio.to_thread(export.sink, sink, tenant_id)
        try:
            await exporter.provision()
            await exporter.delete_files(parsed_directory_file_ids=doomed, export_config_id=config)
        finally:
            await exporter.close()
    for row in marked:
        await asyncio.to_thread(export.lake.delete, row.file_id)
        report.rows.append({"file": row.display_name, "file_id": row.file_id, "records": row.chunk_count or 0})
        report.numbers["records"] += row.chunk_count or 0
    await asyncio.to_thread(export.ledger.record_removed, doomed, run_id=run_id)
    report.worked = len(doomed)
    return report.finish()
