"""The real service, for whoever has a key: ``INDEXPORT_LIVE_TURBOPUFFER=1`` with the variables the sink itself reads.

It makes namespaces of its own and deletes them again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import turbopuffer as sdk

from pipeline.sinks.base import SearchRequest
from pipeline.sinks.turbopuffer import TurbopufferSettings
from pipeline_tests.conformance.harness import Bench, matrix, provisioned_bench
from pipeline_tests.conformance.services import (
    assert_files_are_written_replaced_and_deleted,
    assert_vector_searches_mean_what_they_mean_elsewhere,
    searched_files,
)
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
    await assert_files_are_written_replaced_and_deleted(bench, *files)


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = searched_files(bench)
    await bench.replace(*files)
    await assert_vector_searches_mean_what_they_mean_elsewhere(bench, files)
    query = matrix(files[0].table)[1]
    for mode in ("text", "hybrid"):
        hits = await bench.search(SearchRequest(bench.config, mode=mode, vector=query, text="sluice", k=5))
        assert hits[0].record.content == "sluice" or mode == "hybrid"
        assert len(hits) == 5
