"""What an approximate index finds of what an exact search finds, on the engines that have one here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import numpy.typing as npt
from lancedb.index import IvfRq

from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import Bench, matrix, vector_column
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest

MODEL = ModelIdentity("recall", "recall/1", 64)
FILES, CHUNKS, QUERIES, K = 10, 1000, 100, 10


@dataclasses.dataclass(frozen=True)
class Clusters:
    """How alike vectors are."""

    count: int
    spread: float
    """Length of a vector's distance from its cluster's centre, whose length is 1."""


MANY = Clusters(400, 0.5)
ALIKE = Clusters(20, 0.2)
"""Each has fifty times as many vectors as are asked for: an index that cannot tell them apart loses most."""

Vectors = npt.NDArray[np.float32]


def clustered_vectors(count: int, seed: int, clusters: Clusters = MANY) -> Vectors:
    """Unit vectors around the same centres whatever the seed, as texts on the same subjects have."""
    centres = _unit(np.random.default_rng(0).standard_normal((clusters.count, MODEL.dimension)))
    generator = np.random.default_rng(seed)
    noise = _unit(generator.standard_normal((count, MODEL.dimension)))
    return _unit(centres[generator.integers(clusters.count, size=count)] + clusters.spread * noise).astype(np.float32)


def _unit(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    normed: npt.NDArray[np.floating[Any]] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normed


def files_of(bench: Bench, clusters: Clusters) -> list[FileRecords]:
    return [with_vectors(bench.file(f"dfl-{n}", CHUNKS), clustered_vectors(CHUNKS, n + 1, clusters)) for n in range(FILES)]


def with_vectors(file: FileRecords, vectors: Vectors) -> FileRecords:
    index = file.table.schema.get_field_index("embedding")
    return dataclasses.replace(file, table=file.table.set_column(index, file.table.schema.field(index), vector_column(vectors)))


async def recall(bench: Bench, files: list[FileRecords], clusters: Clusters, k: int = K) -> float:
    """Share of the k nearest of each query that a search finds."""
    vectors = np.vstack([matrix(file.table) for file in files])
    found = 0
    for query in clustered_vectors(QUERIES, 0, clusters):
        nearest = {(files[i // CHUNKS].file_id, i % CHUNKS) for i in np.argsort(-(vectors @ query))[:k].tolist()}
        hits = await bench.search(SearchRequest(bench.config, vector=query, k=k))
        found += len(nearest & {(hit.record.parsed_directory_file_id, hit.record.chunk_index) for hit in hits})
    return found / (QUERIES * k)


async def test_lancedb_finds_by_its_index_what_an_exact_search_finds(tmp_path: Path) -> None:
    settings = LanceDBSettings(uri=str(tmp_path), index_threshold_rows=FILES * CHUNKS)
    exporter = LanceDBExporter(settings, SinkContext("prj-1", MODEL))
    bench = Bench(LanceDBUnderTest(str(tmp_path)), model=MODEL, tenant="prj-1", opened=[exporter])
    await exporter.provision()
    files = files_of(bench, ALIKE)
    await bench.replace(*files)
    await exporter.optimize()
    table = await (await lancedb.connect_async(str(tmp_path))).open_table(exporter.table_name)
    assert "vector" in {column for index in await table.list_indices() for column in index.columns}
    for k in (1, K, 10 * K):
        assert await recall(bench, files, ALIKE, k) >= 0.98, k
    await exporter.close()


async def test_lancedb_looks_into_further_partitions_where_the_nearest_hold_too_few_that_match(tmp_path: Path) -> None:
    exporter = LanceDBExporter(LanceDBSettings(uri=str(tmp_path)), SinkContext("prj-1", MODEL))
    bench = Bench(LanceDBUnderTest(str(tmp_path)), model=MODEL, tenant="prj-1", opened=[exporter])
    await exporter.provision()
    small = [with_vectors(bench.file("dfl-small", 2 * K, config=c), clustered_vectors(2 * K, seed=99)) for c in ("a", "b")]
    large = [with_vectors(bench.file("dfl-large", 3 * CHUNKS, config="a"), clustered_vectors(3 * CHUNKS, seed=1))]
    await bench.replace(*small, *large)
    table = await (await lancedb.connect_async(str(tmp_path))).open_table(exporter.table_name)
    await table.create_index("vector", config=IvfRq(distance_type="cosine", num_partitions=60))
    vectors = matrix(small[0].table)
    for query in clustered_vectors(20, seed=0):
        nearest = np.argsort(-(vectors @ query))[:K].tolist()
        for config, filters in (("a", {"parsed_directory_file_id": "dfl-small"}), ("b", {})):
            hits = await bench.search(SearchRequest(config, vector=query, k=K, filters=filters))
            assert [hit.record.chunk_index for hit in hits] == nearest
            np.testing.assert_allclose([hit.score for hit in hits], (vectors @ query)[nearest], atol=1e-3)
    await exporter.close()
