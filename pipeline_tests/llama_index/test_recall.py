"""What LlamaIndex's own store finds by LanceDB's vector index of what an exact search finds: as much as the sink."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from lancedb.index import IvfRq

from pipeline_tests.llama_index.bench import REASON

pytest.importorskip("llama_index.core", reason=REASON)

from llama_index.core.vector_stores.types import VectorStoreQuery

from pipeline.sinks.base import SinkContext
from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings
from pipeline.sinks.llama_index_bridge import EventLoopThread
from pipeline.sinks.llama_index_natives import native_store
from pipeline.sinks.llama_index_reader import SinkVectorStore
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest
from pipeline_tests.sinks.test_recall import ALIKE, MODEL, Vectors, clustered_vectors, with_vectors

K, SMALL, LARGE, PARTITIONS = 10, 12, 6000, 60


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A large config and a small one in one table, in more partitions than a query looks into by itself."""
    exporter = LanceDBExporter(LanceDBSettings(uri=str(tmp_path)), SinkContext("prj-1", MODEL))
    made = Bench(LanceDBUnderTest(str(tmp_path)), model=MODEL, tenant="prj-1", opened=[exporter])
    await exporter.provision()
    await made.replace(
        *(with_vectors(made.file("dfl-1", n, config=f"{n}"), clustered_vectors(n, 1, ALIKE)) for n in (SMALL, LARGE))
    )
    table = await (await lancedb.connect_async(str(tmp_path))).open_table(exporter.table_name)
    await table.create_index("vector", config=IvfRq(distance_type="cosine", num_partitions=PARTITIONS))
    yield made
    await exporter.close()


def found(store: Any, query: Vectors, k: int) -> tuple[list[int], list[float]]:
    """Numbers of chunks, and their scores."""
    result = store.query(VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=k))
    return [node.metadata["chunk_index"] for node in result.nodes], result.similarities


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_lancedb_finds_as_much_through_llama_indexs_store(bench: Bench, size: int) -> None:
    reader = bench.open()
    store = SinkVectorStore(reader, f"{size}", EventLoopThread(), native_store(reader, f"{size}"))
    vectors, hits = clustered_vectors(size, 1, ALIKE), 0
    queries = clustered_vectors(20, 0, ALIKE)
    for query in queries:
        nearest = np.argsort(-(vectors @ query))[:K].tolist()
        held, scores = found(store, query, K)
        assert len(held) == K
        assert scores == pytest.approx((vectors @ query)[held].tolist(), abs=1e-5)
        hits += len(set(nearest) & set(held))
    assert hits >= 0.98 * K * len(queries)
    store.close()
