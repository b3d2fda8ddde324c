"""The PostgreSQL sink beside a bare binary ``COPY`` of the same rows into the same table with the same indexes.

``python -m benchmarks.sink pgvector`` runs it on a server of its own, or on the one ``INDEXPORT_PGVECTOR_DSN`` names; there
it drops the tables it made.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pyarrow as pa
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.types.json import Jsonb

from benchmarks import comparison
from pipeline.sinks import pgvector_rows as codec
from pipeline.sinks.pgvector import PgVectorExporter, PgVectorSettings
from pipeline.sinks.pgvector_table import names, written_columns
from pipeline_tests.postgres import fresh_database, postgres

DSN = "INDEXPORT_PGVECTOR_DSN"


@contextmanager
def server() -> Iterator[None]:
    """The server that is configured, or one for the time being."""
    if os.environ.get(DSN):
        yield
        return
    with postgres() as uri:
        os.environ[DSN] = fresh_database(uri)
        try:
            yield
        finally:
            del os.environ[DSN]


class Comparison(comparison.Comparison[PgVectorExporter]):
    """Both ways of writing the same batches."""

    client = "bare binary COPY"

    async def exporter(self, prefix: str) -> PgVectorExporter:
        made = PgVectorExporter(PgVectorSettings(table_prefix=prefix), self.context)
        await made.provision()
        return made

    def encoded(self) -> list[list[codec.Row]]:
        """Rows as COPY takes them, with jsonb as what it is."""
        columns = written_columns(self.context.model.dimension)
        is_json = [column.type.as_string(None) == "jsonb" for column in columns]
        batches = [codec.encode(pa.concat_tables([file.table for file in files])) for files in self.batches]
        return [
            [tuple(Jsonb(value, str) if json else value for value, json in zip(row, is_json, strict=True)) for row in rows]
            for rows in batches
        ]

    def copy_all(self, exporter: PgVectorExporter, batches: Sequence[Sequence[codec.Row]]) -> None:
        columns = written_columns(self.context.model.dimension)
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(exporter.layout.identifier, names(columns))
        types = ["jsonb" if column.type.as_string(None) == "jsonb" else column.staged for column in columns]
        with psycopg.connect(os.environ[DSN]) as connection:
            register_vector(connection)
            for rows in batches:
                with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
                    copy.set_types(types)
                    for row in rows:
                        copy.write_row(row)

    def by_client(self) -> Callable[[PgVectorExporter], Awaitable[None]]:
        encoded = self.encoded()
        return lambda exporter: self._copy(exporter, encoded)

    async def _copy(self, exporter: PgVectorExporter, encoded: Sequence[Sequence[codec.Row]]) -> None:
        self.copy_all(exporter, encoded)

    async def drop(self, exporter: PgVectorExporter) -> None:
        await exporter.close()
        with psycopg.connect(os.environ[DSN]) as connection:
            connection.execute(sql.SQL("DROP TABLE {}").format(exporter.layout.identifier))
