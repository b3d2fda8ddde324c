"""Dagster's event storage without the questions it asks again and again of its own schema.

The stock classes ask the database a hundred times a run whether a table or a column is there. What is in the schema stays in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

from dagster._core.storage.event_log import SqlEventLogStorage
from sqlalchemy import Connection


class RememberedSchema(SqlEventLogStorage):
    """Either of Dagster's event storages; what was missing is looked up again."""

    def has_table(self, table_name: str) -> bool:
        ask = partial(super().has_table, table_name)  # type: ignore[safe-super] # the stock class this is mixed into has one
        return self._is_there(ask, "table", table_name)

    def has_asset_key_col(self, column_name: str) -> bool:
        return self._is_there(partial(super().has_asset_key_col, column_name), "column", column_name)

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        ask = partial(super()._has_asset_key_col_on_connection, conn, column_name)
        return self._is_there(ask, "column", column_name)

    def _is_there(self, ask: Callable[[], bool], kind: str, name: str) -> bool:
        if (kind, name) not in self._there and ask():
            self._there.add((kind, name))
        return (kind, name) in self._there

    @cached_property
    def _there(self) -> set[tuple[str, str]]:
        return set()
