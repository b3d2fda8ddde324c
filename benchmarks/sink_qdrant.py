"""The Qdrant sink beside the vendor's own client upserting the same points to the same endpoint.

``python -m benchmarks.sink qdrant`` runs it against the emulator in a process of its own, or against the server ``QDRANT_URL``
names; there it deletes the collections it made. Against the emulator only the ratio means something.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from qdrant_client import AsyncQdrantClient, models

from benchmarks import comparison
from benchmarks.endpoints import emulated, in_another_process
from pipeline.sinks import qdrant_layout as layout
from pipeline.sinks.qdrant import QdrantExporter, QdrantSettings
from pipeline.sinks.slicing import each, slices
from pipeline_tests.emulators.qdrant import QdrantEmulator

URL, API_KEY = "QDRANT_URL", "QDRANT_API_KEY"
BATCH = 256
CONCURRENCY = 4


def server() -> AbstractContextManager[None]:
    """The one that is configured, or the emulator for the time being."""
    return in_another_process(_serving, (API_KEY, URL), unless=URL)


def _serving() -> AbstractContextManager[tuple[str, ...]]:
    return emulated(QdrantEmulator())


def _client() -> AsyncQdrantClient:
    return AsyncQdrantClient(os.environ[URL], api_key=os.environ.get(API_KEY), timeout=60, check_compatibility=False)


class Comparison(comparison.Comparison[QdrantExporter]):
    """Both ways of writing the same batches: ours, and the client's upsert of ready points, as many requests at once."""

    client = "the client's upsert"

    def rows(self) -> list[tuple[str, list[float], dict[str, Any]]]:
        """What somebody who uses the client has: ids, the model's vectors as lists, and payloads."""
        rows = []
        for file in (file for batch in self.batches for file in batch):
            points = [write.point for write in layout.encode_file(file, self.context.metadata_fields).writes]
            vectors = file.table["embedding"].to_pylist()
            rows += [(str(point.id), vector, point.payload or {}) for point, vector in zip(points, vectors, strict=True)]
        return rows

    async def exporter(self, prefix: str) -> QdrantExporter:
        made = QdrantExporter(QdrantSettings(collection_prefix=prefix), self.context)
        await made.provision()
        return made

    async def upsert_all(self, collection: str, rows: Sequence[tuple[str, list[float], dict[str, Any]]]) -> None:
        client = _client()

        async def upsert(some: list[tuple[str, list[float], dict[str, Any]]]) -> None:
            points = [models.PointStruct(id=key, vector={layout.VECTOR: vector}, payload=held) for key, vector, held in some]
            await client.upsert(collection, points, wait=True)

        await each(slices(rows, count=BATCH), upsert, concurrency=CONCURRENCY)
        await client.close()

    def by_client(self) -> Callable[[QdrantExporter], Awaitable[None]]:
        rows = self.rows()
        return lambda exporter: self.upsert_all(exporter.collection, rows)

    async def drop(self, exporter: QdrantExporter) -> None:
        await exporter.close()
        client = _client()
        await client.delete_collection(exporter.collection)
        await client.close()
