"""The Azure AI Search sink beside the vendor's own client uploading the same documents to the same endpoint.

``python -m benchmarks.sink azure_ai_search`` runs it against the emulator in a process of its own, or against the service
``AZURE_SEARCH_ENDPOINT`` and ``AZURE_SEARCH_API_KEY`` name; there it deletes the indexes it made. Against the emulator only
the ratio means something: how fast it takes documents in says nothing of the service, and it shows them at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from azure.core.credentials import AzureKeyCredential
from azure.search.documents.aio import SearchClient

from benchmarks import comparison
from benchmarks.endpoints import emulated, in_another_process
from pipeline.sinks.azure_ai_search import AzureAISearchExporter, AzureAISearchSettings
from pipeline.sinks.azure_documents import encode_file
from pipeline.sinks.slicing import each, slices
from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator

ENDPOINT, API_KEY = "AZURE_SEARCH_ENDPOINT", "AZURE_SEARCH_API_KEY"
BATCH = 1000
CONCURRENCY = 4

Documents = list[dict[str, Any]]


def server() -> AbstractContextManager[None]:
    """The one that is configured, or the emulator for the time being."""
    return in_another_process(_serving, (API_KEY, ENDPOINT), unless=ENDPOINT)


def _serving() -> AbstractContextManager[tuple[str, ...]]:
    return emulated(AzureAISearchEmulator())


class Comparison(comparison.Comparison[AzureAISearchExporter]):
    """Both ways of writing the same batches: ours, and the client's upload of ready documents, as many requests at once."""

    client = "the client's upload"

    def documents(self) -> Documents:
        """What somebody who uses the client has: dicts, vectors as lists of numbers."""
        files = [encode_file(file, self.context.metadata_fields) for batch in self.batches for file in batch]
        return [json.loads(b"{" + write.members + b"}") for file in files for write in file.writes]

    async def exporter(self, prefix: str) -> AzureAISearchExporter:
        made = AzureAISearchExporter(AzureAISearchSettings(index_prefix=prefix), self.context)
        await made.provision()
        return made

    async def upload_all(self, index: str, documents: Documents) -> None:
        async with SearchClient(os.environ[ENDPOINT], index, AzureKeyCredential(os.environ[API_KEY])) as client:

            async def upload(some: Documents) -> None:
                assert all(result.succeeded for result in await client.upload_documents(some))

            await each(slices(documents, count=BATCH), upload, concurrency=CONCURRENCY)

    def by_client(self) -> Callable[[AzureAISearchExporter], Awaitable[None]]:
        documents = self.documents()
        return lambda exporter: self.upload_all(exporter.index_name, documents)

    async def drop(self, exporter: AzureAISearchExporter) -> None:
        await exporter.drop_collection()
        await exporter.close()
