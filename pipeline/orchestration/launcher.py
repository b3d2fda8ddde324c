"""What the command line starts: syncs in this process, the decisions of the sensor, and Dagster's own webserver and daemon.

The runs are real Dagster runs in the same instance, so the UI shows them beside the sensor's.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.events import RunFailureReason
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.utils import make_new_run_id
from dagster_shared.error import SerializableErrorInfo

import pipeline.errors
from pipeline.errors import ConfigError, SyncFailed
from pipeline.home import Home, packaged
from pipeline.orchestration.assets import export_assets
from pipeline.orchestration.checks import files_check
from pipeline.orchestration.directory_events import DirectoryEvent, directory_events
from pipeline.orchestration.heartbeats import kept_heard_of
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.jobs import ingest_job, removal_config, removal_job, removal_tags
from pipeline.orchestration.liveness import process_mark
from pipeline.orchestration.partitions import PROCESS_TAG
from pipeline.orchestration.resources import EXPORTS
from pipeline.orchestration.waves import RunSpec, dispatch
from pipeline.stages.detect import Detection, detect
from pipeline.stages.export import Progress, silent
from pipeline.stages.needs import Needs, needs_of
from pipeline.stages.settings import ExportSettings

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""From glibc's malloc.h."""
_HEAPS = 2
_LARGE_BYTES = 2**20
_PLACE = re.compile(r'File "(.+)", line (\d+)')
_OF_SETTINGS = {name for name, kind in vars(pipeline.errors).items() if isinstance(kind, type) and issubclass(kind, ConfigError)}
_STORAGE_GONE = "DagsterPostgresException"
"""What Dagster's storage in PostgreSQL raises when it has tried to connect often enough."""
_QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(slots=True)
class SyncReport:
    """What a sync did. ``needs`` is what it leaves behind."""

    detection: Detection
    ingested: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    runs: int = 0
    failed_runs: int = 0
    errors: list[str] = field(default_factory=list)
    """Why steps of those runs failed, one line each."""
    set_up_wrong: set[str] = field(default_factory=set)
    """What was said of settings at that: the words of each ConfigError."""
    needs: Needs = field(default_factory=Needs)

    @property
    def ok(self) -> bool:
        """Everything the directory shows stands in every sink."""
        left = self.needs
        waiting = left.parked or left.backing_off or left.without_a_sink or left.awaiting_approval
        return not (self.detection.unread or self.failed_runs or left.due or waiting)


def sync(settings: ExportSettings, instance: dg.DagsterInstance, *, progress: Progress = silent) -> SyncReport:
    """Detect, materialize, remove, until nothing is left that can be done now.

    A file, sink or model that fails backs off, so it is tried once; what was down before is tried at once. Raises
    SourceUnavailable when the index cannot be read and SyncFailed with the vendor's message when the index has failed.
    """
    _keep_few_heaps()
    export = EXPORTS.open(settings, instance, progress)
    ingest, removal = jobs_of_a_sync(settings)
    detection = asyncio.run(detect(export, complete=True))
    if detection.look == "failed":
        _tell(instance, directory_events(instance, export, detection))
        raise SyncFailed(detection.unread)
    scope = detection.index.scope
    report = SyncReport(detection)
    tried: set[tuple[str, tuple[str, ...] | None]] = set()
    removing: set[str] = set()
    restoring = True
    settled = False

    def is_fresh(spec: RunSpec) -> bool:
        return any((key, spec.assets) not in tried for key in spec.keys)

    export.ledger.register.end_waits()
    with process_mark() as mark:
        while True:
            decided = dispatch(instance, export, scope, restore=restoring, wanted=is_fresh)
            restoring = decided.restoring
            settled |= bool(decided.needs.standing)
            removals = tuple(file_id for file_id in decided.removals if file_id not in removing)
            if not (decided.runs or removals or restoring):
                break
            for spec in decided.runs:
                tried |= {(key, spec.assets) for key in spec.keys}
                _count(execute(ingest, spec, settings, instance, mark), report)
                report.ingested += spec.keys
            if removals:
                removing |= set(removals)
                _remove(removal, removals, settings, instance, report, mark)
    report.ingested = list(dict.fromkeys(report.ingested))
    report.needs = needs_of(export, scope)
    events = directory_events(instance, export, detection, report.needs, runs=report.runs)
    if report.runs or settled:
        events.append(files_check(settings, export.ledger.files(failing=True)))
    _tell(instance, events)
    return report


def jobs_of_a_sync(settings: ExportSettings) -> tuple[dg.JobDefinition, dg.JobDefinition]:
    """The ingest and the removal job of an export without checks: Dagster gives a job that is cut to some sinks those of these
    sinks back, whatever it was made without, and executes them."""
    ingest, removal = ingest_job(settings), removal_job(settings)
    definitions = dg.Definitions(assets=export_assets(settings), jobs=[ingest, removal], resources={"indexport": EXPORTS})
    return definitions.resolve_job_def(ingest.name), definitions.resolve_job_def(removal.name)


def _keep_few_heaps() -> None:
    """glibc gives every few threads a heap of their own, and puts ever larger pieces into them; LanceDB's come and go: over
    twenty runs the holes they leave take many times what is in use. Large pieces are mapped, and given back, instead. Other C
    libraries have no such heaps."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_ARENA_MAX, _HEAPS)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _tell(instance: dg.DagsterInstance, events: Iterable[DirectoryEvent]) -> None:
    for event in events:
        instance.report_runless_asset_event(event)


def execute(
    job: dg.JobDefinition, spec: RunSpec, settings: ExportSettings, instance: dg.DagsterInstance, mark: str
) -> dg.ExecuteInProcessResult:
    """One run of the export's ingest job, here and now. ``mark`` is this process's."""
    selection, tags = spec.selection(settings), spec.tags(settings.name)
    return _carried_out(job, instance, mark, tags, partition_key=spec.partition_key, asset_selection=selection, run_config=_QUIET)


def _carried_out(
    job: dg.JobDefinition, instance: dg.DagsterInstance, mark: str, tags: dict[str, str], **given: Any
) -> dg.ExecuteInProcessResult:
    run_id = make_new_run_id()
    with kept_heard_of(instance, run_id) as heard:
        tags = {**tags, **heard, PROCESS_TAG: mark}
        result = job.execute_in_process(instance=instance, run_id=run_id, tags=tags, raise_on_error=False, **given)
    _stop_if_interrupted(result)
    return result


def _remove(
    job: dg.JobDefinition,
    file_ids: tuple[str, ...],
    settings: ExportSettings,
    instance: dg.DagsterInstance,
    report: SyncReport,
    mark: str,
) -> None:
    config = {**_QUIET, **removal_config(settings, file_ids)}
    result = _carried_out(job, instance, mark, removal_tags(settings), run_config=config)
    _count(result, report)
    if result.success:
        report.removed += file_ids


def _stop_if_interrupted(result: dg.ExecuteInProcessResult) -> None:
    """Raise the KeyboardInterrupt that Dagster has caught: it ends the run it is in and would let the next one begin."""
    unexpected = RunFailureReason.UNEXPECTED_TERMINATION
    for event in result.all_events:
        in_a_step = event.is_step_failure and event.step_failure_data.error_source is ErrorSource.INTERRUPT
        if in_a_step or (event.is_job_failure and event.job_failure_data.failure_reason is unexpected):
            raise KeyboardInterrupt


def _count(result: dg.ExecuteInProcessResult, report: SyncReport) -> None:
    report.runs += 1
    report.failed_runs += not result.success
    report.errors += failures(result)
    report.set_up_wrong |= _said_of_settings(result)


def _said_of_settings(result: dg.ExecuteInProcessResult) -> set[str]:
    failed = result.filter_events(lambda event: event.is_step_failure)
    errors = (error for event in failed for error in _with_causes(event.step_failure_data.error))
    return {_words(error) for error in errors if error.cls_name in _OF_SETTINGS}


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """Why steps of a run failed, one line each."""
    lines = []
    for event in result.filter_events(lambda event: event.is_step_failure):
        failure = event.step_failure_data
        told = failure.user_failure_data.description if failure.user_failure_data else None
        lines.append(told or (_reason(event.step_key, failure.error) if failure.error else "no reason given"))
    return lines


def _with_causes(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    while error:
        yield error
        error = error.cause


def _words(error: SerializableErrorInfo) -> str:
    """Of an error of our own."""
    return error.message.strip().partition(": ")[2]


def _reason(step: str | None, given: SerializableErrorInfo) -> str:
    """The words of an error of our own. Of any other only the type and the place of its innermost cause: its words may hold
    what nobody should read."""
    *_, innermost = causes = list(_with_causes(given))
    for error in causes:
        if error.cls_name and hasattr(pipeline.errors, error.cls_name):
            return _words(error)
        if error.cls_name == _STORAGE_GONE:
            return f"{step}: the storage of the Dagster instance went away; check that it runs, then sync again"
    place = _PLACE.search(innermost.stack[-1]) if innermost.stack else None
    where = f" in {place[1]}:{place[2]}" if place else ""
    return f"{step}: {innermost.cls_name}{where}; its words are in the run's log (`indexport dev`)"


def free_port(port: int) -> int:
    """This port of 127.0.0.1 or, for 0, any that nobody listens on. Raises ConfigError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: what has ended is in nobody's way
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"the Dagster UI cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another with --port"
            ) from error
        return int(probe.getsockname()[1])


def run_dagster_dev(port: int) -> int:
    """Dagster's webserver and daemon over this project, until they are stopped; answers their exit code."""
    with open_instance(Home.from_environment()):
        pass  # made and migrated before its processes open it
    workspace = str(packaged("workspace.yaml"))
    command = [sys.executable, "-m", "dagster", "dev", "-w", workspace, "-h", "127.0.0.1", "-p", str(port)]
    # Handled signals are reset to their defaults in the child: one that inherits "ignored" could not be stopped at all.
    # A terminal interrupts the whole group, so that an interrupt need not be passed on.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda _number, _frame: process.terminate())
    return process.wait()
