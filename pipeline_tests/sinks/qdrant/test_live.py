"""A real server, for whoever has one: ``INDEXPORT_LIVE_QDRANT=1`` with ``QDRANT_URL`` and, if it wants one, ``QDRANT_API_KEY``.

It makes a collection of its own and deletes it again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator

import pytest
from qdrant_client import QdrantClient

from pipeline.sinks.qdrant import QdrantExporter, QdrantSettings
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.conformance.qdrant_harness import QdrantUnderTest
from pipeline_tests.conformance.services import assert_vector_searches_mean_what_they_mean_elsewhere, searched_files

SWITCH = "INDEXPORT_LIVE_QDRANT"

pytestmark = pytest.mark.skipif(os.environ.get(SWITCH) != "1", reason=f"needs a real server: set {SWITCH}=1 and QDRANT_URL")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    settings = QdrantSettings(collection_prefix=f"indexport-test-{uuid.uuid4().hex[:8]}")
    secrets = [key for key in [os.environ.get("QDRANT_API_KEY")] if key]
    made = Bench(QdrantUnderTest(settings, settings, secrets))
    exporter = made.open()
    assert isinstance(exporter, QdrantExporter)
    try:
        await exporter.provision()
        yield made
    finally:
        QdrantClient(os.environ["QDRANT_URL"], api_key=os.environ.get("QDRANT_API_KEY")).delete_collection(exporter.collection)
        for opened in made.opened:
            await opened.close()


async def test_files_are_written_replaced_and_deleted(bench: Bench) -> None:
    files = [bench.file("dfl-1", 300), bench.file("dfl-2", 3, metadata={"year": 2024, "tags": ["a"]})]
    await bench.replace(*files)
    await bench.open().provision()
    await bench.assert_holds(*files)
    shorter = bench.file("dfl-1", 2, version="v2")
    await bench.replace(shorter, bench.file("dfl-2", 0))
    await bench.assert_holds(shorter)
    await bench.replace(files[0])
    await bench.assert_holds(files[0])
    await bench.delete("dfl-1", "dfl-never-there")
    await bench.assert_holds()


async def test_searches_and_filters_mean_what_they_mean_elsewhere(bench: Bench) -> None:
    files = searched_files(bench)
    await bench.replace(*files)
    await assert_vector_searches_mean_what_they_mean_elsewhere(bench, files)
