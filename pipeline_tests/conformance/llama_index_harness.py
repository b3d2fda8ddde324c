"""The llama_index sink over Chroma in a directory and LlamaIndex's own docstore in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.llama_index import LlamaIndexExporter, LlamaIndexSettings
from pipeline_tests.llama_index.bench import REASON

PASSWORD = "correct-horse"
_ADDRESS = "CONFORMANCE_UNREACHABLE_REDIS"


@dataclass
class LlamaIndexUnderTest:
    vector_store: dict[str, Any]
    docstore: dict[str, Any]
    in_memory: bool = False
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = (PASSWORD,)

    def make_exporter(self, context: SinkContext) -> Exporter:
        return self._open(context, self.docstore)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        store = {"class": "llama_index.storage.kvstore.redis:RedisKVStore", "args": {"redis_uri": f"${{{_ADDRESS}}}"}}
        docstore = {"class": "llama_index.storage.docstore.redis:RedisDocumentStore", "args": {"redis_kvstore": store}}
        return self._open(context, docstore)

    def _open(self, context: SinkContext, docstore: dict[str, Any]) -> Exporter:
        given = {"vector_store": self.vector_store, "docstore": docstore, "in_memory": self.in_memory}
        return LlamaIndexExporter(LlamaIndexSettings.model_validate(given), context)

    async def settle(self, exporter: Exporter) -> None:
        """Chroma shows what it has taken."""


@contextmanager
def llama_index(directory: Path) -> Iterator[LlamaIndexUnderTest]:
    pytest.importorskip("llama_index.core", reason=REASON)
    from pipeline_tests.llama_index.stacks import chroma, in_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_ADDRESS, f"redis://:{PASSWORD}@127.0.0.1:9")
        yield LlamaIndexUnderTest(chroma(directory), in_process(directory))
