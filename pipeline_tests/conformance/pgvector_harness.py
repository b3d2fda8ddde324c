"""PostgreSQL with pgvector: a database of its own on the server of this test process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.pgvector import PgVectorExporter, PgVectorSettings
from pipeline_tests.postgres import fresh_database, postgres

_DSN, _NO_SERVER = "CONFORMANCE_PGVECTOR_DSN", "CONFORMANCE_PGVECTOR_NO_SERVER"
_PASSWORD = "correct-horse"


@dataclass
class PgVectorUnderTest:
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = (_PASSWORD,)

    def make_exporter(self, context: SinkContext) -> Exporter:
        return PgVectorExporter(PgVectorSettings(dsn_env=_DSN), context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return PgVectorExporter(PgVectorSettings(dsn_env=_NO_SERVER), context)

    async def settle(self, exporter: Exporter) -> None:
        """A committed transaction is visible to every reader."""


@contextmanager
def pgvector(directory: Path) -> Iterator[PgVectorUnderTest]:
    with postgres() as uri:
        os.environ[_DSN] = fresh_database(uri)
        os.environ[_NO_SERVER] = f"postgresql://user:{_PASSWORD}@/database?host={directory}"
        try:
            yield PgVectorUnderTest()
        finally:
            del os.environ[_DSN], os.environ[_NO_SERVER]
