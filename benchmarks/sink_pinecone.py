"""The Pinecone sink beside the vendor's own client writing the same records to the same endpoint.

``python -m benchmarks.sink pinecone`` runs it against the emulator in a process of its own, or against the real service where
``PINECONE_API_KEY`` is set; there it deletes the indexes it made. Against the emulator only the ratio means something: how
fast it takes records in says nothing of the service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pinecone import AsyncPinecone

from benchmarks import comparison
from benchmarks.endpoints import emulated, in_another_process
from pipeline.sinks import pinecone_layout as layout
from pipeline.sinks.pinecone import PineconeExporter, PineconeSettings
from pipeline.sinks.pinecone_replace import MAX_REQUEST_BYTES
from pipeline_tests.emulators.pinecone import PineconeEmulator

API_KEY, CONTROLLER_HOST = "PINECONE_API_KEY", "PINECONE_CONTROLLER_HOST"
NAMESPACE = "benchmark"
DECIMALS_BYTES = 20
"""Of a float64 as JSON, at most about."""

Records = list[dict[str, Any]]


def server() -> AbstractContextManager[None]:
    """The one that is configured, or the emulator for the time being."""
    return in_another_process(_serving, (API_KEY, CONTROLLER_HOST), unless=API_KEY)


def _serving() -> AbstractContextManager[tuple[str, ...]]:
    return emulated(PineconeEmulator())


class Comparison(comparison.Comparison[PineconeExporter]):
    """Both ways of writing the same batches."""

    client = "the client's upsert"

    def documents(self) -> list[Records]:
        """What the client takes: dicts with the same metadata, vectors as lists of numbers."""
        batches = []
        for files in self.batches:
            records = []
            for file in files:
                writes = layout.encode_file(file, self.context.metadata_fields).writes
                vectors = file.table["embedding"].to_pylist()
                records += [
                    {"id": write.id, "values": vector, "metadata": write.metadata}
                    for write, vector in zip(writes, vectors, strict=True)
                ]
            batches.append(records)
        return batches

    def batch_size(self) -> int:
        """The most records of this kind that fit in one request."""
        writes = layout.encode_file(self.batches[0][0], self.context.metadata_fields).writes
        spare = self.context.model.dimension * DECIMALS_BYTES
        return min(1_000, MAX_REQUEST_BYTES // (max(write.size for write in writes) + spare // 2))

    async def exporter(self, prefix: str) -> PineconeExporter:
        made = PineconeExporter(PineconeSettings(index_prefix=prefix), self.context)
        await made.provision()
        return made

    async def upsert_all(self, name: str, size: int, batches: Sequence[Records]) -> None:
        async with AsyncPinecone() as client, await client.index(name) as index:
            for records in batches:
                answer = await index.upsert(vectors=records, namespace=NAMESPACE, batch_size=size, show_progress=False)
                assert not answer.has_errors

    def by_client(self) -> Callable[[PineconeExporter], Awaitable[None]]:
        documents, size = self.documents(), self.batch_size()
        return lambda exporter: self.upsert_all(exporter.index_name, size, documents)

    async def drop(self, exporter: PineconeExporter) -> None:
        await exporter.close()
        async with AsyncPinecone() as client:
            await client.delete_index(exporter.index_name)
