"""The emulated service of a module; a bench, once a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.pinecone_harness import PineconeUnderTest, emulated_pinecone
from pipeline_tests.emulators.pinecone import PineconeEmulator


@pytest.fixture(scope="module")
def running() -> Iterator[PineconeUnderTest]:
    with emulated_pinecone() as under_test:
        yield under_test


@pytest.fixture
def emulator(running: PineconeUnderTest) -> PineconeEmulator:
    assert running.emulator is not None
    running.emulator.reset()
    return running.emulator


@pytest.fixture
async def bench(running: PineconeUnderTest, emulator: PineconeEmulator) -> AsyncIterator[Bench]:
    async with provisioned_bench(running) as made:
        emulator.requests.clear()
        yield made
