"""Rows that another program has altered to what this sink never writes and only PostgreSQL can hold."""

from __future__ import annotations

from typing import LiteralString

import pytest
from psycopg import sql

from pipeline.sinks.base import SearchMode, SearchRequest
from pipeline.sinks.generations import is_altered
from pipeline.stages.findings import compare_file
from pipeline_tests.conformance.harness import matrix
from pipeline_tests.sinks.pgvector.bench import Database, PgVectorBench


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("attachments", value) for value in ("'5'", "'\"x\"'", "'[5, null]'", "'{}'", "'[{\"source_id\": 5}]'")),
        *(("source_modified_at", value) for value in ("'infinity'", "'-infinity'", "'0044-01-01 BC'", "'10000-01-01'")),
        ("embedding", "NULL"),
    ],
)
async def test_a_value_that_no_record_can_have_is_named_and_costs_no_other_file_anything(
    bench: PgVectorBench, database: Database, column: str, value: LiteralString
) -> None:
    timed, untimed, other = bench.file("dfl-1", 1), bench.file("dfl-2", 2), bench.file("dfl-3")
    await bench.replace(timed, untimed, other)
    database.query(
        "UPDATE {table} SET {column} = {value} WHERE parsed_directory_file_id < 'dfl-3'",
        table=bench.table,
        column=sql.Identifier(column),
        value=sql.SQL(value),
    )
    held, snapshots = await bench.held(), await bench.snapshots()
    for file in (timed, untimed):
        assert compare_file("pgvector", file.file_id, file.table, held[file.file_id])
        assert is_altered(snapshots[file.file_id]) == (column == "source_modified_at")
    assert held["dfl-3"].equals(other.table)
    modes: tuple[SearchMode, ...] = ("vector", "text", "hybrid")
    for mode in modes:
        hits = await bench.search(SearchRequest(bench.config, mode, text="river gauge", vector=matrix(other.table)[0], k=50))
        assert len(hits) == (3 if (column, mode) == ("embedding", "vector") else 6)
    await bench.replace(timed, untimed)
    await bench.assert_holds(timed, untimed, other)


@pytest.mark.parametrize("deleted", [[], ["dfl-1"]])
async def test_records_that_name_no_file_leave_with_the_next_delete_of_their_config(
    bench: PgVectorBench, database: Database, deleted: list[str]
) -> None:
    kept, elsewhere = bench.file("dfl-3"), bench.file("dfl-1", config=f"{bench.config}-b")
    await bench.replace(bench.file("dfl-2"), kept, elsewhere)
    change: LiteralString = "UPDATE {table} SET parsed_directory_file_id = NULL WHERE parsed_directory_file_id = 'dfl-2'"
    database.query(change, table=bench.table)
    await bench.delete(*deleted)
    await bench.assert_holds(kept)
    await bench.assert_holds(elsewhere, config=f"{bench.config}-b")
