"""These tests run where LlamaIndex is installed. Everywhere else each module says so instead of running."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def bundled_tokenizer_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """With this variable set, LlamaIndex ignores the files it brings along and asks the network for them."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
