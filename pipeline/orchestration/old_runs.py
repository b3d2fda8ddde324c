"""Deleting old runs, which Dagster itself never does: what they say of a file takes more room than its records.

No file depends on them. Where such a run is the last that materialized a partition, Dagster is told of it anew before the run
goes, so that none ever looks missing.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

from pipeline.errors import ConfigError
from pipeline.lake.lake import DATASETS
from pipeline.orchestration.assets import DIRECTORY_FILES, asset_key
from pipeline.orchestration.partitions import is_of_export, key_order
from pipeline.orchestration.runless_events import delete_runless_events
from pipeline.orchestration.standing import report_materialized, shown
from pipeline.stages.export import Progress, silent
from pipeline.stages.settings import ExportSettings


def delete_old_runs(
    instance: dg.DagsterInstance, settings: ExportSettings, *, before: datetime, progress: Progress = silent
) -> int:
    """Delete the finished runs of this export that were made before then, with their logs and events; answers how many. What
    was told outside of runs by then and has been told anew since goes too.

    A run that also carries assets of another export stays. A partition that is shown as failed is not any more once its run is
    gone: what failed is the ledger's to say. Can be broken off anywhere and called again. Raises ConfigError on a storage that
    is no SQL database.
    """
    storage = _sql_storage(instance)
    finished = instance.get_runs(dg.RunsFilter(statuses=FINISHED_STATUSES, created_before=before))
    runs = [run for run in finished if is_of_export(run, settings.name) and _names_no_other(run, settings.name)]
    if runs:
        _tell_anew(instance, settings, {run.run_id for run in runs})
    for done, run in enumerate(runs, start=1):
        instance.compute_log_manager.delete_logs(prefix=[run.run_id])
        instance.delete_run(run.run_id)
        progress("delete runs", done, len(runs))
    # Last: until then the deleted runs' own materializations would count as the newer ones.
    assets = [asset_key(settings, asset) for asset in (DIRECTORY_FILES, *DATASETS, *settings.sinks)]
    delete_runless_events(storage, assets, before=before)
    return len(runs)


def _names_no_other(run: dg.DagsterRun, export: str) -> bool:
    return all(key.path[0] == export for key in run.asset_selection or ())


def _tell_anew(instance: dg.DagsterInstance, settings: ExportSettings, run_ids: Collection[str]) -> None:
    file_ids = key_order(instance, settings.name)
    for asset in (*DATASETS, *settings.sinks):
        key = asset_key(settings, asset)
        last = _last_runs(_sql_storage(instance), key)
        told_by_these = [file_id for file_id in file_ids if last.get(file_id) in run_ids]
        now = shown(instance, settings.name, key, told_by_these)
        materialized = [file_id for file_id in told_by_these if now.get(file_id) == dg.AssetPartitionStatus.MATERIALIZED]
        report_materialized(instance, key, materialized, made_by="a run that was deleted for its age")


def _sql_storage(instance: dg.DagsterInstance) -> SqlEventLogStorage:
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise ConfigError(f"old runs cannot be deleted: Dagster's events are in {type(storage).__name__}, not in an SQL database")
    return storage


def _last_runs(storage: SqlEventLogStorage, asset: dg.AssetKey) -> dict[str, str]:
    """The run that last materialized each partition, for which Dagster has no question of its own."""
    c = SqlEventLogStorageTable.c
    newest = (
        sa.select(sa.func.max(c.id))
        .where(c.asset_key == asset.to_string(), c.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION.value)
        .group_by(c.partition)
    )
    with storage.index_connection() as connection:
        return {row.partition: row.run_id for row in connection.execute(sa.select(c.partition, c.run_id).where(c.id.in_(newest)))}
