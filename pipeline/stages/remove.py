"""Removal: a file's records leave every sink, then its tables leave the lake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import SINK_ERRORS, ConfigError, SinkUnavailable
from pipeline.ledger.models import LEAVING
from pipeline.sinks.base import Exporter
from pipeline.stages.export import Export
from pipeline.stages.needs import needs_of
from pipeline.stages.report import StageReport
from pipeline.stages.work import begin, opened_sink


@dataclass(frozen=True, slots=True)
class Removal:
    """A file the directory has no longer, and what its records wait for: ``grace period``, ``approval``, a ``sink`` that is down,
    or nothing (``now``)."""

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
        **dict.fromkeys(needs.blocked, "sink"),
        **dict.fromkeys([*needs.removable, *needs.removing], "now"),
    }
    rows = export.ledger.files(list(waits))
    found = [Removal(f, row.display_name, row.chunk_count or 0, row.missing_since, waits[f]) for f, row in rows.items()]
    return sorted(found, key=lambda removal: (removal.file, removal.file_id))


async def delete_from(export: Export, sink: str, exporter: Exporter, config: str, file_ids: Sequence[str]) -> None:
    """Delete files from a sink. The ledger goes first: a file that stays or returns after all is then loaded again."""
    await asyncio.to_thread(export.ledger.register.let_go, sink, file_ids)
    await exporter.delete_files(parsed_directory_file_ids=file_ids, export_config_id=config)


async def remove(export: Export, file_ids: list[str], *, run_id: str) -> StageReport:
    """Delete these files from every sink and from the lake; can be run again after any failure.

    A file that another live run holds, or that has been listed again meanwhile, is left alone.
    Raises SinkUnavailable when sinks are down or set up wrong, after the files have left the others: they stay marked for
    removal.
    """
    report, rows = await begin(export, "remove", file_ids, run_id, leaving=True)
    marked = [row for row in rows.values() if row.status == "removing"]
    report.not_ready = {row.file_id: "it is not marked for removal" for row in rows.values() if row.status not in LEAVING}
    scopes = await export.scopes()
    doomed = [row.file_id for row in marked]
    down: dict[str, Exception] = {}
    if doomed:
        await asyncio.to_thread(_distrust_the_unreached, export)
    for sink in export.settings.sinks if doomed else ():
        try:
            for tenant_id, config in scopes:
                async with opened_sink(export, sink, tenant_id) as exporter:
                    await delete_from(export, sink, exporter, config, doomed)
        except SINK_ERRORS as error:
            down[sink] = error
        await asyncio.to_thread(export.record_sink_state, sink, str(down[sink]) if sink in down else None)
    if down:
        set_up_wrong = next((error for error in down.values() if isinstance(error, ConfigError)), None)
        raise SinkUnavailable("; ".join(f"{sink}: {error}" for sink, error in down.items())) from set_up_wrong
    await asyncio.to_thread(export.lake.delete_many, doomed)
    await asyncio.to_thread(export.ledger.record_removed, doomed, run_id=run_id)
    report.rows = [{"file": row.display_name, "file_id": row.file_id, "records": row.chunk_count or 0} for row in marked]
    report.numbers["records"] = sum(row.chunk_count or 0 for row in marked)
    report.worked = len(doomed)
    return report.finish()


def _distrust_the_unreached(export: Export) -> None:
    """What the ledger says of former models' collections and of sinks that are not in the settings, or were elsewhere, is taken
    back: when they return, they still hold what is removed now, and the first load looks for that."""
    present = [export.held_in(sink) for sink in export.settings.sinks]
    moved = export.ledger.register.moved(present)
    export.ledger.register.keep_only_of([held for held in present if held.sink not in moved])
