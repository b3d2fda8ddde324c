"""A MongoDB in process, once a module; a collection of its own for every case."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from pipeline.sinks import mongodb_store
from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.mongodb_harness import (
    Collection,
    MongoDBUnderTest,
    collection_name,
    emulated_mongodb,
)
from pipeline_tests.emulators.atlas_search import AtlasSearch


@pytest.fixture(scope="module")
def engine() -> Iterator[MongoDBUnderTest]:
    with emulated_mongodb(search=AtlasSearch()) as under_test:
        yield under_test


@pytest.fixture(scope="module")
def standalone_engine() -> Iterator[MongoDBUnderTest]:
    """Neither transactions nor search."""
    with emulated_mongodb(search=None, replica_set=False) as under_test:
        yield under_test


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongodb_store, "_LONGEST_WAIT", 0.001)


def _apart(engine: MongoDBUnderTest) -> MongoDBUnderTest:
    settings = engine.settings.model_copy(update={"collection_prefix": f"t{uuid.uuid4().hex[:8]}"})
    return dataclasses.replace(engine, settings=settings)


@pytest.fixture
def mongo(engine: MongoDBUnderTest) -> MongoDBUnderTest:
    return _apart(engine)


@pytest.fixture
def standalone(standalone_engine: MongoDBUnderTest) -> MongoDBUnderTest:
    return _apart(standalone_engine)


@pytest.fixture
async def bench(mongo: MongoDBUnderTest) -> AsyncIterator[Bench]:
    async with provisioned_bench(mongo) as made:
        yield made


@pytest.fixture
async def standalone_bench(standalone: MongoDBUnderTest) -> AsyncIterator[Bench]:
    async with provisioned_bench(standalone) as made:
        yield made


@pytest.fixture
async def raw(bench: Bench, mongo: MongoDBUnderTest) -> AsyncIterator[Collection]:
    """The bench's collection, as anyone else sees it."""
    assert mongo.server is not None
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo.server.uri, tz_aware=True)
    yield client[mongo.settings.database][collection_name(bench)]
    await client.close()
