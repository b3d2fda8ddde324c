"""Azure AI Search, emulated; and the real service where a live test asks for it.

SDK 11 speaks TLS alone: there the emulator needs AZURE_EMULATOR_CERTIFICATE and AZURE_EMULATOR_KEY (PEM files), and the tests
SSL_CERT_FILE and REQUESTS_CA_BUNDLE with the same certificate, to trust it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.sinks.azure_ai_search import AzureAISearchExporter, AzureAISearchSettings
from pipeline.sinks.azure_layout import PENDING, attribute_name, field_name
from pipeline.sinks.base import Exporter, SinkContext
from pipeline_tests.conformance.harness import MODEL
from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator
from pipeline_tests.emulators.http import Certificate

INDEX = f"indexport-{MODEL.slug}"
"""The index of the suite's model, under the default prefix."""


@dataclass
class AzureAISearchUnderTest:
    settings: AzureAISearchSettings
    secrets: Sequence[str]
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    emulator: AzureAISearchEmulator | None = None
    holds_types: bool = True
    always_there: Sequence[str] = ()
    indexes: set[str] = field(default_factory=set)
    """Every index it was asked to open."""

    def make_exporter(self, context: SinkContext) -> Exporter:
        exporter = AzureAISearchExporter(self.settings, context)
        self.indexes.add(exporter.index_name)
        return exporter

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return AzureAISearchExporter(AzureAISearchSettings(endpoint="https://user:secret-word@127.0.0.1:9"), context)

    async def settle(self, exporter: Exporter) -> None:
        """A method that writes returns when searches show what it wrote."""

    def alter(self, file_id: str, chunk_index: int, field: str, value: object) -> None:
        self._put(file_id, chunk_index, PENDING if field == "pending" else attribute_name(field), value)

    def alter_copy(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        self._put(file_id, chunk_index, "metadata" if name == "_node_content" else field_name(name), value)

    def _put(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        assert self.emulator is not None
        self.emulator.engine.settle()
        indexes = self.emulator.engine.indexes.values()
        stored = [document for index in indexes for document in (*index.stored.values(), *index.visible.values())]
        address = (file_id, chunk_index)
        found = [held for held in stored if (held["parsed_directory_file_id"], held["chunk_index"]) == address]
        assert found
        for document in found:
            document[name] = value

    def fresh_emulator(self) -> AzureAISearchEmulator:
        """The emulator, empty, whatever the last test left behind."""
        assert self.emulator is not None
        self.emulator.reset()
        return self.emulator


def _certificate() -> Certificate | None:
    chain, key = os.environ.get("AZURE_EMULATOR_CERTIFICATE"), os.environ.get("AZURE_EMULATOR_KEY")
    return Certificate(Path(chain), Path(key)) if chain and key else None


@contextmanager
def emulated_azure_ai_search() -> Iterator[AzureAISearchUnderTest]:
    with AzureAISearchEmulator(certificate=_certificate()) as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_SEARCH_API_KEY", emulator.api_key)
        patch.delenv("AZURE_SEARCH_ENDPOINT", raising=False)
        settings = AzureAISearchSettings(endpoint=emulator.url)
        yield AzureAISearchUnderTest(settings, (emulator.api_key, "secret-word"), emulator=emulator)


def azure_ai_search(directory: Path) -> AbstractContextManager[AzureAISearchUnderTest]:
    """It keeps nothing in the directory."""
    return emulated_azure_ai_search()
