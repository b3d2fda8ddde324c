"""The real service, for whoever has a key: ``INDEXPORT_LIVE_PINECONE_API_KEY``.

It makes indexes of its own and deletes them again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from pinecone import Pinecone

from pipeline.sinks.pinecone import PineconeSettings
from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.pinecone_harness import PineconeUnderTest
from pipeline_tests.conformance.services import (
    assert_files_are_written_replaced_and_deleted,
    assert_vector_searches_mean_what_they_mean_elsewhere,
    searched_files,
)

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
    await assert_files_are_written_replaced_and_deleted(bench, *files)


async def test_the_largest_records_we_send_are_held(bench: Bench) -> None:
    file = bench.file("dfl-1", ["first", "x" * 38_000, '"' * 9_000, "é" * 19_000])
    assert (await bench.replace(file)).refused == ()
    await bench.assert_holds(file)


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = searched_files(bench)
    await bench.replace(*files)
    await assert_vector_searches_mean_what_they_mean_elsewhere(bench, files)
