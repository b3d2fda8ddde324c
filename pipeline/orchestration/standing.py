"""Telling Dagster, outside of any run, which partitions are materialized.

The ledger knows what stands. Dagster does not where a run broke after its work was done, or where its instance was lost: no
run would bring those partitions up again, because nothing is left to do for them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence

import dagster as dg
from dagster._core.events import DagsterEventBatchMetadata, StepMaterializationData
from dagster._core.instance import RUNLESS_JOB_NAME, RUNLESS_RUN_ID

from pipeline.ledger.models import FileRow
from pipeline.orchestration.assets import asset_key
from pipeline.orchestration.event_batches import FILE
from pipeline.orchestration.partitions import files_partitions
from pipeline.stages.export import Export
from pipeline.stages.needs import standing_files

_AT_ONCE = 500
_SECONDS = 8.0
"""Twice in one look at most, which has a minute and lists for 40 seconds of it. Thousands of events with batches, hundreds
without; the next look goes on."""


def report_standing(
    instance: dg.DagsterInstance, export: Export, rows: Mapping[str, FileRow], scope: tuple[str, str], *, made_by: str
) -> bool:
    """Report those of these files that stand, in every asset they stand in, where Dagster shows them neither as materialized
    nor in progress. Answers whether it had time for all."""
    until = time.monotonic() + _SECONDS
    for asset, file_ids in standing_files(export, rows, scope).items():
        key = asset_key(export.settings, asset)
        unknown = _not_materialized(instance, export.name, key, file_ids)
        for start in range(0, len(unknown), _AT_ONCE):
            names = {file_id: rows[file_id].display_name for file_id in unknown[start : start + _AT_ONCE]}
            report_materialized(instance, key, list(names), made_by=made_by, names=names)
            if time.monotonic() >= until:
                return False
    return True


def _not_materialized(instance: dg.DagsterInstance, export: str, asset: dg.AssetKey, file_ids: list[str]) -> list[str]:
    statuses = shown(instance, export, asset, file_ids)
    settled = (dg.AssetPartitionStatus.MATERIALIZED, dg.AssetPartitionStatus.IN_PROGRESS)
    return [file_id for file_id in file_ids if statuses.get(file_id) not in settled]


def shown(
    instance: dg.DagsterInstance, export: str, asset: dg.AssetKey, file_ids: list[str]
) -> Mapping[str, dg.AssetPartitionStatus | None]:
    """What Dagster shows of the partitions of these files."""
    if not file_ids:
        return {}
    # An instance that has never heard of the asset answers None.
    return instance.get_status_by_partition(asset, file_ids, files_partitions(export)) or {}


def report_materialized(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    partitions: Sequence[str],
    *,
    made_by: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """``report_runless_asset_event`` for many partitions, as one batch: it takes one event, in a transaction of its own.
    ``names``: of the files, where they are at hand."""
    batch = uuid.uuid4().hex
    for position, partition in enumerate(partitions, start=1):
        file = {FILE: names[partition]} if names else {}
        materialization = dg.AssetMaterialization(asset, partition=partition, metadata={"made_by": made_by, **file})
        event = dg.DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            event_specific_data=StepMaterializationData(materialization),
            job_name=RUNLESS_JOB_NAME,
        )
        instance.report_dagster_event(
            event, RUNLESS_RUN_ID, batch_metadata=DagsterEventBatchMetadata(batch, is_end=position == len(partitions))
        )
