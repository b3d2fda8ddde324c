"""What PostgreSQL's vector index finds of what an exact search finds."""

from __future__ import annotations

import numpy as np

from pipeline.embedding.base import ModelIdentity
from pipeline.sinks import pgvector_sql as statements
from pipeline.sinks.base import SearchRequest
from pipeline.sinks.pgvector import PgVectorSettings
from pipeline_tests.conformance.harness import matrix, unit_vectors
from pipeline_tests.sinks.pgvector.bench import Database, PgVectorBench

MODEL = ModelIdentity("recall", "recall/1", 384)
CHUNKS, QUERIES, K = 2_000, 50, 10


async def test_the_index_finds_what_an_exact_search_finds(database: Database) -> None:
    """Of vectors in no clusters, which are the hardest: with 100 candidates 95 % of these, and 86 % of 100,000 in clusters."""
    database.configure("enable_sort = off")  # so few vectors the planner would rather sort
    bench = await PgVectorBench(database, model=MODEL).provisioned()
    file = bench.file("dfl-1", CHUNKS)
    await bench.replace(file)
    await bench.exporter.optimize()
    assert f"Index Scan using {bench.vector_index.name} " in _plan(database, bench)
    vectors, found = matrix(file.table), 0
    for query in unit_vectors("queries", QUERIES, MODEL.dimension):
        nearest = set(np.argsort(-(vectors @ query))[:K].tolist())
        hits = await bench.search(SearchRequest(bench.config, vector=query, k=K))
        found += len(nearest & {hit.record.chunk_index for hit in hits})
    assert found / (QUERIES * K) >= 0.98
    await bench.close()


def _plan(database: Database, bench: PgVectorBench) -> str:
    where = statements.scope(bench.tenant, bench.config)
    vector = str(unit_vectors("query", 1, MODEL.dimension)[0].tolist())
    query = statements.nearest(bench.exporter.layout, where, vector, candidates=K, k=K)
    return database.plan(statements.begin_search(PgVectorSettings().ef_search), query, where)
