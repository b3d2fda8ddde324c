"""Verification: proof that a sink holds its source, file by file and chunk by chunk, in both directions.

Shallow reads snapshots, in a bounded number of requests at any size. Deep reads every record and compares it with the one
rebuilt from the lake, a table of bounded size at a time. Nothing is repaired here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.errors import SINK_ERRORS, SinkConflict
from pipeline.ledger.models import FileRow
from pipeline.sinks.base import UNKNOWN_RECORD_SET, Exporter, Snapshot
from pipeline.sinks.generations import PENDING_PREFIX, is_altered
from pipeline.sinks.records import EMPTY_RECORD_SET, group_files, record_set_hash
from pipeline.stages.export import Export
from pipeline.stages.findings import Finding, FindingKind, compare_file
from pipeline.stages.load import complete_snapshot, record_sets
from pipeline.stages.stamps import known_tables
from pipeline.stages.work import opened_sink, read_whole_or_closed

_SEEN_IN_DEEP: frozenset[FindingKind] = frozenset({"missing_file", "stale_file", "duplicate", "wrong_model"})
"""What a deep verification says more exactly of a file whose records it has read."""


@dataclass(slots=True)
class SinkVerification:
    """What was found in one sink. ``unsettled`` files are being worked on or not made yet: nothing is claimed of them.

    ``unchecked`` names in words what this sink gives no way to check.
    """

    sink: str
    deep: bool
    files: int = 0
    records: int = 0
    unsettled: int = 0
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def reached(self) -> bool:
        """Whether the sink could be read to the end."""
        return not any(finding.kind in ("conflict", "unreachable") for finding in self.findings)

    def fail(self, error: Exception) -> None:
        """Note what ended the comparison."""
        self.add("conflict" if isinstance(error, SinkConflict) else "unreachable", None, str(error))

    def add(self, kind: FindingKind, file_id: str | None, detail: str) -> None:
        self.findings.append(Finding(kind, self.sink, file_id, None, detail))


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a sink should hold of a file: this record set, or, with ``None``, nothing that could be said now.

    ``may_be_absent``: it is on its way out. ``row``: its records can be rebuilt from the lake. ``is_held``: a live run has it.
    """

    record_set_hash: str | None
    may_be_absent: bool
    row: FileRow | None
    is_held: bool = False


async def verify(export: Export, sink: str, *, deep: bool = False) -> SinkVerification:
    """Compare one sink with its source. One that cannot be read, or a collection that is not ours, is a finding too.

    Raises ConfigError for a sink the export does not have.
    """
    export.check_sink(sink)
    started = time.perf_counter()
    found = SinkVerification(sink, deep)
    scope = await export.scope()
    try:
        async with opened_sink(export, sink, scope[0]) as exporter:
            expected = await asyncio.to_thread(_expectations, export, sink, scope)
            found.files = sum(1 for file in expected.values() if file.record_set_hash is not None)
            found.unsettled = len(expected) - found.files
            await _check_snapshots(export, exporter, scope, expected, found)
            await _check_scopes(export, exporter, scope, found)
            if deep:
                await _check_records(export, exporter, scope, expected, found)
                for detail in await exporter.check_beside(export_config_id=scope[1]):
                    found.add("stale_index", None, detail)
            if found.findings:
                _leave_out_moved(expected, await asyncio.to_thread(_expectations, export, sink, scope), found)
                await asyncio.to_thread(_say_what_failed, export, found)
    except SINK_ERRORS as error:
        found.fail(error)
    found.findings.sort(key=lambda finding: (finding.file_id or "", finding.chunk_index or 0, finding.kind))
    found.seconds = time.perf_counter() - started
    return found


def _expectations(export: Export, sink: str, scope: tuple[str, str]) -> dict[str, _Expected]:
    """Every file that may be in the sink. One with work ahead of it should stand there as it was last loaded."""
    recorded = export.ledger.sink_hashes(slug=export.embedder.identity.slug).get(sink, {})
    rows = {row.file_id: row for row in export.ledger.files().values() if row.status != "removed"}
    held = export.held(rows.values())
    expected = {}
    for file_id, row in rows.items():
        leaving = row.missing_since is not None or row.status == "removing"
        if file_id in held:
            expected[file_id] = _Expected(None, leaving, None, is_held=True)
        elif row.record_set_hash is not None and export.records_are_current(row, scope):
            expected[file_id] = _Expected(row.record_set_hash, leaving, row)
        else:
            expected[file_id] = _Expected(recorded.get(file_id), leaving, None)
    return expected


def _leave_out_moved(before: Mapping[str, _Expected], after: Mapping[str, _Expected], found: SinkVerification) -> None:
    """A run may have replaced a file while it was compared: what was seen of that file proves nothing, nor what was seen of the
    index, which a run brings up to date when it ends."""
    moved = {
        file_id
        for file_id in before.keys() | after.keys()
        if (one := before.get(file_id)) is None
        or (other := after.get(file_id)) is None
        or one.record_set_hash != other.record_set_hash
    }
    is_busy = bool(moved) or any(file.is_held for file in (*before.values(), *after.values()))
    kept = [f for f in found.findings if f.file_id not in moved and not (is_busy and f.kind == "stale_index")]
    found.unsettled += len({f.file_id for f in found.findings if f.file_id} - {f.file_id for f in kept})
    found.findings = kept


def _say_what_failed(export: Export, found: SinkVerification) -> None:
    """Add to what says that a file's present version does not stand why it could not be brought there, where that is known."""
    failing = export.ledger.files({finding.file_id for finding in found.findings if finding.file_id}, failing=True)
    for position, finding in enumerate(found.findings):
        row = failing.get(finding.file_id or "")
        if row and row.last_error and finding.kind in ("missing_file", "stale_file"):
            status = "parked" if row.status == "parked" else "failing"
            found.findings[position] = replace(finding, detail=f"{finding.detail}; the file is {status}: {row.last_error}")


async def _check_snapshots(
    export: Export, exporter: Exporter, scope: tuple[str, str], expected: Mapping[str, _Expected], found: SinkVerification
) -> None:
    recorded = await asyncio.to_thread(export.ledger.sink_hashes)
    snapshots: dict[str, list[Snapshot]] = {}
    for listed in await exporter.list_snapshots(export_config_id=scope[1]):
        snapshot = complete_snapshot(listed, recorded.get(found.sink, {}))
        snapshots.setdefault(snapshot.parsed_directory_file_id, []).append(snapshot)
    for file_id, of_file in snapshots.items():
        if not found.deep:
            found.records += sum(snapshot.chunk_count for snapshot in of_file)
        if file_id not in expected:
            found.add("orphan_file", file_id, f"{of_file[0].chunk_count} records of a file the directory does not have")
        elif expected[file_id].record_set_hash is not None:
            _check_snapshot(exporter, file_id, of_file, expected[file_id], found)
    for file_id in _standing(expected) - snapshots.keys():
        found.add("missing_file", file_id, "the sink has no record of it")


def _standing(expected: Mapping[str, _Expected]) -> set[str]:
    """Files of which the sink must have records."""
    return {
        file_id
        for file_id, wanted in expected.items()
        if wanted.record_set_hash not in (None, EMPTY_RECORD_SET) and not wanted.may_be_absent
    }


def _check_snapshot(
    exporter: Exporter, file_id: str, of_file: list[Snapshot], expected: _Expected, found: SinkVerification
) -> None:
    snapshot = next((s for s in of_file if s.record_set_hash.startswith(PENDING_PREFIX)), of_file[0])
    if is_altered(snapshot):
        found.add("altered_metadata", file_id, "its first record lacks a field, or has one of another type")
    elif snapshot.record_set_hash.startswith(PENDING_PREFIX):
        found.add("pending", file_id, "a replace was left half-way")
    elif len(of_file) > 1:
        found.add("duplicate", file_id, f"{len(of_file)} first chunks")
    elif snapshot.embedding_model != exporter.context.model.fingerprint:
        found.add("wrong_model", file_id, f"made by {snapshot.embedding_model!r}")
    elif snapshot.record_set_hash == UNKNOWN_RECORD_SET:
        found.add("unproved", file_id, "this exporter keeps no digest, and the ledger has recorded none")
    elif snapshot.record_set_hash != expected.record_set_hash:
        wanted, held = expected.row.chunk_count if expected.row else None, snapshot.chunk_count
        differing = f"another version stands, of {held} records instead of {wanted}"
        same_size = wanted is None or wanted == held
        found.add("stale_file", file_id, f"{held} records of another version stand" if same_size else differing)


async def _check_scopes(export: Export, exporter: Exporter, scope: tuple[str, str], found: SinkVerification) -> None:
    held = await exporter.list_scopes()
    if held is None:
        found.unchecked.append("records of tenants and configs that no known export owns: this sink cannot list them")
        return
    known = await asyncio.to_thread(export.ledger.register.known_scopes)
    for tenant_id, config in sorted(held - known - {scope}):
        found.add("foreign_records", None, f"records of project {tenant_id!r}, config {config!r}, which no known export owns")


async def _check_records(
    export: Export, exporter: Exporter, scope: tuple[str, str], expected: Mapping[str, _Expected], found: SinkVerification
) -> None:
    pending = {finding.file_id for finding in found.findings if finding.kind == "pending"}
    try:
        held = exporter.fetch_records(export_config_id=scope[1])
    except SinkConflict as error:
        found.unchecked.append(str(error))
        return
    seen: set[str] = set()
    differences: list[Finding] = []
    async with read_whole_or_closed(held) as tables:
        async for table in tables:
            files = {group["parsed_directory_file_id"][0].as_py(): group for group in group_files(table)}
            compared = {file_id: group for file_id, group in files.items() if file_id not in pending}
            differences += await asyncio.to_thread(_compare, export, found.sink, scope, expected, compared)
            differences += await _unsearchable(exporter, found.sink, expected, table, compared)
            found.records += table.num_rows
            seen |= compared.keys()
    told = {(finding.file_id, finding.kind) for finding in found.findings}
    found.findings = [f for f in found.findings if not (f.kind in _SEEN_IN_DEEP and f.file_id in seen)]
    found.findings += [f for f in differences if f.kind != "orphan_file" or (f.file_id, f.kind) not in told]
    for file_id in _standing(expected) - seen - {finding.file_id for finding in found.findings}:
        found.add("missing_file", file_id, "its snapshot stands, and none of its records")


async def _unsearchable(
    exporter: Exporter, sink: str, expected: Mapping[str, _Expected], table: pa.Table, compared: Mapping[str, pa.Table]
) -> list[Finding]:
    settled = {file_id for file_id in compared if (wanted := expected.get(file_id)) and wanted.record_set_hash is not None}
    unfound = await exporter.unfound_files(table) & settled
    return [Finding("unsearchable", sink, file_id, None, "its records stand, and no search finds them") for file_id in unfound]


def _compare(
    export: Export, sink: str, scope: tuple[str, str], expected: Mapping[str, _Expected], held: Mapping[str, pa.Table]
) -> Iterable[Finding]:
    rows = [wanted.row for file_id in held if (wanted := expected.get(file_id)) and wanted.row]
    lake = known_tables(export, "embeddings", rows)
    findings: list[Finding] = []
    for file_id, table in held.items():
        wanted = expected.get(file_id)
        if wanted is None:
            whose = "of a file the directory does not have" if file_id is not None else "that name no file"
            findings.append(Finding("orphan_file", sink, file_id, None, f"{table.num_rows} records {whose}"))
        elif wanted.row is not None:
            findings += _compare_with_lake(export, sink, scope, wanted.row, lake.get(file_id), table)
        elif wanted.record_set_hash not in (None, record_set_hash(table)):
            detail = "its records are not those last loaded, and its next version is not made yet"
            findings.append(Finding("stale_file", sink, file_id, None, detail))
    return findings


def _compare_with_lake(
    export: Export, sink: str, scope: tuple[str, str], row: FileRow, source: pa.Table | None, held: pa.Table
) -> list[Finding]:
    if source is None:
        return [Finding("unproved", sink, row.file_id, None, "its vectors are gone from the lake")]
    [wanted] = record_sets(export, [(row, source)], scope)
    return compare_file(sink, row.file_id, wanted.table, held)
