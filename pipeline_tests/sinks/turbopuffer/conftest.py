"""The emulated service of a module; a bench, once a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import turbopuffer as sdk

from pipeline_tests.conformance.harness import Bench, provisioned_bench
from pipeline_tests.conformance.turbopuffer_harness import TurbopufferUnderTest, emulated_turbopuffer
from pipeline_tests.emulators.turbopuffer import TurbopufferEmulator


@pytest.fixture(scope="module")
def running() -> Iterator[TurbopufferUnderTest]:
    with emulated_turbopuffer() as under_test:
        yield under_test


@pytest.fixture
def emulator(running: TurbopufferUnderTest) -> TurbopufferEmulator:
    return running.fresh_emulator()


@pytest.fixture
async def bench(running: TurbopufferUnderTest, emulator: TurbopufferEmulator) -> AsyncIterator[Bench]:
    async with provisioned_bench(running) as made:
        emulator.requests.clear()
        yield made


@pytest.fixture
def client(emulator: TurbopufferEmulator) -> sdk.Turbopuffer:
    """The vendor's client, as another program would use it."""
    return sdk.Turbopuffer(api_key=emulator.api_key, base_url=emulator.url, max_retries=0)
