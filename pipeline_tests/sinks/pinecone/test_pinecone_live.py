"""The real service, for whoever has a key: ``INDEXPORT_LIVE_PINECONE_API_KEY``.

It makes indexes of its own and deletes them again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from pinecone import Pinecone

from pipeline.sinks.base import SearchRequest
from pipeline.sinks.pinecone import PineconeSettings
from pipeline_tests.conformance.harness import Bench, matrix, provisioned_bench, unit_vectors
from pipeline_tests.conformance.pinecone_harness import PineconeUnderTest
from pipeline_tests.conformance.test_search import FILTERS, METADATA, expected_files

KEY = "INDEXPORT_LIVE_PINECONE_API_KEY"

pytestmark = pytest.mark.skipif(not os.environ.get(KEY), reason=f"needs the real service: set {KEY}")


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeUnderTest]:
    key = os.environ[KEY]
    monkeypatch.setenv("PINECONE_API_KEY", key)
    under_test = PineconeUnderTest(PineconeSettings(index_prefix=f"ixp-test-{uuid.uuid4().hex[:8]}"), secrets=(key,))
    yield under_test
    client = Pinecone(api_key=key)
    for name in under_test.indexes:
        if client.has_index(name):
            client.delete_index(name)


@pytest.fixture
async def bench(live: PineconeUnderTest) -> AsyncIterator[Bench]:
    async with provisioned_bench(live) as made:
        yield made


async def test_files_are_written_replaced_and_deleted(bench: Bench) -> None:
    files = [bench.file("dfl-1", 9), bench.file("dfl-ünï#%", 3, metadata={"year": 2024, "tags": ["a"]})]
    await bench.replace(*files)
    await bench.open().provision()
    await bench.assert_holds(*files)
    shorter = bench.file("dfl-1", 2, version="v2")
    await bench.replace(shorter, bench.file("dfl-ünï#%", 0))
    await bench.assert_holds(shorter)
    await bench.delete("dfl-1", "dfl-never-there")
    await bench.assert_holds()


async def test_the_largest_records_we_send_are_held(bench: Bench) -> None:
    file = bench.file("dfl-1", ["first", "x" * 38_000, '"' * 9_000, "é" * 19_000])
    assert (await bench.replace(file)).refused == ()
    await bench.assert_holds(file)


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n}", ["sluice", "weir"], metadata=metadata) for n, metadata in enumerate(METADATA)]
    await bench.replace(*files)
    query = matrix(files[0].table)[1]
    similarity = np.vstack([matrix(file.table) for file in files]) @ query
    hits = await bench.search(SearchRequest(bench.config, vector=query, k=10))
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(similarity)[::-1], atol=1e-3)
    for filters in FILTERS:
        found = await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=50, filters=filters))
        assert {hit.record.parsed_directory_file_id for hit in found} == expected_files(files, filters), filters
