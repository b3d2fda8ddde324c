"""The real service, for whoever has one: ``INDEXPORT_LIVE_AZURE_SEARCH_ENDPOINT`` and ``AZURE_SEARCH_API_KEY`` (an admin key).

It makes indexes of its own and deletes them again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from azure.core.credentials import AzureKeyCredential
from azure.search.documents.indexes import SearchIndexClient

from pipeline.sinks.azure_ai_search import AzureAISearchSettings
from pipeline.sinks.base import SearchRequest
from pipeline_tests.conformance.azure_ai_search_harness import AzureAISearchUnderTest
from pipeline_tests.conformance.harness import Bench, matrix, provisioned_bench, unit_vectors
from pipeline_tests.conformance.test_search import FILTERS, METADATA, expected_files

SWITCH = "INDEXPORT_LIVE_AZURE_SEARCH_ENDPOINT"
ENDPOINT = os.environ.get(SWITCH)

pytestmark = pytest.mark.skipif(
    not ENDPOINT, reason=f"needs the real service: set {SWITCH} to its address, and AZURE_SEARCH_API_KEY to an admin key"
)


@pytest.fixture
def live() -> Iterator[AzureAISearchUnderTest]:
    settings = AzureAISearchSettings(endpoint=ENDPOINT, index_prefix=f"indexport-test-{uuid.uuid4().hex[:8]}")
    under_test = AzureAISearchUnderTest(settings, secrets=(os.environ["AZURE_SEARCH_API_KEY"],))
    yield under_test
    with SearchIndexClient(str(ENDPOINT), AzureKeyCredential(os.environ["AZURE_SEARCH_API_KEY"])) as client:
        for name in under_test.indexes & set(client.list_index_names()):
            client.delete_index(name)


@pytest.fixture
async def bench(live: AzureAISearchUnderTest) -> AsyncIterator[Bench]:
    async with provisioned_bench(live) as made:
        yield made


async def test_files_are_written_replaced_and_deleted(bench: Bench) -> None:
    files = [bench.file("dfl-1", 9), bench.file("dfl-2", 3, metadata={"year": 2024, "tags": ["a"]})]
    await bench.replace(*files)
    await bench.open().provision()
    await bench.assert_holds(*files)
    assert await bench.exporter.list_scopes() == frozenset({(bench.tenant, bench.config)})
    shorter = bench.file("dfl-1", 2, version="v2")
    await bench.replace(shorter, bench.file("dfl-2", 0))
    await bench.assert_holds(shorter)
    await bench.delete("dfl-1", "dfl-never-there")
    await bench.assert_holds()


async def test_more_than_a_page_is_written_listed_and_fetched(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n:04}", 1) for n in range(1100)] + [bench.file("dfl-large", 1100)]
    await bench.replace(*files)
    await bench.assert_holds(*files)


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n}", ["sluice", "weir"], metadata=metadata) for n, metadata in enumerate(METADATA)]
    await bench.replace(*files)
    query = matrix(files[0].table)[1]
    similarity = np.vstack([matrix(file.table) for file in files]) @ query
    hits = await bench.search(SearchRequest(bench.config, vector=query, k=10))
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(similarity)[::-1], atol=1e-3)
    hits = await bench.search(SearchRequest(bench.config, mode="text", text="sluice", k=5))
    assert [hit.record.content for hit in hits] == ["sluice"] * 5
    assert len(await bench.search(SearchRequest(bench.config, mode="hybrid", vector=query, text="sluice", k=5))) == 5
    for filters in FILTERS:
        found = await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=50, filters=filters))
        assert {hit.record.parsed_directory_file_id for hit in found} == expected_files(files, filters), filters
