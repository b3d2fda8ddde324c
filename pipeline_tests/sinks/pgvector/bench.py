"""What the PostgreSQL sink's tests share: an exporter on a database of its own, and a plain connection beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, LiteralString, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.pgvector import PgVectorExporter, PgVectorSettings
from pipeline.sinks.pgvector_sql import Where
from pipeline.sinks.pgvector_table import Index
from pipeline_tests.conformance.harness import Bench

DSN = "INDEXPORT_PGVECTOR_DSN"


@dataclass
class Database:
    """A SinkUnderTest for ``Bench`` whose exporters have these settings."""

    uri: str
    settings: dict[str, Any] = field(default_factory=dict)
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: tuple[str, ...] = ()

    def make_exporter(self, context: SinkContext) -> Exporter:
        return PgVectorExporter(PgVectorSettings(**self.settings), context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        raise AssertionError("the conformance suite's harness has one")

    async def settle(self, exporter: Exporter) -> None:
        """A committed transaction is visible to every reader."""

    def query(self, statement: LiteralString, *parameters: Any, **names: sql.Composable) -> list[tuple[Any, ...]]:
        """Rows a superuser gets, outside the sink; none for a statement without a result. ``{name}`` stands for SQL."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement).format(**names), parameters)
            return cursor.fetchall() if cursor.description else []

    def configure(self, setting: LiteralString) -> None:
        """A setting of every session that starts from now on."""
        name = sql.Identifier(str(conninfo_to_dict(self.uri)["dbname"]))
        self.query("ALTER DATABASE {name} SET {setting}", name=name, setting=sql.SQL(setting))

    def plan(self, setup: Any, query: sql.Composed, where: Where) -> str:
        """How PostgreSQL would run the query after ``setup``."""
        with psycopg.connect(self.uri) as connection:
            connection.execute(setup)
            rows = connection.execute(sql.SQL("EXPLAIN ") + query, where.parameters).fetchall()
        return "\n".join(row[0] for row in rows)


class PgVectorBench(Bench):
    """A Bench that knows which exporter it has."""

    @property
    def exporter(self) -> PgVectorExporter:
        found = self.opened[0]
        assert isinstance(found, PgVectorExporter)
        return found

    @property
    def table(self) -> sql.Identifier:
        return self.exporter.layout.identifier

    @property
    def vector_index(self) -> Index:
        found = self.exporter.layout.vector_index
        assert found is not None
        return found

    async def provisioned(self) -> Self:
        await self.open().provision()
        return self

    async def close(self) -> None:
        for exporter in self.opened:
            await exporter.close()
