"""What both storage classes share: which events of a batch may be written together.

A run that carries many files plans and materializes one partition a file and asset. Dagster hands these events to the
storage in batches (``DAGSTER_EVENT_BATCH_SIZE``) and the stock storages still write most of them one by one, which costs
more than the work on small files. These subclasses write the same rows in one statement: nothing Dagster shows changes.
They use Dagster's internals, which is why it is pinned below 1.14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dagster._core.events import DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from sqlalchemy import Connection

_TOGETHER = frozenset(
    {
        DagsterEventType.ASSET_MATERIALIZATION,
        DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        DagsterEventType.ASSET_OBSERVATION,
    }
)


def split(events: Sequence[EventLogEntry]) -> tuple[list[EventLogEntry], list[EventLogEntry]]:
    """(events to write together, events to write one by one), each in order."""
    together = [event for event in events if event.get_dagster_event().event_type in _TOGETHER]
    return together, [event for event in events if event.get_dagster_event().event_type not in _TOGETHER]


def insert_events(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Insert rows of the event table in one statement, compiled once a process; their ids, in order."""
    ids = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
    return list(connection.execute(ids, rows).scalars())


def last_of_each_asset(events: Sequence[EventLogEntry], ids: Sequence[int]) -> list[tuple[EventLogEntry, int]]:
    """The event that decides an asset's own row: its last one, with its id."""
    last = {event.get_dagster_event().asset_key: (event, event_id) for event, event_id in zip(events, ids, strict=True)}
    return list(last.values())
