"""The real service, for whoever has one: ``INDEXPORT_LIVE_AZURE_SEARCH_ENDPOINT`` and ``AZURE_SEARCH_API_KEY`` (an admin key).

It makes indexes of its own and deletes them again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from azure.core.credentials import AzureKeyCredential
from azure.search.documents.indexes import SearchIndexClient

from pipeline.sinks.azure_ai_search import AzureAISearchSettings
from pipeline.sinks.base import SearchRequest
from pipeline_tests.conformance.azure_ai_search_harness import AzureAISearchUnderTest
from pipeline_tests.conformance.harness import Bench, matrix, provisioned_bench
from pipeline_tests.conformance.services import (
    assert_files_are_written_replaced_and_deleted,
    assert_vector_searches_mean_what_they_mean_elsewhere,
    searched_files,
)

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
    assert await bench.exporter.list_scopes() == frozenset({(bench.tenant, bench.config)})
    await assert_files_are_written_replaced_and_deleted(bench, *files)


async def test_more_than_a_page_is_written_listed_and_fetched(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n:04}", 1) for n in range(1100)] + [bench.file("dfl-large", 1100)]
    await bench.replace(*files)
    await bench.assert_holds(*files)


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = searched_files(bench)
    await bench.replace(*files)
    await assert_vector_searches_mean_what_they_mean_elsewhere(bench, files)
    query = matrix(files[0].table)[1]
    hits = await bench.search(SearchRequest(bench.config, mode="text", text="sluice", k=5))
    assert [hit.record.content for hit in hits] == ["sluice"] * 5
    assert len(await bench.search(SearchRequest(bench.config, mode="hybrid", vector=query, text="sluice", k=5))) == 5
