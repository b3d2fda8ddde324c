"""A server for the session, a database and a provisioned table for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from pipeline_tests.postgres import fresh_database, postgres
from pipeline_tests.sinks.pgvector.bench import DSN, Database, PgVectorBench


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with postgres() as uri:
        yield uri


@pytest.fixture
def database(postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Empty; the sink finds it in the environment."""
    uri = fresh_database(postgres_server)
    monkeypatch.setenv(DSN, uri)
    return Database(uri)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[PgVectorBench]:
    """A provisioned table in ``database``."""
    made = await PgVectorBench(database).provisioned()
    yield made
    await made.close()
