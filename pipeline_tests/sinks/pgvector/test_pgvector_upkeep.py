"""What the PostgreSQL sink does for its table between writes: the planner's statistics, and getting rid of deleted rows."""

from __future__ import annotations

import numpy as np
import psycopg
from psycopg import sql

from pipeline_tests.sinks.pgvector.bench import Database, PgVectorBench
from pipeline_tests.sinks.test_recall import with_vectors


async def test_statistics_wait_for_nobody_who_vacuums_the_table(database: Database, bench: PgVectorBench) -> None:
    """Nor does PostgreSQL end its own VACUUM for them, as it does for whoever waits for it."""
    with psycopg.connect(database.uri) as vacuum:
        vacuum.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(bench.table))
        database.configure("lock_timeout = '100ms'")
        await bench.exporter.optimize()


async def test_purging_leaves_no_vector_of_an_erased_file_in_the_index(database: Database, bench: PgVectorBench) -> None:
    """Left to itself, VACUUM does not look into the indexes while fewer than 2 % of the pages have a dead row."""
    vector = np.full((1, 16), 0.25, np.float32)  # of length 1 exactly: the index, which normalises, holds the same bytes
    await bench.replace(bench.file("dfl-kept", 500), with_vectors(bench.file("dfl-erased", 1), vector))
    await bench.delete("dfl-erased")
    assert _held_by_the_index(database, bench, vector.tobytes())
    await bench.exporter.purge_history()
    ((pages,),) = database.query("SELECT relpages FROM pg_class WHERE relname = %s", bench.exporter.layout.name)
    assert pages > 50
    assert not _held_by_the_index(database, bench, vector.tobytes())


def _held_by_the_index(database: Database, bench: PgVectorBench, vector: bytes) -> bool:
    """Whether the vector index's file has these bytes."""
    database.query("CHECKPOINT")
    ((found,),) = database.query(
        "SELECT position(%s::bytea IN pg_read_binary_file(pg_relation_filepath({name}::regclass))) > 0",
        vector,
        name=sql.Literal(bench.vector_index.name),
    )
    return bool(found)
