"""LanceDB in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings


@dataclass
class LanceDBUnderTest:
    uri: str
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = ()

    def make_exporter(self, context: SinkContext) -> Exporter:
        return LanceDBExporter(LanceDBSettings(uri=self.uri), context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        occupied = Path(self.uri) / "a-file"
        occupied.touch()
        return LanceDBExporter(LanceDBSettings(uri=str(occupied / "records")), context)

    async def settle(self, exporter: Exporter) -> None:
        """Every handle reads the newest version."""


@contextmanager
def lancedb(directory: Path) -> Iterator[LanceDBUnderTest]:
    yield LanceDBUnderTest(str(directory))
