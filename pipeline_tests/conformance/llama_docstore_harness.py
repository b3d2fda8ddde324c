"""The llama_docstore sink over LlamaIndex's own key-value store in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.llama_docstore import LlamaDocstoreExporter, LlamaDocstoreSettings
from pipeline_tests.llama_index.bench import REASON

PASSWORD = "correct-horse"
_ADDRESS = "CONFORMANCE_UNREACHABLE_KVSTORE"


@dataclass
class LlamaDocstoreUnderTest:
    kvstore: dict[str, Any]
    vector_sink: str = "pinecone"
    list_nodes: bool = True
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = (PASSWORD,)

    def make_exporter(self, context: SinkContext) -> LlamaDocstoreExporter:
        return self._open(context, self.kvstore)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        from pipeline_tests.llama_index.stacks import redis_kvstore

        return self._open(context, redis_kvstore(_ADDRESS))

    def _open(self, context: SinkContext, kvstore: dict[str, Any]) -> LlamaDocstoreExporter:
        given = {"vector_sink": self.vector_sink, "kvstore": kvstore, "list_nodes": self.list_nodes}
        return LlamaDocstoreExporter(LlamaDocstoreSettings.model_validate(given), context)

    async def settle(self, exporter: Exporter) -> None:
        """What is written can be read."""


@contextmanager
def llama_docstore(directory: Path) -> Iterator[LlamaDocstoreUnderTest]:
    pytest.importorskip("llama_index.core", reason=REASON)
    from pipeline_tests.llama_index.stacks import kvstore_in_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_ADDRESS, f"redis://:{PASSWORD}@127.0.0.1:9")
        yield LlamaDocstoreUnderTest(kvstore_in_process(directory))
