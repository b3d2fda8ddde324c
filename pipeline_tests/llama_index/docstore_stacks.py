"""Vector sinks with LlamaIndex's docstore and index store beside them, and the servers they are on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.sinks.llama_docstore import LlamaDocstoreExporter
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.conformance.mongodb_harness import NO_ENGINE
from pipeline_tests.llama_index import stacks

URI = "DOCSTORE_URI"

NATIVE = ("pgvector", "pinecone")
"""Vector sinks LlamaIndex deletes documents from through its own store; from LanceDB it cannot, so it does through the sink."""


def _mongodb(resources: ExitStack, patch: pytest.MonkeyPatch, _: Path) -> dict[str, Any]:
    pytest.importorskip("secantus", reason=NO_ENGINE)
    from pipeline_tests.emulators.mongodb import mongo_server

    patch.setenv(URI, resources.enter_context(mongo_server(search=None)).uri)
    return stacks.mongodb_kvstore(URI)


def _redis(resources: ExitStack, patch: pytest.MonkeyPatch, directory: Path) -> dict[str, Any]:
    patch.setenv(URI, f"redis://127.0.0.1:{resources.enter_context(stacks.redis_server(directory))}")
    return stacks.redis_kvstore(URI)


STACKS = {
    "lancedb and mongodb": ("lancedb", _mongodb),
    "pgvector and mongodb": ("pgvector", _mongodb),
    "pinecone and mongodb": ("pinecone", _mongodb),
    "pinecone and redis": ("pinecone", _redis),
}


@dataclass
class Stack:
    """A vector sink and the docstore beside it: one tenant, one config."""

    name: str
    vectors: Bench
    docstore: Bench

    @property
    def exporter(self) -> LlamaDocstoreExporter:
        found = self.docstore.exporter
        assert isinstance(found, LlamaDocstoreExporter)
        return found

    async def replace(self, *files: Any) -> None:
        await self.vectors.replace(*files)
        await self.docstore.replace(*files)
        await self.docstore.exporter.optimize()

    def document(self, file_id: str, config: str | None = None) -> str:
        return f"{config or self.vectors.config}:{file_id}"

    async def ids(self, file_id: str) -> list[str]:
        """Of the records in the vector sink."""
        held = (await self.vectors.held()).get(file_id)
        return [] if held is None else held["id"].to_pylist()
