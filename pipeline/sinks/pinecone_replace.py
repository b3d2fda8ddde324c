"""Replacing and removing files in one Pinecone namespace, one generation of ids beside the other.

What belongs here: what ``generations`` asks of a store, as requests to Pinecone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from pipeline.sinks.file_keys import FileKey
from pipeline.sinks.generations import FileWrites, FirstFound, Head, remove_generations
from pipeline.sinks.pinecone_layout import MAX_METADATA_BYTES, PENDING, Write, other_versions, scope, to_head, without_file
from pipeline.sinks.pinecone_store import PineconeStore
from pipeline.sinks.slicing import each, named_slices, slices

FILES_PER_REQUEST: Final = 500
"""Bounds the filters, which name every file of a request."""

MAX_REQUEST_BYTES: Final = 2_000_000
"""Of one upsert; documented by the vendor as 2 MB."""

IDS_IN_A_URL: Final = 40
"""Ids of records to fetch travel in the request's address."""

_ENVELOPE_BYTES: Final = 1_000
_MAX_RESULT_BYTES: Final = 4_000_000
"""Of a query's answer; documented by the vendor as 4 MB. Reads by filter keep to about as much."""

_METADATA_GUESSED: Final = MAX_METADATA_BYTES // 8
_NUMBER_BYTES: Final = 13
_UPDATES_AT_ONCE: Final = 4
"""Below the 100 updates a second that the vendor documents for a namespace."""


def page_size(dimension: int) -> int:
    """How many records to ask for at once."""
    return max(1, min(10_000, _MAX_RESULT_BYTES // (dimension * _NUMBER_BYTES + _METADATA_GUESSED)))


@dataclass(frozen=True, slots=True)
class PineconeWriter:
    """Writes to one namespace, that of one config of one tenant; what ``replace_generations`` needs (a GenerationStore)."""

    max_records: ClassVar[int] = 1_000
    max_bytes: ClassVar[int] = MAX_REQUEST_BYTES - _ENVELOPE_BYTES
    max_ids: ClassVar[int] = 1_000
    concurrency: ClassVar[int] = 8

    store: PineconeStore
    namespace: str
    tenant_id: str
    export_config_id: str
    dimension: int

    first_found: FirstFound = field(default_factory=FirstFound, init=False)

    async def read_heads(self, keys: Sequence[FileKey]) -> list[Head]:
        heads = await self.heads([key.file_id for key in keys])
        self.first_found.note(keys, heads)
        return heads

    async def withdraw(self, file: FileWrites[Write]) -> None:
        """Delete what has been written of a file's new version, its head last, unless it is all there was before."""
        if not self.first_found.was_all(file):
            await each(slices(file.ids[1:], count=self.max_ids), self.delete, concurrency=self.concurrency)
            await self.delete(file.ids[:1])

    async def heads(self, file_ids: Sequence[str] | None) -> list[Head]:
        """Chunk 0 of every generation of these files, or of all there are, own writes included."""
        await self.store.see_own_writes(self.namespace)
        found: list[Head] = []
        for some in named_slices(file_ids, count=FILES_PER_REQUEST):
            named = {} if some is None else {"parsed_directory_file_id": some}
            where = scope(self.tenant_id, self.export_config_id, chunk_index=0, **named)
            async for page in self.store.pages(self.namespace, where, limit=page_size(self.dimension)):
                found += [head for record in page if (head := to_head(record.metadata or {}))]
        return found

    async def upsert(self, writes: Sequence[Write]) -> None:
        await self.store.upsert(self.namespace, writes)

    async def mark(self, ids: Sequence[str], marker: str) -> None:
        """Record by record: an update leaves alone what is gone, where an upsert would bring it back without its body."""

        async def update(record_id: str) -> None:
            await self.store.update(self.namespace, record_id, {PENDING: marker})

        await each(ids, update, concurrency=_UPDATES_AT_ONCE)

    async def count_present(self, ids: Sequence[str]) -> int:
        """All of them, once they can be read: to look would cost as much as it did to write them."""
        await self.store.see_own_writes(self.namespace)
        return len(ids)

    async def clear_pending(self, heads: Sequence[Write]) -> int:
        """All at once by a filter, and one by one where it has not found them all: its reads may lag."""
        found = 0
        for some in slices(heads, count=FILES_PER_REQUEST):
            if len(some) > 1 and await self._clear_found(some) >= len(some):
                found += len(some)
            else:
                found += await self._clear([head.id for head in some])
        return found

    async def _clear(self, ids: Sequence[str]) -> int:
        """The answer to an update does not say whether the record exists. What is waited for here, the next read finds done."""
        await self.mark(ids, "")
        await self.store.see_own_writes(self.namespace)
        return sum([len(await self.store.fetch(self.namespace, some)) for some in slices(ids, count=IDS_IN_A_URL)])

    async def _clear_found(self, heads: Sequence[Write]) -> int:
        """How many of these a filter has found and cleared."""
        named = {name: [head.metadata[name] for head in heads] for name in ("parsed_directory_file_id", "record_set_hash")}
        where = scope(self.tenant_id, self.export_config_id, chunk_index=0, **named)
        return await self.store.update_where(self.namespace, where, {PENDING: ""})

    async def delete(self, ids: Sequence[str]) -> None:
        await self.store.delete(self.namespace, ids)

    async def sweep(self, files: Sequence[FileWrites[Write]]) -> None:
        """One request more for every 500 files: a version whose head is lost is told of by nothing that is read anyway.

        The filter sees the new records, for which ``count_present`` has waited.
        """
        for some in slices(files, count=FILES_PER_REQUEST):
            await self.store.delete_where(self.namespace, other_versions(self.tenant_id, self.export_config_id, some))

    async def remove(self, keys: Sequence[FileKey]) -> None:
        """Delete what the heads of these files name, then whatever else says that it is theirs."""
        await remove_generations(self, keys)
        await self.store.see_own_writes(self.namespace)
        where = scope(self.tenant_id, self.export_config_id, parsed_directory_file_id=[key.file_id for key in keys])
        await self.store.delete_where(self.namespace, where)

    async def remove_nameless(self) -> None:
        """Delete the records that say of no file."""
        await self.store.delete_where(self.namespace, without_file(self.tenant_id, self.export_config_id))
