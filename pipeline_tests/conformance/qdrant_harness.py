"""Qdrant over HTTP, emulated; and in the client's own local mode, too slow for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.qdrant import QdrantExporter, QdrantSettings
from pipeline_tests.emulators.qdrant import QdrantEmulator


@dataclass
class QdrantUnderTest:
    settings: QdrantSettings
    unreachable: QdrantSettings
    secrets: Sequence[str] = ()
    vector_tolerance: float = 1e-6
    max_content_bytes: int | None = None

    def make_exporter(self, context: SinkContext) -> Exporter:
        return QdrantExporter(self.settings, context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return QdrantExporter(self.unreachable, context)

    async def settle(self, exporter: Exporter) -> None:
        """Every write waits until it is applied."""


@contextmanager
def qdrant(directory: Path) -> Iterator[QdrantUnderTest]:
    with QdrantEmulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDRANT_API_KEY", emulator.api_key)
        patch.delenv("QDRANT_URL", raising=False)
        unreachable = QdrantSettings(url="http://user:secret-word@127.0.0.1:9")
        yield QdrantUnderTest(QdrantSettings(url=emulator.url), unreachable, (emulator.api_key, "secret-word"))


@contextmanager
def qdrant_local(directory: Path) -> Iterator[QdrantUnderTest]:
    occupied = directory / "a-file"
    occupied.touch()
    yield QdrantUnderTest(QdrantSettings(path=str(directory / "qdrant")), QdrantSettings(path=str(occupied / "qdrant")))
