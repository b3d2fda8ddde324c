"""What all sinks share: the context's own checks and the checks of requests."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.sinks.base import SinkContext
from pipeline.sinks.registry import SINKS, exporter_class
from pipeline_tests.conformance.harness import MODEL


@pytest.mark.parametrize("key", ["", "content", "metadata", "doc_id", "_hidden", "a.b", "a`b", 'a"b', "$where", "a\n", "x" * 65])
def test_a_metadata_key_no_store_could_keep_cannot_be_declared(key: str) -> None:
    with pytest.raises(ConfigError, match="metadata field"):
        SinkContext("prj", MODEL, {key: "string"})


@pytest.mark.parametrize("key", ["year", "Document Type", "größe", "a-b_c", "7th", "x" * 64])
def test_ordinary_metadata_keys_can_be_declared(key: str) -> None:
    assert SinkContext("prj", MODEL, {key: "string"}).metadata_fields == {key: "string"}


def test_every_registered_sink_loads_and_an_unknown_one_is_named() -> None:
    assert exporter_class("lancedb").__name__ == "LanceDBExporter"
    with pytest.raises(ConfigError, match="nosuchdb") as caught:
        exporter_class("nosuchdb")
    assert all(name in str(caught.value) for name in SINKS)
