"""The store of each sink, once a module; a bench, once a case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from pipeline_tests.conformance.harness import HARNESSES, Bench, SinkUnderTest, load_harness, provisioned_bench


@pytest.fixture(scope="module", params=sorted(HARNESSES))
def sink(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkUnderTest]:
    with load_harness(request.param)(tmp_path_factory.mktemp(request.param)) as under_test:
        yield under_test


@pytest.fixture
async def bench(sink: SinkUnderTest) -> AsyncIterator[Bench]:
    """Provisioned, with a tenant and a config nobody else uses."""
    async with provisioned_bench(sink) as made:
        yield made
