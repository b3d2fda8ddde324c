"""Qdrant over HTTP, emulated; and in the client's own local mode, too slow for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.qdrant import QdrantExporter, QdrantSettings
from pipeline.sinks.qdrant_layout import PENDING
from pipeline_tests.conformance.harness import put
from pipeline_tests.emulators.qdrant import QdrantEmulator


@dataclass
class QdrantUnderTest:
    settings: QdrantSettings
    unreachable: QdrantSettings
    secrets: Sequence[str] = ()
    vector_tolerance: float = 1e-6
    max_content_bytes: int | None = None
    emulator: QdrantEmulator | None = None
    holds_types: bool = False
    always_there: Sequence[str] = ()

    def make_exporter(self, context: SinkContext) -> Exporter:
        return QdrantExporter(self.settings, context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return QdrantExporter(self.unreachable, context)

    async def settle(self, exporter: Exporter) -> None:
        """Every write waits until it is applied."""

    def alter(self, file_id: str, chunk_index: int, field: str, value: object) -> None:
        assert self.emulator is not None
        points = [point for collection in self.emulator.engine.collections.values() for point in collection.points.values()]
        (point,) = [
            point
            for point in points
            if (point.payload.get("parsed_directory_file_id"), point.payload.get("chunk_index")) == (file_id, chunk_index)
        ]
        if field == "embedding":
            point.vectors.clear()
        else:
            put(point.payload, PENDING if field == "pending" else field, value)

    def alter_copy(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        self.alter(file_id, chunk_index, name, value)


@contextmanager
def qdrant(directory: Path) -> Iterator[QdrantUnderTest]:
    with QdrantEmulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDRANT_API_KEY", emulator.api_key)
        patch.delenv("QDRANT_URL", raising=False)
        unreachable = QdrantSettings(url="http://user:secret-word@127.0.0.1:9")
        settings = QdrantSettings(url=emulator.url)
        yield QdrantUnderTest(settings, unreachable, (emulator.api_key, "secret-word"), emulator=emulator)


@contextmanager
def qdrant_local(directory: Path) -> Iterator[QdrantUnderTest]:
    occupied = directory / "a-file"
    occupied.touch()
    yield QdrantUnderTest(QdrantSettings(path=str(directory / "qdrant")), QdrantSettings(path=str(occupied / "qdrant")))
