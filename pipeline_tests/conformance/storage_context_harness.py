"""LlamaIndex's files in a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.storage_context import StorageContextExporter, StorageContextSettings


@dataclass
class StorageContextUnderTest:
    uri: str
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = ()

    def make_exporter(self, context: SinkContext) -> Exporter:
        return StorageContextExporter(StorageContextSettings(uri=self.uri), context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        occupied = Path(self.uri) / "a-file"
        occupied.touch()
        return StorageContextExporter(StorageContextSettings(uri=str(occupied / "records")), context)

    async def settle(self, exporter: Exporter) -> None:
        """Every read begins at CURRENT."""


@contextmanager
def storage_context(directory: Path) -> Iterator[StorageContextUnderTest]:
    yield StorageContextUnderTest(str(directory))
