"""An emulated server for every test module, emptied for every test, and a bench on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from pipeline.sinks import backoff
from pipeline.sinks.qdrant import QdrantSettings
from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.qdrant_harness import QdrantUnderTest
from pipeline_tests.emulators.qdrant import QdrantEmulator


@pytest.fixture(scope="module")
def server() -> Iterator[QdrantEmulator]:
    with QdrantEmulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(server: QdrantEmulator, monkeypatch: pytest.MonkeyPatch) -> QdrantEmulator:
    """Empty, with its key in the environment; retries wait for milliseconds."""
    server.reset()
    monkeypatch.setenv("QDRANT_API_KEY", server.api_key)
    monkeypatch.delenv("QDRANT_URL", raising=False)
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)
    return server


@pytest.fixture
def sink(emulator: QdrantEmulator) -> QdrantUnderTest:
    settings = QdrantSettings(url=emulator.url)
    return QdrantUnderTest(settings, settings, secrets=(emulator.api_key,))


@pytest.fixture
async def bench(sink: QdrantUnderTest) -> AsyncIterator[Bench]:
    """Provisioned; what was asked for that is forgotten."""
    async with provisioned_bench(sink) as made:
        yield made
