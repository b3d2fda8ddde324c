"""A store behind LlamaIndex that repeats the password it refuses: the variable is named in its place."""

from __future__ import annotations

import pytest

from pipeline_tests.llama_index.bench import REASON

pytest.importorskip("llama_index.core", reason=REASON)

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import SinkUnavailable
from pipeline.sinks.base import SinkContext
from pipeline.sinks.llama_docstore import LlamaDocstoreExporter, LlamaDocstoreSettings
from pipeline_tests.conformance.mongodb_harness import NO_ENGINE
from pipeline_tests.security.echoes import refusing_mongodb


async def test_a_password_that_mongodb_repeats_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("secantus", reason=NO_ENGINE)
    with refusing_mongodb("no access for zq-canary-123 today") as address:
        monkeypatch.setenv("MONGODB_URI", f"mongodb://bob:zq-canary-123@{address}/?authSource=admin")
        context = SinkContext("prj-1", ModelIdentity("model", "model@1", 16))
        exporter = LlamaDocstoreExporter(LlamaDocstoreSettings(vector_sink="lancedb"), context)
        with pytest.raises(SinkUnavailable, match=r"no access for \$\{MONGODB_URI\} today") as caught:
            await exporter.provision()
        await exporter.close()
    assert "zq" not in f"{caught.value!r}"
