"""Deleting what Dagster was told outside of any run and nothing shows any more: no deletion of runs takes it along."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial

import dagster as dg
import sqlalchemy as sa
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, AssetEventTagsTable, SqlEventLogStorageTable
from sqlalchemy import ColumnElement, Connection

_TOLD = (dg.DagsterEventType.ASSET_MATERIALIZATION.value, dg.DagsterEventType.ASSET_OBSERVATION.value)
_AT_ONCE = 200
"""Evaluations of checks in one statement, kilobytes each."""


def delete_runless_events(storage: SqlEventLogStorage, assets: Iterable[dg.AssetKey], *, before: datetime) -> None:
    """Delete the events of these assets that are older than that, but for the newest of each partition and of each check. Can be
    broken off anywhere and called again."""
    moment = before.astimezone(UTC).replace(tzinfo=None)
    for asset in assets:
        key = asset.to_string()
        with storage.index_connection() as connection:
            evaluations = _old_evaluations(connection, key, moment)
        parts = [evaluations[start : start + _AT_ONCE] for start in range(0, len(evaluations), _AT_ONCE)]
        # SQLite has every event twice, under ids of its own; elsewhere the second pass finds nothing.
        for connect in (partial(storage.run_connection, RUNLESS_RUN_ID), storage.index_connection):
            with connect() as connection:
                for old in _old_of_partitions(key, moment):
                    ids = sa.select(SqlEventLogStorageTable.c.id).where(old)
                    connection.execute(AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id.in_(ids)))
                    connection.execute(SqlEventLogStorageTable.delete().where(old))
                for part in parts:
                    _delete_evaluations(connection, [text for _, text in part])
        with storage.index_connection() as connection:  # last: they are what the events are found by
            for part in parts:
                these = [number for number, _ in part]
                connection.execute(AssetCheckExecutionsTable.delete().where(AssetCheckExecutionsTable.c.id.in_(these)))


def _old_of_partitions(asset: str, moment: datetime) -> list[ColumnElement[bool]]:
    """The old materializations and observations with a newer one: of the same partition, and without any. Two conditions, for
    which Dagster has an index each."""
    c, newer = SqlEventLogStorageTable.c, SqlEventLogStorageTable.alias("newer")
    old = (c.run_id == RUNLESS_RUN_ID, c.asset_key == asset, c.dagster_event_type.in_(_TOLD), c.timestamp < moment)
    same = (newer.c.asset_key == asset, newer.c.dagster_event_type == c.dagster_event_type, newer.c.id > c.id)
    return [
        sa.and_(*old, c.partition.is_not(None), sa.exists().where(*same, newer.c.partition == c.partition)),
        sa.and_(*old, c.partition.is_(None), sa.exists().where(*same, newer.c.partition.is_(None))),
    ]


def _old_evaluations(connection: Connection, asset: str, moment: datetime) -> list[tuple[int, str]]:
    """The old evaluations of checks with a newer one, and their events as stored, which do not name their asset otherwise."""
    c = AssetCheckExecutionsTable.c
    evaluated = (c.asset_key == asset, c.execution_status != AssetCheckExecutionRecordStatus.PLANNED.value)
    newest = sa.select(sa.func.max(c.id)).where(*evaluated).group_by(c.check_name, c.partition)
    old = (c.run_id == RUNLESS_RUN_ID, c.evaluation_event_timestamp < moment, c.id.not_in(newest))
    return [
        (row.id, row.evaluation_event) for row in connection.execute(sa.select(c.id, c.evaluation_event).where(*evaluated, *old))
    ]


def _delete_evaluations(connection: Connection, texts: list[str]) -> None:
    c = SqlEventLogStorageTable.c
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION.value
    these = SqlEventLogStorageTable.delete().where(c.run_id == RUNLESS_RUN_ID, c.dagster_event_type == kind, c.event.in_(texts))
    connection.execute(these)
