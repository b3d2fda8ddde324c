"""What another process writes to Dagster's SQLite storage at the worst moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa


@contextmanager
def inserts_first(index: Path, table: str, rows: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Just before each of this process's first INSERTs into a table of the event index, one of these rows is there. Fails when
    this process inserts less often."""
    left = list(rows)

    def insert(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(f"INSERT INTO {table} ") and left:
            row = left.pop(0)
            columns, places = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
            with closing(sqlite3.connect(index)) as other:
                other.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", tuple(row.values()))  # noqa: S608 - the tests' own names
                other.commit()

    sa.event.listen(sa.Engine, "before_cursor_execute", insert)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", insert)
    assert left == []
