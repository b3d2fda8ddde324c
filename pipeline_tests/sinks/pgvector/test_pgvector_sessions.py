"""Sessions that a database or a role begins with settings of its own."""

from __future__ import annotations

import asyncio
import time
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pipeline.sinks import pgvector_sql as statements
from pipeline_tests.sinks.pgvector.bench import DSN, Database, PgVectorBench


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_delete_takes_what_was_written_while_it_waited_whatever_the_database_isolates(
    database: Database, level: LiteralString
) -> None:
    database.configure(f"default_transaction_isolation = '{level}'")
    bench = await PgVectorBench(database).provisioned()
    keys = statements.lock_keys(bench.exporter.layout, [(bench.tenant, bench.config, "dfl-1")])
    with psycopg.connect(database.uri) as holder:
        holder.execute(statements.LOCK_FILES, [keys])
        writing = asyncio.create_task(bench.replace(bench.file("dfl-1")))
        await asyncio.to_thread(wait_for_waiters, database, 1)
        deleting = asyncio.create_task(bench.delete("dfl-1"))
        await asyncio.to_thread(wait_for_waiters, database, 2)
    await asyncio.gather(writing, deleting)
    await bench.assert_holds()
    await bench.close()


def wait_for_waiters(database: Database, count: int) -> None:
    """Until so many wait for a lock; whoever comes first gets it first."""
    deadline = time.monotonic() + 10
    while database.query("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(count,)]:
        assert time.monotonic() < deadline, "nobody waits"


async def test_a_write_takes_as_long_as_it_does_whatever_the_limit(limited: Database, bench: PgVectorBench) -> None:
    limited.query("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END'")
    limited.query("CREATE TRIGGER slow BEFORE INSERT ON {table} EXECUTE FUNCTION slow()", table=bench.table)
    report = await bench.replace(bench.file("dfl-1", 3))
    assert report.records_written == 3


async def test_an_index_takes_as_long_as_it_does_whatever_the_limit(limited: Database, bench: PgVectorBench) -> None:
    limited.query("DROP INDEX {index}", index=sql.Identifier(bench.vector_index.name))
    with psycopg.connect(limited.uri) as writer:
        writer.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(bench.table))
        building = asyncio.create_task(bench.exporter.provision())
        await asyncio.to_thread(wait_for_waiters, limited, 1)
        await asyncio.to_thread(writer.execute, "SELECT pg_sleep(0.6)")
    await building


@pytest.fixture
def limited(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The sink's sessions, and no others, have a limit of half a second a statement."""
    monkeypatch.setenv(DSN, make_conninfo(database.uri, options="-c statement_timeout=500ms"))
    return database
