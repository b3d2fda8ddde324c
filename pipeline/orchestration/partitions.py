"""Partitions and the tags that say what a run carries.

A run carries one key or one contiguous range of dynamic keys. Ranges are resolved against the store's order when a step
executes, so keys are reordered or deleted only while nothing that carries a range is unfinished.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import DynamicPartitionsTable
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX

from pipeline.orchestration.collisions import again_when_refused

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
PARTITION = "dagster/partition"
EXPORT_TAG = "indexport/export"
FILES_TAG = "indexport/files"
LANE_TAG = "indexport/lane"
# What only we read, under the prefix of tags that Dagster's UI hides, with the one slash that Dagster allows in a tag; read with
# `told_by`.
_HIDDEN = f"{HIDDEN_TAG_PREFIX}indexport."
WAVE_TAG = f"{_HIDDEN}wave"
PROCESS_TAG = f"{_HIDDEN}process"
LAUNCHER_TAG = f"{_HIDDEN}launcher"
HEARD_TAG = f"{_HIDDEN}heard_of"
NOTED_TAG = f"{_HIDDEN}noted"

JOBS = ("ingest", "removal", "verification", "repair", "approve_removals", "release")
"""What the jobs of an export are called, after its own name."""

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

_AT_ONCE = 20_000
"""Keys in one statement: a plain SQLite takes 32,766 variables."""


def told_by(run: dg.DagsterRun, tag: str) -> str | None:
    """What a run says under a hidden tag."""
    return next((run.tags[spelling] for spelling in spellings(tag) if spelling in run.tags), None)


def spellings(tag: str) -> tuple[str, ...]:
    """A hidden tag as it is written, and as versions of 2026-11-28 and before wrote it, whose runs may be unfinished."""
    former = f"indexport/{tag.removeprefix(_HIDDEN)}"
    return tag, f"{HIDDEN_TAG_PREFIX}{former}", former


def files_partitions(export: str) -> dg.DynamicPartitionsDefinition:
    """One partition a file of the export; the key is the parsed file's directory-file id."""
    return dg.DynamicPartitionsDefinition(name=_name(export))


def _name(export: str) -> str:
    return f"{export}_files"


def contiguous_ranges(order: Sequence[str], wanted: Iterable[str], size: int) -> Iterator[list[str]]:
    """Runs of neighbouring keys of ``order`` that are all wanted, at most ``size`` keys each."""
    wanted = set(wanted)
    keys: list[str] = []
    for key in order:
        if key in wanted and len(keys) < size:
            keys.append(key)
            continue
        if keys:
            yield keys
        keys = [key] if key in wanted else []
    if keys:
        yield keys


def unfinished_runs(instance: dg.DagsterInstance, export: str) -> list[dg.DagsterRun]:
    """Runs of this export that may still do something."""
    return list(instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags={EXPORT_TAG: export})))


def is_of_export(run: dg.DagsterRun, export: str) -> bool:
    """Sensor and command line tag their runs; those that people launch are of the export's jobs or name its assets."""
    told = run.tags.get(EXPORT_TAG) == export or run.job_name in {f"{export}_{job}" for job in JOBS}
    return told or _names_assets_of(run.asset_selection, export)


def is_quiet(instance: dg.DagsterInstance, export: str) -> bool:
    """Nothing unfinished carries partitions of this export and no backfill of it is active: its keys may be reordered or
    deleted now. What names neither export nor assets might be anybody's: it counts where it carries a key of this export."""
    if any(_run_carries(instance, run, export) for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))):
        return False
    active = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
    return not any(_backfill_carries(instance, backfill, export) for backfill in instance.get_backfills(filters=active))


def _run_carries(instance: dg.DagsterInstance, run: dg.DagsterRun, export: str) -> bool:
    carried = [run.tags[tag] for tag in (PARTITION, RANGE_START) if tag in run.tags]
    if not carried or run.tags.get(EXPORT_TAG, export) != export:
        return False
    if is_of_export(run, export):
        return True
    name = _name(export)
    return run.asset_selection is None and any(instance.has_dynamic_partition(name, key) for key in carried)


def _backfill_carries(instance: dg.DagsterInstance, backfill: PartitionBackfill, export: str) -> bool:
    if backfill.asset_selection is not None:
        return _names_assets_of(backfill.asset_selection, export)
    keys = backfill.partition_names
    return keys is None or not set(keys).isdisjoint(key_order(instance, export))


def _names_assets_of(assets: Iterable[dg.AssetKey] | None, export: str) -> bool:
    return any(key.path[0] == export for key in assets or ())


def add_keys(instance: dg.DagsterInstance, export: str, keys: Sequence[str]) -> None:
    """Append keys in bulk, in order; known ones stay where they are."""
    name = _name(export)
    for start in range(0, len(keys), _AT_ONCE):
        again_when_refused(partial(instance.add_dynamic_partitions, name, list(keys[start : start + _AT_ONCE])))


def delete_keys(instance: dg.DagsterInstance, export: str, keys: Iterable[str]) -> None:
    """Remove keys; only in a quiet moment. Dagster's own method is a transaction a key: thousands of them outlast a look, and
    the one after it would hand out ranges of keys that the first still moves."""
    name = _name(export)
    storage = instance.event_log_storage
    keys = list(keys)
    if not isinstance(storage, SqlEventLogStorage):
        for key in keys:
            instance.delete_dynamic_partition(name, key)
        return
    c = DynamicPartitionsTable.c
    for start in range(0, len(keys), _AT_ONCE):
        these = c.partition.in_(keys[start : start + _AT_ONCE])
        with storage.index_connection() as connection:
            connection.execute(DynamicPartitionsTable.delete().where(c.partitions_def_name == name, these))


def key_order(instance: dg.DagsterInstance, export: str) -> list[str]:
    """Every key, in the order ranges are resolved in."""
    return list(instance.get_dynamic_partitions(_name(export)))
