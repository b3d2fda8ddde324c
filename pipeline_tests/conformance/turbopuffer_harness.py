"""Turbopuffer, emulated; and the real service where a live test asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.turbopuffer import TurbopufferExporter, TurbopufferSettings
from pipeline_tests.emulators.turbopuffer import turbopuffer_emulator


@dataclass
class TurbopufferUnderTest:
    settings: TurbopufferSettings
    secrets: Sequence[str]
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    namespaces: set[str] = field(default_factory=set)

    def make_exporter(self, context: SinkContext) -> Exporter:
        exporter = TurbopufferExporter(self.settings, context)
        self.namespaces.add(exporter.namespace)
        return exporter

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return TurbopufferExporter(TurbopufferSettings(base_url="http://user:secret-word@127.0.0.1:9"), context)

    async def settle(self, exporter: Exporter) -> None:
        """Every query sees every write."""


@contextmanager
def turbopuffer(directory: Path) -> Iterator[TurbopufferUnderTest]:
    with turbopuffer_emulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURBOPUFFER_API_KEY", emulator.api_key)
        patch.delenv("TURBOPUFFER_REGION", raising=False)
        patch.delenv("TURBOPUFFER_BASE_URL", raising=False)
        yield TurbopufferUnderTest(TurbopufferSettings(base_url=emulator.url), (emulator.api_key, "secret-word"))
