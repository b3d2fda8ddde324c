"""What holds at a store's real service as at its emulator, for the tests of those who have one."""

from __future__ import annotations

import numpy as np

from pipeline.sinks.base import SearchRequest
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import Bench, matrix, unit_vectors
from pipeline_tests.conformance.test_search import FILTERS, METADATA, expected_files


async def assert_files_are_written_replaced_and_deleted(bench: Bench, longer: FileRecords, emptied: FileRecords) -> None:
    """``longer`` has more than two chunks, ``emptied`` at least one."""
    await bench.replace(longer, emptied)
    await bench.open().provision()
    await bench.assert_holds(longer, emptied)
    shorter = bench.file(longer.file_id, 2, version="v2")
    await bench.replace(shorter, bench.file(emptied.file_id, 0))
    await bench.assert_holds(shorter)
    await bench.delete(longer.file_id, "dfl-never-there")
    await bench.assert_holds()


def searched_files(bench: Bench) -> list[FileRecords]:
    """Five files of the chunks "sluice" and "weir", each with other metadata to filter on."""
    return [bench.file(f"dfl-{n}", ["sluice", "weir"], metadata=metadata) for n, metadata in enumerate(METADATA)]


async def assert_vector_searches_mean_what_they_mean_elsewhere(bench: Bench, files: list[FileRecords]) -> None:
    """``files`` are ``searched_files``, written before."""
    query = matrix(files[0].table)[1]
    similarity = np.vstack([matrix(file.table) for file in files]) @ query
    hits = await bench.search(SearchRequest(bench.config, vector=query, k=10))
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(similarity)[::-1], atol=1e-3)
    for filters in FILTERS:
        found = await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=50, filters=filters))
        assert {hit.record.parsed_directory_file_id for hit in found} == expected_files(files, filters), filters
