"""The sensor that turns directory changes into runs."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import RUN_KEY_TAG

from pipeline.clock import is_due
from pipeline.errors import SOURCE_ERRORS, SourceUnavailable
from pipeline.ledger.models import FileRow
from pipeline.orchestration.checks import files_check
from pipeline.orchestration.directory_events import directory_events
from pipeline.orchestration.jobs import removal_config, removal_tags
from pipeline.orchestration.partitions import EXPORT_TAG, LANE_TAG
from pipeline.orchestration.resources import Exports
from pipeline.orchestration.waves import Dispatch, RunSpec, dispatch
from pipeline.stages.detect import Detection, detect, refresh
from pipeline.stages.export import Export
from pipeline.stages.loaded_file import LoadedFile
from pipeline.stages.settings import ExportSettings

_log = logging.getLogger(__name__)
_LISTING_SECONDS = 40.0
"""Of the minute that Dagster gives a sensor for a look."""
_PROOFS = 3
"""How often one proof is asked for when its run is killed."""
_LONG_SECONDS = 10.0
"""After a listing that took longer there is no time to tell Dagster what stands."""


def directory_changes(
    settings: ExportSettings,
    file: LoadedFile | None,
    ingest: UnresolvedAssetJobDefinition,
    removal: dg.JobDefinition,
    verification: UnresolvedAssetJobDefinition,
) -> dg.SensorDefinition:
    """A level-triggered sensor: it compares the whole directory with the ledger, so lost ticks heal.
    Between an edit of ``file``, where the settings were read from one, and the reload it asks for nothing.

    Ticks change partition keys and the ledger themselves (Dagster has no bulk request for that); "Test sensor" in the UI
    does so too, harmlessly: every step can be repeated.
    """

    @dg.sensor(
        name=f"{settings.name}_directory_changes",
        jobs=[ingest, removal, verification],
        minimum_interval_seconds=settings.detection.minimum_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks at the LlamaCloud index and asks for what differs from the ledger.",
    )
    def sensor(context: dg.SensorEvaluationContext, indexport: Exports) -> dg.SensorResult | dg.SkipReason:
        if file and file.is_edited():
            return dg.SkipReason(_edited(file))
        export = indexport.open(settings, context.instance)
        cursor: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
        began = time.monotonic()
        try:
            detection = asyncio.run(look(export, cursor=cursor.get("listing")))
        except SourceUnavailable as error:
            return dg.SkipReason(f"nothing is decided without the index: {error}")
        scope = detection.index.scope
        # An unchanged index was not listed: the look after a long listing restores, however slowly LlamaCloud answers.
        long = detection.look != "unchanged" and time.monotonic() - began > _LONG_SECONDS
        restore = detection.look == "complete" or cursor.get("restoring", True)
        since = cursor.get("waiting_since")
        decided = dispatch(context.instance, export, scope, waiting_since=since, restore=restore and not long)
        restoring = decided.restoring or (restore and long)
        failing, loaded_at = export.ledger.files(failing=True), export.ledger.register.last_change()
        proof = _proof(export, loaded_at, len(decided.needs.awaiting_approval)) if decided.settled and not restoring else None
        left = {
            "listing": detection.cursor,
            "waiting_since": decided.waiting_since,
            "restoring": restoring,
            "failing": _digest(failing, loaded_at),
            "proof": proof or cursor.get("proof"),
        }
        context.update_cursor(json.dumps(left))
        requests = [_request(settings, ingest.name, spec) for spec in decided.runs]
        going = _without_those_to_wait(export, decided)
        requests += [_removal(settings, removal.name, going)] if going else []
        if proof and (key := _proof_to_ask_for(context.instance, settings, proof, asked=cursor.get("proof"))):
            requests.append(_verification(settings, verification.name, key))
        events = directory_events(context.instance, export, detection, decided.needs, runs=len(decided.runs))
        if events or left["failing"] != cursor.get("failing"):
            events.append(files_check(settings, failing))
        reason = None if requests else _reason(detection, decided)
        return dg.SensorResult(run_requests=requests, skip_reason=reason, asset_events=events)

    return sensor


def _edited(file: LoadedFile) -> str:
    return (
        f"{file.path} was edited or moved after Dagster loaded it: nothing is asked for until its code location is reloaded "
        "(Dagster UI: Deployment > Code locations > Reload)"
    )


def _without_those_to_wait(export: Export, decided: Dispatch) -> tuple[str, ...]:
    """Files are removed after what is to be ingested, as by a sync, but wait no longer than scattered changes do: Dagster starts
    runs in any order, and of a file that was renamed the vectors would be gone before its new name needs them."""
    if not (decided.runs or decided.needs.in_flight):
        return decided.removals
    rows, longest = export.ledger.files(decided.removals), export.settings.detection.max_wait_seconds
    return tuple(file_id for file_id in decided.removals if is_due(rows[file_id].missing_since, longest))


async def look(export: Export, *, cursor: str | None = None) -> Detection:
    """Ask for a sync when one is due, then look at the index; a long listing is gone on with by the next look."""
    every = export.settings.detection.sync_every_seconds
    unsynced = None if every is None else await _sync_when_due(export, every)
    return replace(await detect(export, cursor=cursor, budget_seconds=_LISTING_SECONDS), unsynced=unsynced)


async def _sync_when_due(export: Export, every: int) -> str | None:
    """Answers why the sync that is due could not be begun. What was synced before can be looked at; the next tick asks again."""
    state = await asyncio.to_thread(export.ledger.state)
    if not is_due(state.sync_requested_at, every):
        return None
    try:
        await refresh(export, wait=False)
    except SOURCE_ERRORS as error:
        _log.warning("%s", error)
        return str(error)
    return None


def _request(settings: ExportSettings, job: str, spec: RunSpec) -> dg.RunRequest:
    return dg.RunRequest(
        job_name=job,
        partition_key=spec.partition_key,
        asset_selection=spec.selection(settings),
        asset_check_keys=[] if spec.assets else None,  # a job that is cut to a selection gets back the checks it was made without
        tags=spec.tags(settings.name),
    )


def _removal(settings: ExportSettings, job: str, file_ids: tuple[str, ...]) -> dg.RunRequest:
    return dg.RunRequest(job_name=job, run_config=removal_config(settings, file_ids), tags=removal_tags(settings))


def _proof(export: Export, loaded_at: float | None, awaiting_approval: int) -> str | None:
    """What tells the state the sinks have come to rest in, the last complete listing, and the settings a sink may refuse from
    any other; ``None`` of sinks that never held anything. A look asks for its proof when the last one asked for was another's: as
    the run key it makes it one run also after a reset of the cursor."""
    if loaded_at is None:
        return None
    state = f"{loaded_at}-{export.ledger.state().complete_at}-{awaiting_approval}"
    return f"{export.name}_verification-{state}-{export.failure_digest[:8]}"


def _proof_to_ask_for(instance: dg.DagsterInstance, settings: ExportSettings, proof: str, *, asked: str | None) -> str | None:
    """The run key of a proof that was not asked for yet, or whose run was killed: its checks would stay planned until the next
    complete listing. One that a person has cancelled is left."""
    if proof != asked:
        return proof
    newest = instance.get_runs(dg.RunsFilter(tags=_proof_tags(settings)), limit=_PROOFS)
    asked_for = [run for run in newest if run.tags.get(RUN_KEY_TAG, "").startswith(proof)]
    was_last = bool(asked_for) and asked_for[0] is newest[0]
    if was_last and newest[0].status is dg.DagsterRunStatus.FAILURE and len(asked_for) < _PROOFS:
        return f"{proof}-again-{len(asked_for)}"
    return None


def _verification(settings: ExportSettings, job: str, proof: str) -> dg.RunRequest:
    return dg.RunRequest(run_key=proof, job_name=job, tags=_proof_tags(settings))


def _proof_tags(settings: ExportSettings) -> dict[str, str]:
    return {EXPORT_TAG: settings.name, LANE_TAG: "proof"}


def _digest(failing: Mapping[str, FileRow], loaded_at: float | None) -> str:
    """Which files fail and why, and when files were last loaded: when it changes, the check is told anew, for Dagster shows one
    that is older than the last materialization as not evaluated."""
    reasons = [(row.file_id, row.last_error) for row in failing.values()]
    return hashlib.sha256(json.dumps([reasons, loaded_at]).encode()).hexdigest()[:16]


def _reason(detection: Detection, decided: Dispatch) -> str:
    needs = decided.needs
    waiting = {
        "in flight": needs.in_flight,
        "backing off": needs.backing_off,
        "parked": needs.parked,
        "waiting for a sink or model that is down": needs.without_a_sink,
        "awaiting the grace period": needs.awaiting_grace,
        "awaiting approval to delete": needs.awaiting_approval,
    }
    parts = [f"{len(files)} files {name}" for name, files in waiting.items() if files]
    unsynced = [f"no sync is begun: {detection.unsynced}"] if detection.unsynced else []
    return "; ".join([*unsynced, detection.unread or f"the index is {detection.look}", *parts])
