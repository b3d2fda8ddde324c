"""What holds for every test: hypothesis judges results, never how long a busy machine takes for them."""

from __future__ import annotations

import llama_cloud._base_client
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that in the end no worker is left alone with one."""
    items.sort(key=lambda item: item.get_closest_marker("takes_long") is None)


@pytest.fixture
def impatient_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaCloud's SDK retries as often as ever, and waits a hundredth of its time in between."""
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(llama_cloud._base_client, name, getattr(llama_cloud._base_client, name) / 100)
