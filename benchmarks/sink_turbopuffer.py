"""The Turbopuffer sink beside the vendor's own client writing the same documents to the same endpoint.

``python -m benchmarks.sink turbopuffer`` runs it against the emulator in a process of its own, or against the real service
where ``TURBOPUFFER_API_KEY`` is set; there it deletes the namespaces it made. Against the emulator only the ratio means
something: how fast it takes documents in says nothing of the service.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import turbopuffer
from turbopuffer.types import ColumnsParam

from benchmarks import comparison
from benchmarks.endpoints import emulated, in_another_process
from pipeline.sinks import turbopuffer_layout as layout
from pipeline.sinks.turbopuffer import TurbopufferExporter, TurbopufferSettings
from pipeline_tests.emulators.turbopuffer import TurbopufferEmulator

API_KEY, BASE_URL = "TURBOPUFFER_API_KEY", "TURBOPUFFER_BASE_URL"

Columns = dict[str, list[Any]]


def server() -> AbstractContextManager[None]:
    """The one that is configured, or the emulator for the time being."""
    return in_another_process(_serving, (API_KEY, BASE_URL), unless=API_KEY)


def _serving() -> AbstractContextManager[tuple[str, ...]]:
    return emulated(TurbopufferEmulator())


class Comparison(comparison.Comparison[TurbopufferExporter]):
    """Both ways of writing the same batches."""

    client = "the client's upsert"

    def documents(self) -> list[Columns]:
        """What the client takes: columns of plain values, vectors as lists of numbers."""
        batches = []
        for files in self.batches:
            columns: Columns = {}
            for file in files:
                encoded = layout.encode_file(file, self.context.metadata_fields)
                for name, fragment in encoded.columns.items():
                    columns.setdefault(name, []).extend(json.loads(b"[" + fragment + b"]"))
            columns["vector"] = [vector for file in files for vector in file.table["embedding"].to_pylist()]
            batches.append(columns)
        return batches

    async def exporter(self, prefix: str) -> TurbopufferExporter:
        made = TurbopufferExporter(TurbopufferSettings(namespace_prefix=prefix), self.context)
        await made.provision()
        return made

    async def upsert_all(self, namespace: str, batches: Sequence[Columns]) -> None:
        async with turbopuffer.AsyncTurbopuffer() as client:
            for columns in batches:
                await client.namespace(namespace).write(
                    upsert_columns=cast(ColumnsParam, columns), distance_metric="cosine_distance"
                )

    def by_client(self) -> Callable[[TurbopufferExporter], Awaitable[None]]:
        documents = self.documents()
        return lambda exporter: self.upsert_all(exporter.namespace, documents)

    async def drop(self, exporter: TurbopufferExporter) -> None:
        await exporter.close()
        async with turbopuffer.AsyncTurbopuffer() as client:
            await client.namespace(exporter.namespace).delete_all()
