"""Turbopuffer, emulated; and the real service where a live test asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.records import FileRecords
from pipeline.sinks.turbopuffer import TurbopufferExporter, TurbopufferSettings
from pipeline.sinks.turbopuffer_layout import attribute_name
from pipeline_tests.emulators.turbopuffer import TurbopufferEmulator


@dataclass
class TurbopufferUnderTest:
    settings: TurbopufferSettings
    secrets: Sequence[str]
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    emulator: TurbopufferEmulator | None = None
    holds_types: bool = True
    always_there: Sequence[str] = ("embedding", "pending")
    namespaces: set[str] = field(default_factory=set)
    """Every namespace it was asked to open."""

    def make_exporter(self, context: SinkContext) -> Exporter:
        exporter = TurbopufferExporter(self.settings, context)
        self.namespaces.add(exporter.namespace)
        return exporter

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return TurbopufferExporter(TurbopufferSettings(base_url="http://user:secret-word@127.0.0.1:9"), context)

    async def settle(self, exporter: Exporter) -> None:
        """Every query sees every write."""

    def alter(self, file_id: str, chunk_index: int, field: str, value: object) -> None:
        assert self.emulator is not None
        namespaces = self.emulator.engine.namespaces.values()
        documents = [document for namespace in namespaces for document in namespace.documents.values()]
        address = (file_id, chunk_index)
        (found,) = [held for held in documents if (held["parsed_directory_file_id"], held["chunk_index"]) == address]
        found[attribute_name(field)] = value

    def alter_copy(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        self.alter(file_id, chunk_index, name, value)

    def fresh_emulator(self) -> TurbopufferEmulator:
        """The emulator, empty, whatever the last test left behind."""
        assert self.emulator is not None
        self.emulator.reset()
        return self.emulator


@contextmanager
def emulated_turbopuffer() -> Iterator[TurbopufferUnderTest]:
    with TurbopufferEmulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURBOPUFFER_API_KEY", emulator.api_key)
        patch.delenv("TURBOPUFFER_REGION", raising=False)
        patch.delenv("TURBOPUFFER_BASE_URL", raising=False)
        settings = TurbopufferSettings(base_url=emulator.url)
        yield TurbopufferUnderTest(settings, (emulator.api_key, "secret-word"), emulator=emulator)


def turbopuffer(directory: Path) -> AbstractContextManager[TurbopufferUnderTest]:
    """It keeps nothing in the directory."""
    return emulated_turbopuffer()


async def replace_and_close(exporter: Exporter, file: FileRecords) -> None:
    """A replace in an event loop of its own."""
    await exporter.replace_files([file])
    await exporter.close()
