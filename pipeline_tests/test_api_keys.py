"""A key that no header can carry never reaches an HTTP library, whose errors would show it."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.api_keys import read_key
from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError
from pipeline.sinks.base import SinkContext
from pipeline.sinks.registry import exporter_class

CONTEXT = SinkContext("prj-1", ModelIdentity("model", "model@1", 4))
SINKS = {
    "azure_ai_search": ("AZURE_SEARCH_API_KEY", {"endpoint": "https://127.0.0.1:9"}),
    "pinecone": ("PINECONE_API_KEY", {}),
    "qdrant": ("QDRANT_API_KEY", {"url": "http://127.0.0.1:9"}),
    "turbopuffer": ("TURBOPUFFER_API_KEY", {"base_url": "http://127.0.0.1:9"}),
}


@pytest.mark.parametrize("key", ["key\n", "key\r\n", "  key"])
def test_the_white_space_around_a_key_is_left_out(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    assert read_key("SOME_KEY") == "key"


def test_a_key_that_is_not_set_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert read_key("SOME_KEY") == ""


@pytest.mark.parametrize("key", ["can\u2013ary", "\ufeffcanary", "can ary", "can\nary", "can\x7fary"])
@pytest.mark.parametrize("sink", SINKS)
def test_a_sink_names_the_variable_and_not_the_key(sink: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, settings = SINKS[sink]
    monkeypatch.setenv(variable, key)
    found = exporter_class(sink)

    async def provision() -> None:
        exporter = found(found.settings_type(**settings), CONTEXT)
        try:
            await exporter.provision()
        finally:
            await exporter.close()

    with pytest.raises(ConfigError, match=f"{variable} holds white space or a character that is not ASCII") as refused:
        asyncio.run(provision())
    assert "ary" not in f"{refused.value!r}"
