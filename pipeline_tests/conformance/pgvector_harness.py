"""PostgreSQL with pgvector: a database of its own on the server of this test process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.pgvector import PgVectorExporter, PgVectorSettings
from pipeline.sinks.pgvector_table import column_name
from pipeline_tests.postgres import fresh_database, postgres

_DSN, _NO_SERVER = "CONFORMANCE_PGVECTOR_DSN", "CONFORMANCE_PGVECTOR_NO_SERVER"
_PASSWORD = "correct-horse"
_LARGEST_INTEGER: Final = 2**31 - 1
"""Of a column of that type."""


@dataclass
class PgVectorUnderTest:
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = (_PASSWORD,)
    holds_types: bool = True
    always_there: Sequence[str] = ("content", "pending")

    def make_exporter(self, context: SinkContext) -> Exporter:
        return PgVectorExporter(PgVectorSettings(dsn_env=_DSN), context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return PgVectorExporter(PgVectorSettings(dsn_env=_NO_SERVER), context)

    async def settle(self, exporter: Exporter) -> None:
        """A committed transaction is visible to every reader."""

    def alter(self, file_id: str, chunk_index: int, field: str, value: object) -> None:
        """A number larger than the column holds becomes the largest it does."""
        value = min(value, _LARGEST_INTEGER) if isinstance(value, int) else value
        column = sql.Identifier(column_name(field))
        self._update(file_id, chunk_index, sql.SQL("{} = {}").format(column, sql.Literal(value)))

    def alter_copy(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        change = sql.SQL("metadata_ = metadata_ || {}").format(sql.Literal(Jsonb({name: value})))
        if value is None:
            change = sql.SQL("metadata_ = metadata_ - {}").format(sql.Literal(name))
        self._update(file_id, chunk_index, change)

    def _update(self, file_id: str, chunk_index: int, change: sql.Composed) -> None:
        """In the table of whichever model holds the file."""
        changed = 0
        with psycopg.connect(os.environ[_DSN], autocommit=True) as connection:
            for (table,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
                update = sql.SQL("UPDATE {} SET {} WHERE parsed_directory_file_id = %s AND chunk_index = %s")
                query = update.format(sql.Identifier(table), change)
                changed += connection.execute(query, [file_id, chunk_index]).rowcount
        assert changed == 1


@contextmanager
def pgvector(directory: Path) -> Iterator[PgVectorUnderTest]:
    with postgres() as uri:
        os.environ[_DSN] = fresh_database(uri)
        os.environ[_NO_SERVER] = f"postgresql://user:{_PASSWORD}@/database?host={directory}"
        try:
            yield PgVectorUnderTest()
        finally:
            del os.environ[_DSN], os.environ[_NO_SERVER]
