"""The real service, for whoever has a key: ``INDEXPORT_LIVE_TURBOPUFFER=1`` with the variables the sink itself reads.

It makes namespaces of its own and deletes them again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import turbopuffer as sdk

from pipeline.sinks.base import SearchRequest
from pipeline.sinks.turbopuffer import TurbopufferSettings
from pipeline_tests.conformance.harness import Bench, matrix, provisioned_bench, unit_vectors
from pipeline_tests.conformance.test_search import FILTERS, METADATA, expected_files
from pipeline_tests.conformance.turbopuffer_harness import TurbopufferUnderTest

SWITCH = "INDEXPORT_LIVE_TURBOPUFFER"

pytestmark = pytest.mark.skipif(
    os.environ.get(SWITCH) != "1", reason=f"needs the real service: set {SWITCH}=1, TURBOPUFFER_API_KEY and TURBOPUFFER_REGION"
)


@pytest.fixture
def live() -> Iterator[TurbopufferUnderTest]:
    settings = TurbopufferSettings(namespace_prefix=f"indexport-test-{uuid.uuid4().hex[:8]}")
    under_test = TurbopufferUnderTest(settings, secrets=(os.environ["TURBOPUFFER_API_KEY"],))
    yield under_test
    client = sdk.Turbopuffer()
    for name in under_test.namespaces:
        if client.namespace(name).exists():
            client.namespace(name).delete_all()


@pytest.fixture
async def bench(live: TurbopufferUnderTest) -> AsyncIterator[Bench]:
    async with provisioned_bench(live) as made:
        yield made


async def test_files_are_written_replaced_and_deleted(bench: Bench) -> None:
    files = [bench.file("dfl-1", 9), bench.file("dfl-2", 3, metadata={"year": 2024, "tags": ["a"]})]
    await bench.replace(*files)
    await bench.open().provision()
    await bench.assert_holds(*files)
    shorter = bench.file("dfl-1", 2, version="v2")
    await bench.replace(shorter, bench.file("dfl-2", 0))
    await bench.assert_holds(shorter)
    await bench.delete("dfl-1", "dfl-never-there")
    await bench.assert_holds()


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n}", ["sluice", "weir"], metadata=metadata) for n, metadata in enumerate(METADATA)]
    await bench.replace(*files)
    query = matrix(files[0].table)[1]
    similarity = np.vstack([matrix(file.table) for file in files]) @ query
    hits = await bench.search(SearchRequest(bench.config, vector=query, k=10))
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(similarity)[::-1], atol=1e-3)
    for mode in ("text", "hybrid"):
        hits = await bench.search(SearchRequest(bench.config, mode=mode, vector=query, text="sluice", k=5))
        assert hits[0].record.content == "sluice" or mode == "hybrid"
        assert len(hits) == 5
    for filters in FILTERS:
        found = await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=50, filters=filters))
        assert {hit.record.parsed_directory_file_id for hit in found} == expected_files(files, filters), filters
