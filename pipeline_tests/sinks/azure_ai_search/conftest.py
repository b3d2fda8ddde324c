"""The emulated service of a module; a bench, once a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from azure.core.credentials import AzureKeyCredential
from azure.search.documents import SearchClient

from pipeline.sinks import azure_replace as writer
from pipeline.sinks import backoff
from pipeline_tests.conformance.azure_ai_search_harness import (
    INDEX,
    AzureAISearchUnderTest,
    emulated_azure_ai_search,
)
from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator


@pytest.fixture(scope="module")
def running() -> Iterator[AzureAISearchUnderTest]:
    with emulated_azure_ai_search() as under_test:
        yield under_test


@pytest.fixture
def emulator(running: AzureAISearchUnderTest) -> AzureAISearchEmulator:
    return running.fresh_emulator()


@pytest.fixture
async def bench(running: AzureAISearchUnderTest, emulator: AzureAISearchEmulator) -> AsyncIterator[Bench]:
    async with provisioned_bench(running) as made:
        emulator.requests.clear()
        yield made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a thousandth."""
    monkeypatch.setattr(writer, "_FIRST_POLL", 0.0005)
    monkeypatch.setattr(writer, "_LONGEST_POLL", 0.01)
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.0005)


@pytest.fixture
def client(emulator: AzureAISearchEmulator) -> Iterator[SearchClient]:
    """The vendor's client, as another program would use it."""
    with SearchClient(emulator.url, INDEX, AzureKeyCredential(emulator.api_key), retry_total=0) as made:
        yield made
