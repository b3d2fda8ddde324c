"""How the PostgreSQL sink searches: which index serves which query, and that none of them loses anything."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from pipeline.embedding.base import ModelIdentity
from pipeline.sinks import pgvector_sql as statements
from pipeline.sinks.base import SearchRequest
from pipeline.sinks.filters import parse_filters
from pipeline.sinks.pgvector_table import names, written_columns
from pipeline_tests.conformance.harness import FIELDS, matrix, unit_vectors
from pipeline_tests.sinks.pgvector.bench import Database, PgVectorBench

WIDE = ModelIdentity("wide", "wide/1", 2_001)


def nearest_to(bench: PgVectorBench, vector: Any, filters: Any = None) -> tuple[sql.Composed, statements.Where]:
    where = statements.filtered(statements.scope(bench.tenant, bench.config), parse_filters(filters or {}, FIELDS))
    query = "[" + ",".join(str(component) for component in vector) + "]"
    return statements.nearest(bench.exporter.layout, where, query, candidates=10, k=10), where


async def test_vector_search_uses_the_hnsw_index(bench: PgVectorBench, database: Database) -> None:
    await bench.replace(*(bench.file(f"dfl-{n:02}", 100) for n in range(30)))
    await bench.exporter.optimize()
    query, where = nearest_to(bench, unit_vectors("q", 1)[0])
    by_index = f"Index Scan using {bench.vector_index.name} "
    assert by_index in database.plan(statements.begin_search(100), query, where)
    assert by_index not in database.plan(statements.SEARCH_EXACTLY, query, where)


async def test_wide_vectors_are_indexed_by_half_floats_and_ranked_by_whole_ones(database: Database) -> None:
    bench = await PgVectorBench(database, model=WIDE).provisioned()
    files = [bench.file(f"dfl-{n}", 20) for n in range(3)]
    await bench.replace(*files)
    await bench.assert_holds(*files)
    vectors = np.vstack([matrix(file.table) for file in files])
    vector = unit_vectors("q", 1, WIDE.dimension)[0]
    similarity = np.sort(vectors @ vector)[::-1][:5]
    for length in (1, 1e-7, 1e7):
        hits = await bench.search(SearchRequest(bench.config, vector=vector * np.float32(length), k=5))
        np.testing.assert_allclose([hit.score for hit in hits], similarity, atol=1e-6)
    query, where = nearest_to(bench, vector)
    assert "halfvec" in bench.vector_index.definition.as_string(None)
    only_the_index = "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off"
    assert f"Index Scan using {bench.vector_index.name} " in database.plan(only_the_index, query, where)
    await bench.close()


async def test_vectors_too_wide_for_any_index_are_searched_exactly(database: Database) -> None:
    bench = await PgVectorBench(database, model=ModelIdentity("wider", "wider/1", 4_001)).provisioned()
    file = bench.file("dfl-1", 2)
    await bench.replace(file)
    await bench.assert_holds(file)
    (hit,) = await bench.search(SearchRequest(bench.config, vector=matrix(file.table)[1], k=1))
    assert hit.record.chunk_index == 1
    assert database.query("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%%hnsw%%'") == [(0,)]
    await bench.close()


async def test_a_filter_that_the_index_gives_up_on_still_finds_everything(bench: PgVectorBench, database: Database) -> None:
    """The planner's statistics are out of date: it takes the index for a filter that hardly any row fits."""
    database.query("ALTER TABLE {table} SET (autovacuum_enabled = off)", table=bench.table)
    database.configure("hnsw.max_scan_tuples = 1")
    await bench.replace(*(bench.file(f"dfl-{n:02}", 100, metadata={"language": "de"}) for n in range(20)))
    await bench.exporter.optimize()
    rare = bench.file("dfl-rare", 3, metadata={"language": "de"})
    await bench.replace(*(bench.file(f"dfl-{n:02}", 100, metadata={"language": "en"}) for n in range(20)), rare)
    fresh = bench.open()
    vector = -matrix(rare.table).mean(axis=0)
    query, where = nearest_to(bench, vector, filters={"language": "de"})
    assert bench.vector_index.name in database.plan(statements.begin_search(100), query, where)
    hits = await fresh.search(SearchRequest(bench.config, vector=vector, filters={"language": "de"}))
    assert [hit.record.parsed_directory_file_id for hit in hits] == ["dfl-rare"] * 3


async def test_ten_thousand_snapshots_come_from_an_index_alone(bench: PgVectorBench, database: Database) -> None:
    file = bench.file("dfl-1", 1)
    await bench.replace(file)
    kept = [column for column in written_columns(16) if column.name not in ("node_id", "parsed_directory_file_id", "embedding")]
    database.query(
        "INSERT INTO {table} (node_id, parsed_directory_file_id, {kept}) "
        "SELECT 'node-' || n, 'dfl-' || n, {kept} FROM {table}, generate_series(2, 10000) AS n",
        table=bench.table,
        kept=names(kept),
    )
    await bench.exporter.purge_history()
    await bench.exporter.optimize()
    assert len(await bench.snapshots()) == 10_000
    where = statements.scope(bench.tenant, bench.config)
    found = database.plan("SET LOCAL enable_seqscan = off", statements.snapshots(bench.exporter.layout, where), where)
    assert "Index Only Scan" in found
    assert "_snapshot" in found


@pytest.mark.parametrize(
    ("filters", "kind"), [({"year": {"gte": 2050}}, "btree"), ({"language": "de"}, "gin"), ({"tags": {"in": ["a", "b"]}}, "gin")]
)
async def test_a_filter_on_a_declared_field_has_an_index(
    bench: PgVectorBench, database: Database, filters: Any, kind: str
) -> None:
    where = statements.filtered(statements.Where([]), parse_filters(filters, FIELDS))
    query = statements.delete(bench.exporter.layout, where)
    (used,) = set(re.findall(r"\w+_field_\w+", database.plan("SET LOCAL enable_seqscan = off", query, where)))
    ((definition,),) = database.query("SELECT indexdef FROM pg_indexes WHERE indexname = %s", used)
    assert f"USING {kind} " in definition


async def test_a_filter_on_names_of_files_has_an_index(bench: PgVectorBench, database: Database) -> None:
    await bench.replace(*(bench.file(f"dfl-{n:02}", 10) for n in range(20)))
    await bench.exporter.optimize()
    query, where = nearest_to(bench, unit_vectors("q", 1)[0], filters={"file_name": {"in": ["dfl-01.pdf", "dfl-02.pdf"]}})
    assert "_file_name " in database.plan("SET LOCAL enable_seqscan = off", query, where)


async def test_names_that_no_index_has_room_for_are_held_and_filtered_on(bench: PgVectorBench) -> None:
    long = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9FA5, 3_000)))
    await bench.replace(*(bench.file(f"dfl-{n}", 1, name=name) for n, name in enumerate([f"{long}a", f"{long}b", "short.pdf"])))
    for operator, value, found in [
        ("eq", f"{long}b", {"dfl-1"}),
        ("in", [f"{long}a", "short.pdf"], {"dfl-0", "dfl-2"}),
        ("ne", f"{long}b", {"dfl-0", "dfl-2"}),
        ("nin", ["short.pdf"], {"dfl-0", "dfl-1"}),
        ("eq", long[:256], set()),
    ]:
        request = SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], filters={"file_name": {operator: value}})
        assert {hit.record.parsed_directory_file_id for hit in await bench.search(request)} == found


async def test_a_field_declared_later_can_be_filtered_on_at_once(database: Database) -> None:
    old = PgVectorBench(database, fields={})
    await old.provisioned()
    await old.replace(old.file("dfl-1", metadata={"year": 2024}), old.file("dfl-2", metadata={"year": "unknown"}))
    new = PgVectorBench(database, fields={"year": "integer"}, tenant=old.tenant, config=old.config)
    await new.provisioned()
    request = SearchRequest(old.config, vector=unit_vectors("q", 1)[0], filters={"year": {"gt": 2000}})
    assert {hit.record.parsed_directory_file_id for hit in await new.search(request)} == {"dfl-1"}
    await old.close()
    await new.close()


async def test_text_search_follows_the_configured_language(database: Database) -> None:
    database.settings = {"text_search_config": "english"}
    bench = await PgVectorBench(database).provisioned()
    await bench.replace(bench.file("dfl-1", ["the gates were closed", "a weir"]))
    hits = await bench.search(SearchRequest(bench.config, mode="text", text="closing a gate"))
    assert [hit.record.chunk_index for hit in hits] == [0]
    await bench.close()


@pytest.mark.parametrize("mode", ["text", "hybrid"])
async def test_a_text_longer_than_postgresql_takes_is_the_callers_mistake(
    bench: PgVectorBench, database: Database, mode: Any
) -> None:
    words = " ".join(f"word{n}" for n in range(5_000))
    database.configure("max_stack_depth = '100kB'")
    await bench.replace(bench.file("dfl-1", ["the gauge", words]))
    request = SearchRequest(bench.config, mode=mode, vector=unit_vectors("q", 1)[0], text="gauge " * 1_000)
    searching = bench.open()
    assert await searching.search(request)
    for text, reason in [("gauge " * 10_000, "at most 50,000 characters"), (words, "more words")]:
        with pytest.raises(ValueError, match=reason):
            await searching.search(replace(request, text=text))
