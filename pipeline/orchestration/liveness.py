"""Which runs are over because their process is.

A process that is killed cannot say so, and Dagster would count its runs as started for ever: their files would wait with
them, and no moment would be quiet again. So every run of ours is tagged with a mark that names a file which its process holds
locked; the kernel lets go of the lock however the process ends. Until its own process tags it, it bears the mark of the
process that launched it. Marks of other machines are unknown here: their runs are over when they are not heard of any more.
A command that holds files as a run does (an erasure, a repair) has such a mark in its name.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import dagster as dg
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.launcher import LaunchRunContext

from pipeline.clock import is_due
from pipeline.files import hold
from pipeline.home import Home
from pipeline.ledger.asker import COMMAND
from pipeline.orchestration.heartbeats import inherits, kept_heard_of, silent_runs
from pipeline.orchestration.partitions import EXPORT_TAG, LAUNCHER_TAG, PROCESS_TAG, UNFINISHED, is_of_export, spellings, told_by
from pipeline.stages.export import LEASE_SECONDS

_SUFFIX = ".lock"
_WITH_A_PROCESS = [status for status in UNFINISHED if status is not dg.DagsterRunStatus.QUEUED]
_SPEECHLESS_SECONDS = 60.0
"""A process tags its run in the moment after it has reported it started, and so does a launcher."""
_UNBEGUN_SECONDS = 300.0
"""Since the last that was written of a run: Dagster queues or launches it as soon as it has written down what it plans for every
file, 11 ms each where that is not batched."""
_SILENT = f"nothing was heard of this run for {LEASE_SECONDS / 60:.0f} minutes: it was killed, or its machine stopped"


@contextmanager
def process_mark() -> Iterator[str]:
    """A mark that is alive during the block. Of a block that ends by an exception, as of a killed process, the file stays:
    it is what the next look finds."""
    folder = _folder()
    mark, descriptor = _lock(folder)
    try:
        yield mark
        _path(folder, mark).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextmanager
def command_run(what: str) -> Iterator[str]:
    """A run id for a command that holds files while it works, without a run in Dagster; live during the block. Of a block that
    ends by an exception, which may have kept it from giving back what it holds, the file stays, as of a killed process."""
    try:
        mark, descriptor = _lock(_commands())
    except OSError:  # a read-only home or one without locks: nobody can see it die, and what it holds runs out
        yield f"{what}-{uuid.uuid4().hex}"
        return
    try:
        yield f"{what}-{mark}"
        _path(_commands(), mark).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def run_is_live(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run is known and unfinished, or the process of a command is not known to have ended: one of another machine
    is not known here, and one that ends in order gives back what it holds."""
    if command := COMMAND.fullmatch(run_id):
        return _is_alive(_path(_commands(), command[1]))
    run = instance.get_run_by_id(run_id)
    return run is not None and not run.is_finished


class MarkingRunLauncher(dg.DefaultRunLauncher):
    """Dagster's own launcher; until the run's process speaks for itself, the process that launched it answers for it."""

    def launch_run(self, context: LaunchRunContext) -> None:
        if mark := _mark_of_this_process():
            self._instance.add_run_tags(context.dagster_run.run_id, {LAUNCHER_TAG: mark, PROCESS_TAG: mark})
        super().launch_run(context)


class _MarkingExecutor(InProcessExecutor):
    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[dg.DagsterEvent]:
        instance, run_id = plan_context.instance, plan_context.run_id
        mark = _mark_of_this_process()
        with kept_heard_of(instance, run_id) as heard:
            instance.add_run_tags(run_id, {**heard, PROCESS_TAG: mark} if mark else heard)
            yield from super().execute(plan_context, execution_plan)


marking_executor = dg.ExecutorDefinition(
    name="in_process",
    executor_creation_fn=lambda _context: _MarkingExecutor(RetryMode.ENABLED),
    description="Every step in one process, which first of all tags the run with a mark that lives as long as it does.",
)


def end_dead_runs(instance: dg.DagsterInstance, export: str) -> None:
    """Report as failed the unfinished runs, of any export, whose process was of this machine and has ended, or was of another
    and is not heard of any more; and those of this export that never began.

    Runs of others on the instance are left, and so are those that an executor of others carries out: it makes no marks, and
    whether they are over is Dagster's to find out. Places of what is over in the pools are given back first: without a
    daemon nobody else would, and all runs would wait for them.
    """
    for path in sorted(_folder().glob(f"*{_SUFFIX}")):
        if _is_alive(path):
            continue
        mark = path.name.removesuffix(_SUFFIX)
        records = _marked(instance, mark)
        dead = [record.dagster_run for record in records if _is_dead(instance, record, mark, export)]
        for run in dead:
            _end(instance, run)
        if len(dead) == len(records):
            path.unlink(missing_ok=True)
    for run in silent_runs(instance):
        if not _path(_folder(), told_by(run, PROCESS_TAG) or "").exists():  # of a process of this machine its mark tells
            _end(instance, run, _SILENT)
    for run in _never_launched(instance, export):
        _end(instance, run)
    for run in _never_begun(instance, export):
        _end(instance, run, "this run was created and never queued or launched: a file it was for may have gone before")


def _marked(instance: dg.DagsterInstance, mark: str) -> list[dg.RunRecord]:
    """The unfinished runs whose process bears this mark."""
    filters = [dg.RunsFilter(statuses=_WITH_A_PROCESS, tags={tag: mark}) for tag in spellings(PROCESS_TAG)]
    records = [record for each in filters for record in instance.get_run_records(each)]
    return [record for record in records if told_by(record.dagster_run, PROCESS_TAG) == mark]


def _end(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    reason: str = "the process of this run ended without a word: it was killed, or its machine stopped",
) -> None:
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    instance.report_run_failed(run, reason)


def _never_launched(instance: dg.DagsterInstance, export: str) -> list[dg.DagsterRun]:
    """Runs that Dagster has handed to our launcher, which died before it marked them; none where it cannot make marks."""
    if not isinstance(instance.run_launcher, MarkingRunLauncher) or not os.access(_folder().parent, os.W_OK):
        return []
    records = _ours(instance, dg.DagsterRunStatus.STARTING, export)
    unmarked = [record for record in records if told_by(record.dagster_run, PROCESS_TAG) is None]
    return [record.dagster_run for record in unmarked if is_due(record.update_timestamp.timestamp(), _SPEECHLESS_SECONDS)]


def _never_begun(instance: dg.DagsterInstance, export: str) -> list[dg.DagsterRun]:
    """Runs that Dagster has stored and then neither queued nor launched: it refuses a range whose first or last file has gone
    only when it has stored the run. A run that is executed again inherits the mark of the first, which says nothing of it; any
    other mark is of the process that executes the run itself."""
    records = _ours(instance, dg.DagsterRunStatus.NOT_STARTED, export)
    unanswered = [r for r in records if r.dagster_run.parent_run_id or told_by(r.dagster_run, PROCESS_TAG) is None]
    old = [r.dagster_run for r in unanswered if is_due(r.create_timestamp.timestamp(), _UNBEGUN_SECONDS)]
    return [run for run in old if is_due(_last_word(instance, run), _UNBEGUN_SECONDS)]


def _ours(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, export: str) -> list[dg.RunRecord]:
    records = instance.get_run_records(dg.RunsFilter(statuses=[status]))
    return [record for record in records if _is_ours(record.dagster_run, export)]


def _is_ours(run: dg.DagsterRun, export: str) -> bool:
    return EXPORT_TAG in run.tags or is_of_export(run, export)


def _last_word(instance: dg.DagsterInstance, run: dg.DagsterRun) -> float:
    """When the last event of a run was written: what is planned for its files, as long as that takes."""
    return max((one.timestamp for one in instance.get_records_for_run(run.run_id, limit=1, ascending=False).records), default=0.0)


def _is_dead(instance: dg.DagsterInstance, record: dg.RunRecord, mark: str, export: str) -> bool:
    """Whether a run is over when the process of its mark is. While that is its launcher's it is over when it has not
    started, because Dagster ignores a process that comes later; one that has just started may be about to speak."""
    run = record.dagster_run
    if told_by(run, LAUNCHER_TAG) != mark:
        return not inherits(instance, run, PROCESS_TAG)
    if run.status is dg.DagsterRunStatus.STARTING:
        return _is_ours(run, export)
    return EXPORT_TAG in run.tags and is_due(record.start_time or 0.0, _SPEECHLESS_SECONDS)


def _mark_of_this_process() -> str | None:
    try:
        return _mark_for_life(_folder())
    except OSError:  # a read-only home, as in a container, or one without locks: its launcher watches it
        return None


def _folder() -> Path:
    return Home.from_environment().dagster_home / "processes"


def _commands() -> Path:
    """Marks that are no run's. One that a killed command leaves tells for ever that it is dead."""
    return _folder() / "commands"


def _path(folder: Path, mark: str) -> Path:
    return folder / f"{mark}{_SUFFIX}"


def _lock(folder: Path) -> tuple[str, int]:
    """A new mark and the descriptor that keeps it alive. The file gets its name when it is locked, so that nobody finds it
    unlocked before."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    unnamed = folder / f".{mark}"
    descriptor = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        hold(descriptor, unnamed)
        unnamed.rename(_path(folder, mark))
    except OSError:
        os.close(descriptor)
        unnamed.unlink(missing_ok=True)
        raise
    return mark, descriptor


@lru_cache(maxsize=1)
def _mark_for_life(folder: Path) -> str:
    """The file stays: a process that ends in order may still have had no way to say that its run is over. Whoever looks next
    finds it and deletes it when no run of it is unfinished."""
    mark, _ = _lock(folder)
    return mark


def _is_alive(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # it ended in order meanwhile, or is of another machine
        return True
    try:
        hold(descriptor, path, wait=False)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
