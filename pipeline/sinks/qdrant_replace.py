"""The requests a replace in Qdrant consists of; their order is ``pipeline.sinks.generations``'."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from qdrant_client import models

from pipeline.sinks import qdrant_layout as layout
from pipeline.sinks.base import SNAPSHOT_FIELDS
from pipeline.sinks.file_keys import FileKey, by_config
from pipeline.sinks.generations import FileWrites, Head, replace_generations
from pipeline.sinks.http_store import RequestTooLarge
from pipeline.sinks.qdrant_layout import PointWrite
from pipeline.sinks.qdrant_store import Limits, QdrantStore
from pipeline.sinks.slicing import slices

MAX_REQUEST_BYTES: Final = 4 * 2**20
"""The vendor advises requests of less than 5 MB; a server takes 32 MiB by default."""

_LEAST_REQUEST_BYTES: Final = 2**16


class QdrantWriter:
    """GenerationStore over one collection. Every write waits until it is applied, so every read sees it."""

    concurrency: Final = 4

    def __init__(self, store: QdrantStore, limits: Limits) -> None:
        self.max_records = limits.upsert
        self.max_bytes = MAX_REQUEST_BYTES
        self.max_ids = limits.names
        self._store = store
        self._collection = store.collection

    async def read_heads(self, keys: Sequence[FileKey]) -> Sequence[Head]:
        """One request for every 1,000 heads found, and at least one for every 500 files."""
        heads = []
        for (tenant_id, export_config_id), file_ids in by_config(keys).items():
            for some in slices(file_ids, count=self.max_ids):
                where = layout.scope(tenant_id, export_config_id, some)
                heads += [head async for found in read_heads(self._store, tenant_id, where) for head in found]
        return heads

    async def upsert(self, writes: Sequence[PointWrite]) -> None:
        points = [write.point for write in writes]
        await self._store.call("write records", lambda client: client.upsert(self._collection, points, wait=True))

    async def count_present(self, ids: Sequence[str]) -> int:
        where = layout.having_ids(ids)
        counted = await self._store.call("count records", lambda client: client.count(self._collection, where, exact=True))
        return counted.count

    async def mark(self, ids: Sequence[str], marker: str) -> None:
        where, payload = layout.having_ids(ids), {layout.PENDING: marker}
        await self._store.call("mark files", lambda client: client.set_payload(self._collection, payload, where, wait=True))

    async def clear_pending(self, heads: Sequence[PointWrite]) -> int:
        """One request more than to clear, whose answer does not say how many it has found."""
        ids = [write.id for write in heads]
        where, keys = layout.having_ids(ids), [layout.PENDING]
        await self._store.call("finish files", lambda client: client.delete_payload(self._collection, keys, where, wait=True))
        return await self.count_present(ids)

    async def delete(self, ids: Sequence[str]) -> None:
        points = models.PointIdsList(points=list(ids))
        await self._store.call("delete old records", lambda client: client.delete(self._collection, points, wait=True))

    async def sweep(self, files: Sequence[FileWrites[PointWrite]]) -> None:
        for some in slices(files, count=self.max_ids):
            kept = models.Filter(must_not=[layout.one_of("record_set_hash", [file.record_set_hash for file in some])])
            for (tenant_id, export_config_id), file_ids in by_config([file.key for file in some]).items():
                where = models.Filter(must=[*layout.scope(tenant_id, export_config_id, file_ids), kept])
                await self._store.delete_where("delete stray records", where)


async def replace_within_limits(writer: QdrantWriter, files: Sequence[FileWrites[PointWrite]]) -> None:
    """``replace_generations``; where a proxy takes smaller requests than the server, half as large ones from then on, down to
    those no proxy should refuse. Raises RequestTooLarge when even these are."""
    while True:
        try:
            return await replace_generations(writer, files)
        except RequestTooLarge:
            if writer.max_bytes <= _LEAST_REQUEST_BYTES:
                raise
            writer.max_bytes //= 2


async def read_heads(store: QdrantStore, tenant_id: str, where: Sequence[models.Condition]) -> AsyncIterator[list[Head]]:
    """Chunk 0 of every version of the files a scope holds, a page at a time."""
    heads = models.Filter(must=[*where, layout.equals("chunk_index", 0)])
    async for records in store.pages("list files", heads, [*SNAPSHOT_FIELDS, layout.PENDING]):
        found = [layout.head(record.payload or {}, tenant_id) for record in records]
        yield [head for head in found if head]
