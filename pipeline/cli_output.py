"""How the CLI shows things: progress on stderr, citations, plans, sync summaries.

What belongs here: formatting only; what ``print_sync`` shows beyond its report it reads from the ledger.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.clock import when
from pipeline.ledger.models import MODEL
from pipeline.sinks.base import SearchHit
from pipeline.sinks.records import ChunkRecord
from pipeline.stages.detect import Detection
from pipeline.stages.erase import ErasureReport
from pipeline.stages.export import Export
from pipeline.stages.plan import Plan
from pipeline.stages.rebuild import LakeRebuild, LedgerRebuild
from pipeline.stages.remove import Removal
from pipeline.stages.repair import RepairReport
from pipeline.stages.verify import SinkVerification
from pipeline.urls import without_secrets

if TYPE_CHECKING:
    from pipeline.orchestration.launcher import SyncReport

_SNIPPET = 240


class SyncView:
    """One progress bar a stage, on stderr, nothing where that is no terminal; use it as a context manager and hand ``progress``
    to an export."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage)
        self._bars.update(self._tasks[stage], completed=done, total=total)


def pages(record: ChunkRecord) -> str:
    """The page range a record cites."""
    first, last = record.page_range_start, record.page_range_end
    if first is None:
        return "no page"
    return f"page {first}" if first == last else f"pages {first}-{last}"


def snippet(text: str) -> str:
    """The beginning of a text on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _SNIPPET else flat[: _SNIPPET - 1] + "…"


def record_json(record: ChunkRecord) -> dict[str, Any]:
    """A record as JSON values."""
    values = asdict(record)
    modified = record.source_modified_at
    return {**values, "source_modified_at": modified.isoformat() if modified else None}


def print_hits(console: Console, hits: list[SearchHit]) -> None:
    """Search results with their citations, best first."""
    for rank, hit in enumerate(hits, 1):
        name = escape(hit.record.file_name)
        console.print(f"[bold]{rank}. {name}[/bold], {pages(hit.record)} [dim]score {hit.score:.3g}[/dim]", highlight=False)
        console.print(f"   {snippet(hit.record.content)}", markup=False, highlight=False)


def print_verification(console: Console, found: SinkVerification, names: Mapping[str, str]) -> None:
    """What a verification says of one sink; ``names`` maps file ids to what people call them."""
    kind = "every record" if found.deep else "snapshots"
    verdict = "[green]holds its source[/green]" if found.ok else f"[red]{len(found.findings)} findings[/red]"
    if not found.reached:
        verdict = "[red]cannot be read to the end[/red]"
    console.print(f"{found.sink}: {verdict} ({kind}; {found.files} files, {found.records} records, {found.seconds:.1f} s)")
    for finding in found.findings:
        file = "-" if finding.file_id is None else f"{names.get(finding.file_id, '?')} ({finding.file_id})"
        chunk = "" if finding.chunk_index is None else f" #{finding.chunk_index}"
        console.print(f"  {finding.kind}  {file}{chunk}: {finding.detail}", markup=False, highlight=False)
    if found.unsettled:
        console.print(f"  {found.unsettled} files have work ahead of them and are not claimed", highlight=False)
    for what in found.unchecked:
        console.print(f"  not checked: {what}", markup=False, highlight=False)


def verification_json(found: SinkVerification) -> dict[str, Any]:
    """The same for scripts."""
    return {**asdict(found), "ok": found.ok}


def print_repair(console: Console, report: RepairReport, names: Mapping[str, str]) -> None:
    """What a repair did, and the verification it ended with."""
    console.print(
        f"{report.before.sink}: {len(report.before.findings)} findings; {len(report.replaced)} files replaced, "
        f"{len(report.deleted)} orphans deleted, {len(report.kept)} kept, {len(report.failures)} failures",
        highlight=False,
    )
    reasons: dict[str, list[str]] = defaultdict(list)
    for file_id, reason in {**report.kept, **report.failures}.items():
        reasons[reason].append(f"{names.get(file_id, '?')} ({file_id})")
    for reason, files in reasons.items():
        console.print(f"  {', '.join(files)}: {reason}", markup=False, highlight=False)
    print_verification(console, report.after, names)


def repair_json(report: RepairReport) -> dict[str, Any]:
    """The same for scripts."""
    return {**asdict(report), "replaced": sorted(report.replaced), "ok": report.ok}


def print_ledger_rebuild(console: Console, rebuilt: LedgerRebuild) -> None:
    """What a lost ledger was read off."""
    console.print(
        f"{rebuilt.files} files; of the lake {rebuilt.with_payload} payloads and the vectors of {rebuilt.with_vectors}; "
        f"{rebuilt.tombstones} erased",
        highlight=False,
    )
    for sink, files in rebuilt.standing.items():
        orphans = rebuilt.orphans.get(sink, 0)
        console.print(f"{sink}: {files} files stand, {orphans} that the directory does not have", highlight=False)
    for sink, reason in rebuilt.unreachable.items():
        console.print(f"[red]{sink} cannot be read:[/red] {escape(reason)}", highlight=False)


def print_lake_rebuild(console: Console, rebuilt: LakeRebuild, names: Mapping[str, str]) -> None:
    """What a lake had lost, and how it came back."""
    done = lake_rebuild_json(rebuilt)
    console.print(
        f"{done['files']} files had lost something: {done['payloads_fetched']} payloads fetched, {done['files_cut']} files cut, "
        f"{done['vectors_reused']} vectors read back, {done['vectors_embedded']} embedded, {len(rebuilt.failures)} failures",
        highlight=False,
    )
    for file_id, reason in rebuilt.failures.items():
        console.print(f"  {names.get(file_id, '?')} ({file_id}): {reason}", markup=False, highlight=False)


def lake_rebuild_json(rebuilt: LakeRebuild) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "files": rebuilt.files,
        "payloads_fetched": rebuilt.fetched.worked,
        "files_cut": rebuilt.cut.worked,
        "vectors_reused": rebuilt.embedded.numbers["reused"],
        "vectors_embedded": rebuilt.embedded.numbers["computed"],
        "failures": rebuilt.failures,
    }


def print_removals(console: Console, waiting: Sequence[Removal]) -> None:
    """What would go, by name."""
    if not waiting:
        console.print("nothing waits to be removed")
    for removal in waiting:
        line = f"{removal.file} ({removal.file_id}): {removal.records} records, missing since {when(removal.missing_since)}"
        console.print(f"{line}; waits for: {removal.waits_for}", markup=False, highlight=False)


def print_erasure(console: Console, report: ErasureReport) -> None:
    """The proof, place by place."""
    for proof in report.proofs:
        console.print(f"{proof.place}: {proof.records} found ({proof.checked})", markup=False, highlight=False)
    for problem in report.problems:
        console.print(f"not erased: {problem}", markup=False, highlight=False)
    for what in report.unproved:
        console.print(f"not proved: {what}", markup=False, highlight=False)
    verdict = "[green]erased and proved[/green]" if report.proved else "[red]not proved; erase again, by id[/red]"
    if report.done and report.unproved:
        verdict = "[yellow]erased; proved but for what is said above[/yellow]"
    console.print(f"{escape(', '.join(report.file_ids))}: {verdict}", highlight=False)


def plan_summary(plan: Plan) -> dict[str, Any]:
    """What a sync would do, as JSON values."""
    return {"unread": plan.detection.unread, **_plan_counts(plan)}


def _plan_counts(plan: Plan) -> dict[str, Any]:
    needs = plan.needs
    return {
        "new": len(needs.new),
        "changed": len(needs.changed),
        "stale": len(needs.stale),
        "retried": len(needs.alone),
        "removed": len(needs.removable) + len(needs.removing),
        "awaiting_approval": len(needs.awaiting_approval),
        "awaiting_grace": len(needs.awaiting_grace),
        "parked": len(needs.parked),
        "backing_off": len(needs.backing_off),
        "lagging": {sink: len(files) for sink, files in needs.lagging.items()},
        "unreachable": {sink: len(files) for sink, files in needs.unreachable.items()},
        "blocked": len(needs.blocked),
        "held_by_another_run": len(plan.held),
        "failing": plan.failures,
        "chunks_to_embed": plan.chunks,
        "chunks_reused": plan.reused,
        "tokens_to_embed": plan.tokens,
    }


def print_plan(console: Console, export: str, plan: Plan) -> None:
    """The same for people."""
    _print_unread(console, plan.detection)
    table = Table("what", "count", title=f"Plan of {export}")
    for name, count in _plan_counts(plan).items():
        if isinstance(count, dict):
            for part, value in count.items():
                table.add_row(f"{name} {part}", escape(str(value)))
        else:
            table.add_row(name.replace("_", " "), f"{count:,}")
    console.print(table, soft_wrap=False)


def _print_unread(console: Console, detection: Detection) -> None:
    if detection.unread:
        console.print(f"[red]the directory was not read whole:[/red] {escape(detection.unread)}; sync again")


def sync_summary(report: SyncReport) -> dict[str, Any]:
    """What a sync did and left behind, as JSON values."""
    return {
        "ingested": report.ingested,
        "removed": report.removed,
        "runs": report.runs,
        "failed_runs": report.failed_runs,
        "errors": report.errors,
        "unread": report.detection.unread,
        "due": report.needs.due,
        "parked": report.needs.parked,
        "backing_off": report.needs.backing_off,
        "unreachable": report.needs.unreachable,
        "blocked": report.needs.blocked,
        "awaiting_approval": report.needs.awaiting_approval,
        "ok": report.ok,
    }


def print_sync(console: Console, export: Export, report: SyncReport, documents: str | None = None) -> None:
    """The same for people."""
    rows = export.ledger.files()
    console.print(
        f"{len(report.ingested)} files worked on, {len(report.removed)} removed, {len(rows)} known; "
        f"{report.runs} runs, {report.failed_runs} failed"
    )
    _print_unread(console, report.detection)
    down = _down(export)
    by_a_removal = "; ".join(f"{sink}: {down[sink]}" for sink in export.settings.sinks if sink in down)
    for reason in dict.fromkeys(report.errors):
        if reason not in (*down.values(), by_a_removal):
            console.print(f"[red]failed:[/red] {escape(reason)}")
    for row in rows.values():
        if row.is_failing:
            console.print(f"[yellow]{row.status}[/yellow] {escape(row.display_name)}: {escape(row.last_error or '')}")
    for sink, reason in down.items():
        lacking = len(report.needs.unreachable.get(sink, []))
        how = "set up wrong" if reason in report.set_up_wrong else "down"
        console.print(f"[yellow]{sink} is {how}[/yellow], files it lacks: {lacking}: {escape(reason)}")
    if report.needs.blocked:
        console.print(f"[yellow]removed files that wait for a sink which is down: {len(report.needs.blocked)}[/yellow]")
    if report.needs.due and not report.errors:
        count = len(report.needs.due)
        console.print(f"[yellow]files held by another run: {count}[/yellow]; sync again when it has ended")
    print_awaiting_approval(console, len(report.needs.awaiting_approval), documents)


def _down(export: Export) -> dict[str, str]:
    """Why each sink of the settings, or the model, cannot be used; those that can are left out."""
    states = export.ledger.sink_states()
    reasons = {sink: states[sink].last_error for sink in (*export.settings.sinks, MODEL) if sink in states}
    return {sink: reason for sink, reason in reasons.items() if reason}


def print_awaiting_approval(console: Console, count: int, documents: str | None = None) -> None:
    """How many files the fuse keeps from being deleted, and what lets them go, of the folder that was synced, if it was one;
    nothing where there are none."""
    if count:
        folder = f"--documents {shlex.quote(without_secrets(documents))} " if documents else ""
        remedy = escape(f"indexport sync {folder}--allow-deletes {count}")
        console.print(f"[yellow]{count} files wait for approval to be deleted[/yellow]: {remedy}")
