"""Pinecone, emulated, with readers that are one read late; and the real service where a live test asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.pinecone import PineconeExporter, PineconeSettings
from pipeline_tests.conformance.harness import put
from pipeline_tests.emulators.pinecone import PineconeEmulator


@dataclass
class PineconeUnderTest:
    """``emulator`` is ``None`` for the real service."""

    settings: PineconeSettings
    secrets: Sequence[str]
    emulator: PineconeEmulator | None = None
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = 40_960
    holds_types: bool = False
    always_there: Sequence[str] = ("embedding",)
    indexes: set[str] = field(default_factory=set)

    def make_exporter(self, context: SinkContext) -> Exporter:
        exporter = PineconeExporter(self.settings, context)
        self.indexes.add(exporter.index_name)
        return exporter

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return PineconeExporter(PineconeSettings(controller_host="http://127.0.0.1:9"), context)

    async def settle(self, exporter: Exporter) -> None:
        if self.emulator is not None:
            self.emulator.settle()
            return
        await exporter.optimize()

    def alter(self, file_id: str, chunk_index: int, field: str, value: object) -> None:
        assert self.emulator is not None
        engines = [index.engine for index in self.emulator.indexes.values()]
        records = [record for engine in engines for name in engine.namespaces for record in engine.settled(name).values()]
        found = [record["metadata"] for record in records]
        address = (file_id, float(chunk_index))
        (metadata,) = [held for held in found if (held.get("parsed_directory_file_id"), held.get("chunk_index")) == address]
        put(metadata, {"content": "_node_content", "metadata": "metadata_json"}.get(field, field), value)

    def alter_copy(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        self.alter(file_id, chunk_index, name, value)


@contextmanager
def emulated_pinecone() -> Iterator[PineconeUnderTest]:
    with PineconeEmulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINECONE_API_KEY", emulator.api_key)
        patch.delenv("PINECONE_CONTROLLER_HOST", raising=False)
        yield PineconeUnderTest(PineconeSettings(controller_host=emulator.url), (emulator.api_key,), emulator)


@contextmanager
def pinecone(directory: Path) -> Iterator[PineconeUnderTest]:
    """It keeps nothing in the directory."""
    with emulated_pinecone() as under_test:
        assert under_test.emulator is not None
        under_test.emulator.lag.reads = 1
        yield under_test
