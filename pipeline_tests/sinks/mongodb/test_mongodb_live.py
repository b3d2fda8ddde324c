"""A real MongoDB, for whoever has one: ``INDEXPORT_LIVE_MONGODB_URI``, best of Atlas or Atlas Local.

It makes a database of its own and drops it again. Without search on that server, searching is not tested.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from pymongo import AsyncMongoClient

from pipeline.errors import SinkConflict
from pipeline.sinks.base import SearchHit, SearchRequest
from pipeline.sinks.mongodb import MongoDBSettings
from pipeline_tests.conformance.harness import Bench, matrix, provisioned_bench, unit_vectors
from pipeline_tests.conformance.mongodb_harness import MongoDBUnderTest
from pipeline_tests.conformance.services import assert_files_are_written_replaced_and_deleted, searched_files
from pipeline_tests.conformance.test_search import FILTERS, expected_files

SWITCH = "INDEXPORT_LIVE_MONGODB_URI"
PATIENCE = 120

pytestmark = pytest.mark.skipif(not os.environ.get(SWITCH), reason=f"needs a real server: set {SWITCH} to its address")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    settings = MongoDBSettings(uri_env=SWITCH, database=f"indexport-test-{uuid.uuid4().hex[:8]}")
    try:
        async with provisioned_bench(MongoDBUnderTest(settings)) as made:
            yield made
    finally:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(os.environ[SWITCH])
        async with client:
            await client.drop_database(settings.database)


async def eventually(attempt: Callable[[], Awaitable[list[SearchHit]]], *, hits: int) -> list[SearchHit]:
    """The answer, once the index has followed the collection."""
    deadline = time.monotonic() + PATIENCE
    while len(found := await attempt()) != hits:
        assert time.monotonic() < deadline, f"{len(found)} hits instead of {hits} after {PATIENCE} s"
        await asyncio.sleep(1)
    return found


@pytest.mark.parametrize("count", [9, 1_100])
async def test_files_are_written_replaced_and_deleted(bench: Bench, count: int) -> None:
    files = [bench.file("dfl-1", count), bench.file("dfl-2", 3, metadata={"year": 2024, "tags": ["a"], "odd.key": 1})]
    await assert_files_are_written_replaced_and_deleted(bench, *files)


async def test_overlapping_runs_end_in_one_version(bench: Bench) -> None:
    versions = [bench.file("dfl-1", 3 + n, version=f"v{n}") for n in range(3)]
    handles = [bench.exporter, bench.open(), bench.open()]
    await asyncio.gather(*(handle.replace_files([file]) for handle, file in zip(handles, versions, strict=True)))
    held = (await bench.held())["dfl-1"]
    assert {file.record_set_hash: file.table.num_rows for file in versions}[held["record_set_hash"][0].as_py()] == held.num_rows


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = searched_files(bench)
    await bench.replace(*files)
    query = matrix(files[0].table)[1]
    similarity = np.vstack([matrix(file.table) for file in files]) @ query
    try:
        await bench.search(SearchRequest(bench.config, vector=query))
    except SinkConflict as error:
        pytest.skip(str(error))
    hits = await eventually(lambda: bench.search(SearchRequest(bench.config, vector=query, k=10)), hits=10)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(similarity)[::-1], atol=1e-3)
    text = SearchRequest(bench.config, mode="text", text="sluice", k=10)
    assert {hit.record.content for hit in await eventually(lambda: bench.search(text), hits=5)} == {"sluice"}
    for filters in FILTERS:
        expected = expected_files(files, filters)
        found = await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=50, filters=filters))
        assert {hit.record.parsed_directory_file_id for hit in found} == expected, filters
        found = await bench.search(SearchRequest(bench.config, mode="text", text="sluice", k=50, filters=filters))
        assert {hit.record.parsed_directory_file_id for hit in found} == expected, filters
