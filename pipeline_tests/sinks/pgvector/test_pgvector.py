"""The PostgreSQL sink: its table, its indexes, its transactions. What every sink promises is the conformance suite's."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, LiteralString

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from pipeline.errors import ConfigError, RecordRefused, SinkUnavailable
from pipeline.sinks import pgvector, pgvector_rows, pgvector_store
from pipeline.sinks import pgvector_sql as statements
from pipeline.sinks.base import SearchRequest
from pipeline.sinks.copies import ALTERED
from pipeline.sinks.pgvector_store import Connection, PostgresStore
from pipeline.sinks.records import CHUNK_FIELDS, build_file_records
from pipeline_tests.conformance.harness import Bench, matrix, unit_vectors
from pipeline_tests.sinks.pgvector.bench import DSN, Database, PgVectorBench


async def test_a_record_lies_where_llama_index_looks_for_it(bench: PgVectorBench, database: Database) -> None:
    file = bench.file("dfl-1", 2, metadata={"year": 2024, "note": None})
    await bench.replace(file)
    assert bench.exporter.layout.shown_name.startswith("public.data_indexport_conformance-")
    query: LiteralString = "SELECT id, node_id, text, metadata_, embedding::text FROM {table} ORDER BY id"
    rows = database.query(query, table=bench.table)
    assert [row[1] for row in rows] == file.table["id"].to_pylist()
    for index, (_, node_id, text, metadata, embedding) in enumerate(rows):
        assert text == file.table["content"][index].as_py()
        assert metadata["year"] == 2024
        assert metadata["doc_id"] == metadata["document_id"] == metadata["ref_doc_id"] == f"{bench.config}:dfl-1"
        node = json.loads(metadata["_node_content"])
        assert (node["id_"], node["text"], metadata["_node_type"]) == (node_id, "", "TextNode")
        assert np.array_equal(np.array(json.loads(embedding), np.float32), matrix(file.table)[index])


async def test_nodes_others_add_are_left_alone_and_never_read(bench: PgVectorBench, database: Database) -> None:
    vector = "[" + ",".join(["0.25"] * 16) + "]"
    insert: LiteralString = "INSERT INTO {table} (text, metadata_, node_id, embedding) VALUES ('theirs', '{{}}', 'theirs', %s)"
    database.query(insert, vector, table=bench.table)
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.assert_holds(file)
    hits = await bench.search(SearchRequest(bench.config, vector=np.full(16, 0.25, np.float32)))
    assert {hit.record.parsed_directory_file_id for hit in hits} == {"dfl-1"}
    await bench.delete("dfl-1")
    assert database.query("SELECT node_id FROM {table}", table=bench.table) == [("theirs",)]


@pytest.mark.parametrize(
    ("texts", "metadata"),
    [
        (["a\0b"], {}),
        (["fine"], {"note": "a\0b"}),
        (["fine"], {"k\0": 1}),
        (["fine"], {"tags": ["\0"]}),
        (["fine"], {"mixed": [1, None, "\0"]}),
        (["fine"], {"nested": {"a": [{"k\0": 1}]}}),
    ],
)
async def test_a_nul_character_is_refused_by_name(bench: PgVectorBench, texts: list[str], metadata: dict[str, Any]) -> None:
    good = bench.file("dfl-good")
    report = await bench.replace(bench.file("dfl-bad", texts, metadata=metadata), good)
    (refused,) = report.refused
    assert refused.file_id == "dfl-bad"
    assert "U+0000" in refused.reason
    await bench.assert_holds(good)


@given(st.text(st.sampled_from("a\0\\u0"), max_size=12))
def test_exactly_the_nul_character_is_refused(text: str) -> None:
    file = Bench.file(PgVectorBench(Database("")), "dfl-1", [text], metadata={})
    refused = False
    try:
        pgvector_rows.check_texts(file)
    except RecordRefused:
        refused = True
    assert refused == ("\0" in text)


async def test_a_text_only_the_server_can_judge_is_refused_alone(bench: PgVectorBench) -> None:
    too_many_words = " ".join(f"word{number:07}" for number in range(90_000))
    old, good = bench.file("dfl-bad"), bench.file("dfl-good")
    await bench.replace(old)
    report = await bench.replace(bench.file("dfl-bad", [too_many_words], version="v2"), good)
    (refused,) = report.refused
    assert refused.file_id == "dfl-bad"
    assert "tsvector" in refused.reason
    assert report.records_written == 3
    await bench.assert_holds(old, good)


async def test_writers_that_share_files_never_deadlock(bench: PgVectorBench, database: Database) -> None:
    exporters = [bench.exporter, *(bench.open() for _ in range(3))]

    async def write(number: int) -> None:
        for round_ in range(3):
            order = range(12) if (number + round_) % 2 else reversed(range(12))
            files = [bench.file(f"dfl-{n}", 1 + (n + number) % 4, version=f"v{number}.{round_}") for n in order]
            await exporters[number].replace_files(files)
            doomed = [f"dfl-{n}" for n in range(round_, 12, 4)]
            await exporters[number].delete_files(parsed_directory_file_ids=doomed, export_config_id=bench.config)

    await asyncio.gather(*(write(number) for number in range(len(exporters))))
    final = [bench.file(f"dfl-{n}", 2, version="final") for n in range(12)]
    await bench.replace(*final)
    await bench.assert_holds(*final)
    assert database.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


async def test_readers_see_one_version_of_a_file(bench: PgVectorBench) -> None:
    versions = [bench.file("dfl-1", 2 + 3 * n, version=f"v{n}") for n in range(4)]
    await bench.replace(versions[0])
    reader = bench.open()
    done = asyncio.Event()

    async def write() -> None:
        for turn in range(20):
            await bench.exporter.replace_files([versions[turn % 4]])
        done.set()

    writing = asyncio.create_task(write())
    seen = set()
    while not done.is_set():
        rows = (await bench.held(reader))["dfl-1"]
        (digest,) = rows["record_set_hash"].unique().to_pylist()
        assert rows.num_rows == rows["chunk_count"][0].as_py()
        seen.add(digest)
        hits = await reader.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=50))
        assert len({hit.record.record_set_hash for hit in hits}) == 1
        assert len(hits) == hits[0].record.chunk_count
    await writing
    assert seen <= {file.record_set_hash for file in versions}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("metadata_ - 'year' - '_node_content'", ["_node_content", "year"]),
        ('metadata_ || \'{"year": 2025, "draft": 1}\'', ["draft", "year"]),
        ("metadata_ || '{\"another\": null}'", ["another"]),
    ],
)
async def test_a_record_shows_that_what_filters_read_beside_it_is_altered(
    bench: PgVectorBench, database: Database, change: LiteralString, names: list[str]
) -> None:
    file, other = bench.file("dfl-1", 2, metadata={"year": 2024, "draft": True}), bench.file("dfl-2")
    await bench.replace(file, other)
    database.query(
        "UPDATE {table} SET metadata_ = {change} WHERE parsed_directory_file_id = 'dfl-1' AND chunk_index = 1",
        table=bench.table,
        change=sql.SQL(change),
    )
    held = await bench.held()
    altered = [f"metadata_.{name}" for name in names]
    assert json.loads(held["dfl-1"]["metadata"][1].as_py()) == {"year": 2024, "draft": True, ALTERED: altered}
    assert held["dfl-1"]["metadata"][0] == file.table["metadata"][0]
    assert held["dfl-2"].equals(other.table)
    await bench.replace(file)
    await bench.assert_holds(file, other)


@pytest.mark.parametrize("value", ["NULL", "'[]'", "'7'"])
async def test_a_record_shows_that_nothing_that_filters_read_is_left(
    bench: PgVectorBench, database: Database, value: LiteralString
) -> None:
    await bench.replace(bench.file("dfl-1", 1, metadata={}))
    database.query("UPDATE {table} SET metadata_ = {value}", table=bench.table, value=sql.SQL(value))
    (held,) = (await bench.held()).values()
    assert "metadata_._node_content" in json.loads(held["metadata"][0].as_py())[ALTERED]


async def test_a_time_before_the_first_year_of_the_servers_zone_is_held(bench: PgVectorBench, database: Database) -> None:
    database.configure("timezone = 'America/Los_Angeles'")
    made = bench.file("dfl-1", 1)
    file = build_file_records(
        replace(made.provenance, source_modified_at=datetime(1, 1, 1, 1, tzinfo=UTC)),
        made.table.select([field.name for field in CHUNK_FIELDS]),
        made.table["embedding"].combine_chunks(),
        bench.model,
    )
    await bench.replace(file)
    await bench.assert_holds(file, exporter=bench.open())


async def test_numbers_that_jsonb_spells_otherwise_are_not_altered(bench: PgVectorBench) -> None:
    values = [1e300, 1e-7, -0.0, 4.0, 2**53 + 1, 10**30, 0.1 + 0.2]
    file = bench.file("dfl-1", 1, metadata={f"n{n}": value for n, value in enumerate(values)})
    await bench.replace(file)
    await bench.assert_holds(file)


async def test_records_come_in_tables_of_bounded_size(bench: PgVectorBench, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [bench.file(f"dfl-{n}", 5) for n in range(10)]
    await bench.replace(*files)
    monkeypatch.setattr(pgvector, "_BYTES_PER_FETCH", 7 * (16 * 4 + 4096))
    monkeypatch.setattr(pgvector, "_BYTES_PER_ROUND_TRIP", 3 * (16 * 4 + 4096))
    tables = [table async for table in bench.exporter.fetch_records(export_config_id=bench.config)]
    assert [table.num_rows for table in tables] == [10] * 5
    await bench.assert_holds(*files)


async def test_a_fetch_can_be_left_half_way(bench: PgVectorBench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 5) for n in range(4)))
    monkeypatch.setattr(pgvector, "_BYTES_PER_FETCH", 1)
    fetched = bench.exporter.fetch_records(export_config_id=bench.config)
    assert (await anext(fetched)).num_rows == 5
    await fetched.aclose()  # type: ignore[attr-defined] # an async generator, typed as the iterator callers may rely on
    await bench.replace(bench.file("dfl-0", 0))


async def test_times_are_utc_whatever_the_servers_zone(bench: PgVectorBench, database: Database) -> None:
    database.configure("timezone = 'Asia/Kathmandu'")
    file = bench.file("dfl-1", 1)
    await bench.replace(file)
    other = bench.open()
    await bench.assert_holds(file, exporter=other)
    (snapshot,) = (await bench.snapshots(other)).values()
    assert snapshot.source_modified_at is not None
    assert str(snapshot.source_modified_at.tzinfo) == "UTC"


async def test_a_connection_the_server_has_ended_is_replaced(bench: PgVectorBench, database: Database) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    ended = database.query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'indexport'"
    )
    assert ended == [(True,)]
    await bench.assert_holds(file)


async def test_connections_the_server_has_ended_for_idleness_are_replaced(database: Database) -> None:
    database.configure("idle_session_timeout = '1s'")
    bench = await PgVectorBench(database).provisioned()
    await asyncio.gather(*(bench.snapshots() for _ in range(10)))
    wait_for_connections(database, at_most=0)
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.assert_holds(file)
    await bench.close()


@pytest.mark.parametrize("trouble", [psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure])
async def test_a_transaction_in_anothers_way_is_done_again_but_not_for_ever(
    bench: PgVectorBench, trouble: type[psycopg.Error], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_store, "_FIRST_WAIT", 0)
    attempts: list[int] = []

    async def fail_until(last: int, connection: Connection) -> int:
        attempts.append(len(attempts))
        if len(attempts) < last:
            raise trouble("in the way")
        return len(attempts)

    store = PostgresStore(DSN)
    assert await store.run("try", partial(fail_until, 3)) == 3
    attempts.clear()
    with pytest.raises(SinkUnavailable, match="cannot try: in the way"):
        await store.run("try", partial(fail_until, 100))
    assert len(attempts) == 6
    await store.close()


async def test_connections_are_reused_and_closed(bench: PgVectorBench, database: Database) -> None:
    await asyncio.gather(*(bench.snapshots() for _ in range(10)))
    kept = wait_for_connections(database, at_most=4)
    await bench.snapshots()
    assert wait_for_connections(database, at_most=4) == kept
    await bench.exporter.close()
    assert wait_for_connections(database, at_most=0) == set()


def wait_for_connections(database: Database, at_most: int) -> set[int]:
    """Process ids of the sink's connections once there are so few: a server notices with a delay that one is closed."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'indexport'"
    deadline = time.monotonic() + 10
    with psycopg.connect(database.uri, autocommit=True) as connection:
        while len(found := {pid for (pid,) in connection.execute(query)}) > at_most:
            assert time.monotonic() < deadline, "connections stay open"
    return found


async def test_a_missing_dsn_names_the_variable(bench: PgVectorBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DSN, " ")
    with pytest.raises(ConfigError, match=DSN):
        await bench.open().provision()


@pytest.mark.parametrize(
    "dsn", ["postgresql://user:hunter2@[broken", "user=x password=hunter2 nonsense", "mysql://u:hunter2@h/d"]
)
async def test_a_malformed_dsn_is_never_repeated(bench: PgVectorBench, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DSN, dsn)
    with pytest.raises(ConfigError, match=DSN) as caught:
        await bench.open().provision()
    assert "hunter2" not in f"{caught.value!r}{caught.value.__cause__!r}"


@pytest.mark.parametrize("password", ["pa@hunter2", "@hunter2", "pa@hunter2:1", "pa/hunter2", "hunter2/pa", "pa?x@hunter2"])
async def test_a_password_that_is_not_encoded_is_refused_and_not_taken_for_a_host(
    bench: PgVectorBench, password: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(DSN, f"postgresql://writer:{password}@127.0.0.1:9/db")
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match=rf"{DSN}.*percent-encode") as caught:
        await bench.open().provision()
    assert "hunter2" not in f"{caught.value!r}{caplog.text}"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://w:p%40ss@127.0.0.1:9/db",
        "postgres://w:p?s@127.0.0.1:9/db?options=a@b",
        "host=127.0.0.1 port=9 password=a@b@c",
    ],
)
async def test_a_password_that_is_encoded_or_stands_alone_is_no_riddle(
    bench: PgVectorBench, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DSN, dsn)
    with pytest.raises(SinkUnavailable, match="refused"):
        await bench.open().provision()


async def test_a_host_name_that_is_not_found_is_not_repeated(bench: PgVectorBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DSN, "postgresql://writer:hunter2/db")  # no host, hence a password where a port would be
    with pytest.raises(SinkUnavailable, match=r"reached: its host name cannot be resolved$"):
        await bench.open().provision()


async def test_a_sink_that_was_never_provisioned_says_so(database: Database) -> None:
    bench = PgVectorBench(database)
    exporter = bench.open()
    for attempt in (bench.snapshots, lambda: exporter.replace_files([bench.file("dfl-1")])):
        with pytest.raises(SinkUnavailable, match="provision the sink first"):
            await attempt()
    database.query("CREATE EXTENSION vector")
    with pytest.raises(SinkUnavailable, match="provision the sink first"):
        await bench.snapshots()
    await bench.close()


@given(st.lists(st.tuples(st.text(), st.text(), st.text())))
def test_locks_are_taken_in_one_order_and_once(addresses: list[tuple[str, str, str]]) -> None:
    bench = PgVectorBench(Database(""))
    bench.open()
    layout = bench.exporter.layout
    keys = statements.lock_keys(layout, addresses)
    assert keys == sorted(set(keys)) == statements.lock_keys(layout, [*addresses[::-1], *addresses])
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert len(keys) == len(set(addresses))
