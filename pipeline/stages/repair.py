"""Repair: the files of a sink that differ from their source are replaced from the lake; every other file is left alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pipeline.errors import SINK_ERRORS, SOURCE_ERRORS
from pipeline.ledger.models import FileRow
from pipeline.sinks.base import Exporter
from pipeline.stages.detect import detect
from pipeline.stages.export import Export
from pipeline.stages.findings import FindingKind
from pipeline.stages.load import build_records, log_written
from pipeline.stages.orphans import take_into_use
from pipeline.stages.rebuild import forget_lost, make_again
from pipeline.stages.remove import delete_from
from pipeline.stages.report import StageReport
from pipeline.stages.verify import SinkVerification, verify
from pipeline.stages.work import borrowed, groups_of, opened_sink

_BEYOND_REPAIR: frozenset[FindingKind] = frozenset({"orphan_file", "foreign_records"})
"""What replacing a file does not mend: orphans are deleted, the rest is for people to decide."""


@dataclass(slots=True)
class RepairReport:
    """What a repair found, did and left: ``kept`` says why an orphan stayed, ``failures`` why a file was not replaced."""

    before: SinkVerification
    after: SinkVerification
    replaced: set[str] = field(default_factory=set)
    deleted: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.after.ok


async def repair(export: Export, sink: str, *, run_id: str, deep: bool = True, allow_deletes: int = 0) -> RepairReport:
    """Make a sink hold its source again, and verify that it does. ``allow_deletes`` orphans may go, however many the fuse lets.

    What a replace does not mend, because a store keeps records no snapshot speaks of, is deleted and written anew in a
    second round: such a file does not answer for a moment. A sink that cannot be reached is left as it is, which the last
    verification says.
    """
    found = await verify(export, sink, deep=deep)
    report = RepairReport(found, found)
    async with borrowed(export, run_id):
        for delete_first in (False, True):
            if report.after.ok or not report.after.reached:
                break
            try:
                await _mend(export, sink, report, run_id, delete_first=delete_first, allow_deletes=allow_deletes)
            except SINK_ERRORS as error:
                report.after.fail(error)
            else:
                report.after = await verify(export, sink, deep=deep)
    return report


async def _mend(export: Export, sink: str, report: RepairReport, run_id: str, *, delete_first: bool, allow_deletes: int) -> None:
    findings = report.after.findings
    differing = sorted({f.file_id for f in findings if f.file_id is not None and f.kind not in _BEYOND_REPAIR})
    orphans = sorted({f.file_id for f in findings if f.file_id is not None and f.kind == "orphan_file"})
    nameless = any(f.file_id is None and f.kind == "orphan_file" for f in findings)
    is_index_stale = any(f.kind == "stale_index" for f in findings)
    if not (differing or orphans or nameless or is_index_stale):
        return
    scope = await export.scope()
    held = await asyncio.to_thread(export.claim, differing, run_id)
    ready = await _current_rows(export, held, scope, report, run_id)
    async with opened_sink(export, sink, scope[0]) as exporter:
        doomed, report.kept = await _deletable(export, orphans, allow_deletes) if orphans else ([], {})
        if doomed:
            await _delete_orphans(export, sink, exporter, scope[1], doomed, report, run_id)
        await take_into_use(export, sink, exporter, scope[1])
        for group in groups_of(ready, exporter.chunks_at_once):
            await _replace(export, sink, exporter, scope, group, report, run_id, delete_first=delete_first)
        if nameless:  # records of this export that say of no file: no listing has anything to say of them
            await exporter.delete_files(parsed_directory_file_ids=[], export_config_id=scope[1])
        if is_index_stale:
            await exporter.check_beside(export_config_id=scope[1])  # what it is asked of now, it mends now
        await exporter.optimize()
    await asyncio.to_thread(export.settle, held, scope)
    await asyncio.to_thread(export.ledger.drop_leases, run_id)


async def _current_rows(
    export: Export, file_ids: list[str], scope: tuple[str, str], report: RepairReport, run_id: str
) -> list[FileRow]:
    """Rows whose records the lake can give, after making what it lacks, as far as LlamaCloud can be asked; vectors of other sinks
    are taken back first."""
    rows = await asyncio.to_thread(export.ledger.files, file_ids)
    await asyncio.to_thread(forget_lost, export, list(rows.values()))
    rows = await asyncio.to_thread(export.ledger.files, file_ids)
    lacking = [row.file_id for row in rows.values() if not export.records_key(row, scope)]
    if lacking:
        try:
            made = await make_again(export, lacking, run_id=run_id, sinks=export.settings.sinks)
            report.failures.update(made.failures)
        except SOURCE_ERRORS as error:
            report.failures.update(dict.fromkeys(lacking, str(error)))
        rows = await asyncio.to_thread(export.ledger.files, file_ids)
    return [row for row in rows.values() if export.records_key(row, scope)]


async def _replace(
    export: Export,
    sink: str,
    exporter: Exporter,
    scope: tuple[str, str],
    group: list[FileRow],
    report: RepairReport,
    run_id: str,
    *,
    delete_first: bool,
) -> None:
    built_report = StageReport("repair")
    built = await asyncio.to_thread(build_records, export, group, scope, built_report)
    if delete_first:
        ids = [file.file_id for file in built]
        await delete_from(export, sink, exporter, scope[1], ids)
    outcome = await exporter.replace_files(built)
    refused = {error.file_id: error.reason for error in outcome.refused}
    report.failures.update({**built_report.failures, **refused})
    written = [file for file in built if file.file_id not in refused]
    hashes = {file.file_id: file.record_set_hash for file in written}
    report.replaced.update(hashes)
    await asyncio.to_thread(export.ledger.record_sink, export.held_in(sink), hashes)
    await asyncio.to_thread(log_written, export, f"repaired in {sink}", group, written, run_id)


async def _delete_orphans(
    export: Export, sink: str, exporter: Exporter, config: str, doomed: list[str], report: RepairReport, run_id: str
) -> None:
    await delete_from(export, sink, exporter, config, doomed)
    report.deleted += doomed
    await asyncio.to_thread(export.ledger.log, [(file_id, "orphan removed", {}) for file_id in doomed], run_id=run_id)


async def _deletable(export: Export, orphans: list[str], allow_deletes: int) -> tuple[list[str], dict[str, str]]:
    """Orphans that a complete listing taken now does not show, unless they are too many; and why the others are kept.

    An erased file needs no listing.
    """
    erased = await asyncio.to_thread(export.ledger.register.tombstones)
    unproven = [file_id for file_id in orphans if file_id not in erased]
    if not unproven:
        return orphans, {}
    sure = [file_id for file_id in orphans if file_id in erased]
    try:
        detection = await detect(export, complete=True)
    except SOURCE_ERRORS as error:
        return sure, dict.fromkeys(unproven, f"no listing proves it gone: {error}")
    if detection.look != "complete":
        return sure, dict.fromkeys(unproven, f"no listing proves it gone: {detection.unread or f'the index is {detection.look}'}")
    rows = await asyncio.to_thread(export.ledger.files)
    gone = [file_id for file_id in unproven if file_id not in rows or rows[file_id].status == "removed"]
    kept = dict.fromkeys(set(unproven) - set(gone), "the directory has it now")
    limit = max(export.settings.removal.most_deletes(len(rows) + len(gone)), allow_deletes)
    if len(gone) > limit:
        reason = (
            f"{len(gone)} deletes are more than the {limit} let through at once; approve them with --allow-deletes {len(gone)}"
        )
        return sure, {**kept, **dict.fromkeys(gone, reason)}
    return sure + gone, kept
