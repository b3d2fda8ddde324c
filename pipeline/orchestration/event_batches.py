"""What both storage classes share: which events of a batch may be written together.

A run that carries many files plans and materializes one partition a file and asset. Dagster hands these events to the
storage in batches (``DAGSTER_EVENT_BATCH_SIZE``) and the stock storages still write most of them one by one, which costs
more than the work on small files. These subclasses write the same rows in one statement: nothing Dagster shows changes.
They use Dagster's internals, which is why it is pinned below 1.14.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, StepMaterializationData
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from sqlalchemy import Connection

FILE = "file"
"""Under which the metadata of a materialization names the file of its partition."""

_PLANNED = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value
_TOGETHER = frozenset({dg.DagsterEventType.ASSET_MATERIALIZATION.value, _PLANNED, dg.DagsterEventType.ASSET_OBSERVATION.value})


def split(events: Sequence[dg.EventLogEntry]) -> tuple[list[dg.EventLogEntry], list[dg.EventLogEntry]]:
    """(events to write together, events to write one by one), each in order."""
    together = [event for event in events if _kind(event) in _TOGETHER]
    return together, [event for event in events if _kind(event) not in _TOGETHER]


def event_rows(storage: SqlEventLogStorage, events: Sequence[dg.EventLogEntry]) -> list[dict[str, Any]]:
    """``storage._event_to_row`` of every event. Serializing takes most of its time, and the events of one asset in one run
    differ in nothing but partition, file and time: one of them is serialized, and what differs is exchanged in its text."""
    rows: list[dict[str, Any]] = []
    shared: list[Any] | None = None
    pieces: list[str] | None = None
    for event in events:
        mine, partition, own = _shared_and_own(event)
        if pieces is None or mine != shared:
            rows.append(storage._event_to_row(event))
            shared, pieces = mine, _pieces(rows[-1]["event"], own) if partition else None
            continue
        text = "".join(chain.from_iterable(zip(pieces, [*own, ""], strict=True)))
        at = datetime.fromtimestamp(event.timestamp, UTC).replace(tzinfo=None)
        rows.append({**rows[-1], "event": text, "timestamp": at, "partition": partition or None})
    return rows


def _shared_and_own(event: dg.EventLogEntry) -> tuple[list[Any] | None, str | None, list[str]]:
    """All of an event but its partition, file and time, comparable; its partition; and how these stand in its JSON, in their
    order there. Nothing for events of other kinds."""
    happened = event.get_dagster_event()
    data = happened.event_specific_data
    shared = [_but(event, "timestamp", "dagster_event"), _but(happened, "event_specific_data")]
    if isinstance(data, AssetMaterializationPlannedData):
        return [*shared, _but(data, "partition")], data.partition, _own(event, data.partition)
    if isinstance(data, StepMaterializationData):
        made = data.materialization
        file = made.metadata.get(FILE)
        named = [f'"text": {json.dumps(file.text)}}}, "label": "{FILE}"'] if isinstance(file, dg.TextMetadataValue) else []
        others = {name: value for name, value in made.metadata.items() if not (named and name == FILE)}
        mine = [*shared, _but(data, "materialization"), _but(made, "partition", "metadata"), others, len(named)]
        return mine, made.partition, [*named, *_own(event, made.partition)]
    return None, None, []


def _own(event: dg.EventLogEntry, partition: str | None) -> list[str]:
    return [f'"partition": {json.dumps(partition)}', f'"timestamp": {event.timestamp!r}']


def _but(value: Any, *names: str) -> list[Any]:
    """The fields of a named tuple without these."""
    return [field for name, field in zip(value._fields, value, strict=True) if name not in names]


def _pieces(text: str, own: Sequence[str]) -> list[str] | None:
    """What stands around an event's own in its JSON; ``None`` unless each is there once, in this order. Quotes in names and
    metadata are escaped, so that they cannot look like any of it."""
    pieces = []
    for each in own:
        before, *rest = text.split(each)
        if len(rest) != 1:
            return None
        pieces.append(before)
        text = rest[0]
    return [*pieces, text]


def insert_events(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Insert rows of the event table in one statement, compiled once a process; their ids, in order."""
    ids = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
    return list(connection.execute(ids, rows).scalars())


def that_may_have_tags(events: Sequence[dg.EventLogEntry], ids: Sequence[int]) -> tuple[list[dg.EventLogEntry], list[int]]:
    """Events with their ids but for the planned ones, which never have tags."""
    kept = [(event, event_id) for event, event_id in zip(events, ids, strict=True) if _kind(event) != _PLANNED]
    return [event for event, _ in kept], [event_id for _, event_id in kept]


def last_of_each_asset(
    events: Sequence[dg.EventLogEntry], rows: Sequence[Mapping[str, Any]], ids: Sequence[int]
) -> list[tuple[dg.EventLogEntry, int]]:
    """The event that decides an asset's own row: its last one, with its id."""
    last = {row["asset_key"]: (event, event_id) for event, row, event_id in zip(events, rows, ids, strict=True)}
    return list(last.values())


def _kind(event: dg.EventLogEntry) -> str:
    """The event's type as it is stored: asking for it as an enum takes longer than all else that is asked here."""
    return event.get_dagster_event().event_type_value
