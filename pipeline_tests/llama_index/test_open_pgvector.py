"""PostgreSQL through LlamaIndex's own store: what the vector index is asked for there is what the sink's own search asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from pipeline_tests.llama_index.bench import REASON, NamedVectors

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core import VectorStoreIndex
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from pipeline.sinks.base import SearchRequest
from pipeline.sinks.open_index import open_index
from pipeline_tests.conformance.harness import MODEL, unit_vectors
from pipeline_tests.postgres import fresh_database, postgres
from pipeline_tests.sinks.pgvector.bench import DSN, Database, PgVectorBench

TENANT, CONFIG = "prj-1", "cfg-1"
FILES, CHUNKS = 30, 100
"""Enough for the planner to prefer the vector index."""


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with postgres() as server, pytest.MonkeyPatch.context() as patch:
        found = Database(fresh_database(server))
        patch.setenv(DSN, found.uri)
        asyncio.run(fill(found))
        yield found


async def fill(database: Database) -> None:
    """Files of three languages. The planner, whose statistics are old, thinks that a third of the rows has ``de``: two have."""
    bench = await PgVectorBench(database, tenant=TENANT, config=CONFIG).provisioned()
    database.query("ALTER TABLE {table} SET (autovacuum_enabled = off)", table=bench.table)
    languages = ("de", "en", "fr")
    await bench.replace(*(bench.file(f"dfl-{n}", CHUNKS, metadata={"language": languages[n % 3]}) for n in range(FILES)))
    await bench.exporter.optimize()
    others = [bench.file(f"dfl-{n}", CHUNKS, metadata={"language": "it"}) for n in range(0, FILES, 3)]
    await bench.replace(*others, bench.file("dfl-rare", 2, metadata={"language": "de"}))
    await bench.close()


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[PgVectorBench]:
    opened = PgVectorBench(database, tenant=TENANT, config=CONFIG)
    opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def index(bench: PgVectorBench) -> Iterator[VectorStoreIndex]:
    opened = open_index(bench.exporter, export_config_id=bench.config, embedder=NamedVectors())
    yield opened
    opened.vector_store.close()


async def assert_finds_as_the_sink(bench: PgVectorBench, index: VectorStoreIndex, k: int, language: str | None = None) -> None:
    """And in the order of the scores."""
    filters = MetadataFilters(filters=[MetadataFilter(key="language", value=language)]) if language else None
    found = await index.as_retriever(similarity_top_k=k, filters=filters).aretrieve("anything")
    vector = unit_vectors("anything", 1, MODEL.dimension)[0]
    hits = await bench.search(SearchRequest(bench.config, vector=vector, k=k, filters={"language": language} if language else {}))
    assert [item.node.node_id for item in found] == [hit.record.id for hit in hits]
    assert [item.score for item in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert len(found) == (2 if language == "de" else k)


@pytest.mark.parametrize(("k", "language"), [(10, None), (90, None), (300, None), (10, "en"), (90, "en"), (10, "de")])
async def test_the_vector_index_is_searched_as_the_sink_searches_it(
    bench: PgVectorBench, index: VectorStoreIndex, k: int, language: str | None
) -> None:
    await assert_finds_as_the_sink(bench, index, k, language)


async def test_an_index_that_gives_up_is_no_lost_result(
    bench: PgVectorBench, index: VectorStoreIndex, database: Database
) -> None:
    database.configure("hnsw.max_scan_tuples = 1")
    await assert_finds_as_the_sink(bench, index, 10, "de")
    database.configure("hnsw.max_scan_tuples = DEFAULT")


async def test_a_connection_the_server_has_ended_is_replaced(
    bench: PgVectorBench, index: VectorStoreIndex, database: Database
) -> None:
    await assert_finds_as_the_sink(bench, index, 1)
    ended = database.query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert ended
    await assert_finds_as_the_sink(bench, index, 1)


async def test_nothing_is_prepared_that_a_connection_pooler_would_lose(index: VectorStoreIndex) -> None:
    for _ in range(10):
        index.as_retriever(similarity_top_k=1).retrieve("anything")
    with index.vector_store.client.client.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar() == 0
