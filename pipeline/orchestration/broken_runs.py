"""Runs that failed, were killed or were canceled after they had done a part of their work.

Dagster counts all partitions of such a run's unfinished assets as failed, while the ledger knows which of its files stand.
No other run would bring those up again, because nothing is left to do for them: so it is noted that they are materialized.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from pipeline.orchestration.partitions import EXPORT_TAG, NOTED_TAG, WAVE_TAG, files_partitions
from pipeline.stages.export import Export
from pipeline.stages.needs import standing_files

_BROKEN = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_MAX_RUNS = 200
"""The newest ones looked through; no more than a fraction of it can break between two looks."""
_MAX_EVENTS = 2_000
"""Noted in one look, which has a minute: each is a transaction of its own."""


def note_what_stands(instance: dg.DagsterInstance, export: Export, scope: tuple[str, str]) -> None:
    """After runs of this export broke: files that stand all the same are done, and Dagster is told in which assets they stand."""
    runs = _broken_runs(instance, export.name)
    if not runs:
        return
    waves = {run.tags.get(WAVE_TAG) for run in runs}
    rows = {file_id: row for file_id, row in export.ledger.files().items() if None in waves or row.wave in waves}
    export.settle([file_id for file_id, row in rows.items() if row.status == "requested"], scope)
    left = _MAX_EVENTS
    for asset, file_ids in standing_files(export, rows, scope).items():
        key = dg.AssetKey([export.name, asset])
        noted = _not_materialized(instance, export.name, key, file_ids)[:left]
        for file_id in noted:
            instance.report_runless_asset_event(
                dg.AssetMaterialization(key, partition=file_id, metadata={"made_by": "a run that broke later"})
            )
        left -= len(noted)
    if left > 0:
        for run in runs:
            instance.add_run_tags(run.run_id, {f"{NOTED_TAG}.{export.name}": run.run_id})


def _broken_runs(instance: dg.DagsterInstance, export: str) -> list[dg.DagsterRun]:
    """Those nothing has been noted of. A run that is executed again inherits the tags of the first, so they name the run."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_BROKEN), limit=_MAX_RUNS, order_by="update_timestamp")
    runs = [record.dagster_run for record in records]
    return [run for run in runs if run.tags.get(f"{NOTED_TAG}.{export}") != run.run_id and _is_of(run, export)]


def _is_of(run: dg.DagsterRun, export: str) -> bool:
    """Sensor and command line tag their runs; those that people launch are of the ingest job or name their assets."""
    told = run.tags.get(EXPORT_TAG) == export or run.job_name == f"{export}_ingest"
    return told or any(key.path[0] == export for key in run.asset_selection or ())


def _not_materialized(instance: dg.DagsterInstance, export: str, asset: dg.AssetKey, file_ids: list[str]) -> list[str]:
    statuses = instance.get_status_by_partition(asset, file_ids, files_partitions(export)) if file_ids else None
    settled = (AssetPartitionStatus.MATERIALIZED, AssetPartitionStatus.IN_PROGRESS)
    return [file_id for file_id, status in (statuses or {}).items() if status not in settled]
