"""SQL both databases of the ledger understand: write transactions, bulk upserts, and lists of values cut to what a statement
takes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

_IN_LIMIT = 900
"""Values in one IN list: SQLite's default limit is 999 variables a statement."""


@contextmanager
def writing(engine: sa.Engine, turn: str) -> Iterator[sa.Connection]:
    """A write transaction. Those with the same ``turn`` on one PostgreSQL take turns, as all of SQLite's do: looks and runs lock
    the same rows in orders of their own, and would wait for each other in a circle."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            key = int.from_bytes(hashlib.sha256(f"indexport {turn}".encode()).digest()[:8], signed=True)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows or, where their primary key is taken, set their other columns, which may differ from row to row."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        alike.setdefault(tuple(row), []).append(row)
    for columns, same in alike.items():
        changed = {name: statement.excluded[name] for name in columns if name not in keys}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), same)


def insert_columns(
    connection: sa.Connection, table: sa.Table, fixed: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]
) -> None:
    """Insert many rows of few columns: ``fixed`` values in every row, ``columns`` of equal length beside them."""
    if connection.dialect.name != "postgresql":
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if rows:
            connection.execute(sa.insert(table).values(fixed), rows)
        return
    # Arrays make one statement of any number of rows, a quarter of the price of a VALUES list.
    unnested = [
        sa.func.unnest(sa.bindparam(None, list(values), type_=postgresql.ARRAY(table.c[name].type)))
        for name, values in columns.items()
    ]
    given = [sa.literal(value, table.c[name].type) for name, value in fixed.items()]
    connection.execute(sa.insert(table).from_select([*fixed, *columns], sa.select(*given, *unnested)))


def delete_of_files(connection: sa.Connection, table: sa.Table, export: str, file_ids: Sequence[str]) -> None:
    """Delete the rows of these files of an export."""
    for batch in batches(file_ids):
        connection.execute(sa.delete(table).where(table.c.export == export, table.c.file_id.in_(batch)))


def rows_of(
    connection: sa.Connection, query: sa.Select[Any], column: sa.ColumnElement[Any], values: Sequence[Any] | None
) -> Iterator[Sequence[Any]]:
    """What the query finds where the column has one of these values, or whichever (``None``)."""
    for part in [query] if values is None else [query.where(column.in_(batch)) for batch in batches(values)]:
        yield from connection.execute(part)


def by_sink(rows: Iterable[Sequence[Any]]) -> dict[str, dict[str, str]]:
    """``{sink: {file id: record_set_hash}}`` of rows of these three."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for sink, file_id, digest in rows:
        found[sink][file_id] = digest
    return dict(found)


def batches(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """``values`` in parts that fit an IN list."""
    for start in range(0, len(values), _IN_LIMIT):
        yield values[start : start + _IN_LIMIT]
