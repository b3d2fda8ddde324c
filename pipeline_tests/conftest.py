"""What holds for every test: hypothesis judges results, never how long a busy machine takes for them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx._config
import httpx._transports.default
import llama_cloud._base_client
import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("pipeline_tests.world", "pipeline_tests.command_line")

_new_ssl_context = httpx._config.create_ssl_context

# A worker imports a million objects that stay: looking among them for garbage takes a fifteenth of the suite's time.
gc.set_threshold(50_000)

settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that in the end no worker is left alone with one."""
    items.sort(key=lambda item: item.get_closest_marker("takes_long") is None)


@cache
def _ssl_context(_bundle: str | None, **told: Any) -> Any:
    return _new_ssl_context(**told)


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Reading the bundle takes 30 ms, and nearly every test makes a client or ten."""

    def kept(**told: Any) -> Any:
        return _ssl_context(os.environ.get("SSL_CERT_FILE"), **told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx._transports.default, "create_ssl_context", kept)
        yield


@pytest.fixture(scope="session", autouse=True)
def _databases_in_memory_bear_no_revision() -> Iterator[None]:
    """They are never migrated, and for the mark Dagster reads all of its migrations: half of what an instance costs."""
    with pytest.MonkeyPatch.context() as patch:
        for storage in ("event_log", "runs"):
            patch.setattr(f"dagster._core.storage.{storage}.in_memory.stamp_alembic_rev", lambda _config, _connection: None)
        yield


@pytest.fixture
def impatient_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaCloud's SDK retries as often as ever, and waits a hundredth of its time in between."""
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(llama_cloud._base_client, name, getattr(llama_cloud._base_client, name) / 100)
