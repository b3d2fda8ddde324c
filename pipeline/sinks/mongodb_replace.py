"""Replacing and removing files in MongoDB: in a transaction, or one generation beside the other.

What belongs here: which way a file goes, and the requests of both. Ids carry the record set's digest either way, so a file
may go one way today and the other tomorrow, and a sink beside this one (``llama_docstore``) knows them. A record written in a
transaction has no ``generation`` field; the unique index ``heads`` then lets only one such version of a file exist, so that of
two overlapping transactions one begins anew.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pymongo import ReplaceOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection

from pipeline.sinks.file_keys import FileKey, Generation, by_config
from pipeline.sinks.generations import FileWrites, Head, replace_generations
from pipeline.sinks.mongodb_layout import GENERATION, HEAD_FIELDS, PENDING, Document, Write, scope, to_head
from pipeline.sinks.mongodb_store import MongoStore
from pipeline.sinks.slicing import each, slices

FILES_PER_REQUEST: Final = 1_000
TRANSACTION_RECORDS: Final = 1_000
"""A transaction should not change more documents than this; documented by the vendor."""

_REQUEST_BYTES: Final = 32 * 2**20
"""Well below the 48 MB of one message; documented by the vendor."""

_CONCURRENCY: Final = 4
_REMOVED: Final = str(Generation("removed", 0))
"""Marks the heads of files that are being removed."""


class MongoWriter:
    """Writes to one collection; also what ``replace_generations`` needs of it (a GenerationStore)."""

    max_records: Final = 1_000
    max_bytes: Final = _REQUEST_BYTES
    max_ids: Final = 10_000
    concurrency: Final = _CONCURRENCY

    def __init__(self, store: MongoStore, collection: AsyncCollection[Document], tenant_id: str) -> None:
        self._store = store
        self._collection = collection
        self._tenant_id = tenant_id

    async def replace(self, files: Sequence[FileWrites[Write]]) -> None:
        """Make the collection hold exactly these records of these files."""
        held: Counter[FileKey] = Counter()
        for head in await self.read_heads([file.key for file in files]):
            held[head.key] += head.snapshot.chunk_count
        await self.remove([file.key for file in files if not file.writes])
        light: list[tuple[FileWrites[Write], int]] = []
        heavy: list[tuple[FileWrites[Write], int]] = []
        for file in files:
            if file.writes:
                weighed = (file, self._weight(file, held[file.key]))
                (light if self._store.has_transactions and weighed[1] <= TRANSACTION_RECORDS else heavy).append(weighed)
        together = slices(light, count=FILES_PER_REQUEST, size=TRANSACTION_RECORDS, size_of=lambda item: item[1])
        await each(together, lambda some: self._replace_at_once([file for file, _ in some]), concurrency=_CONCURRENCY)
        await replace_generations(self, [_beside_others(file) for file, _ in heavy])

    def _weight(self, file: FileWrites[Write], held: int) -> int:
        """What of a transaction a file takes, in records: those it writes, those it replaces, or as many as its bytes are."""
        size = sum(write.size for write in file.writes)
        return max(len(file.writes), held, math.ceil(size * TRANSACTION_RECORDS / _REQUEST_BYTES))

    async def _replace_at_once(self, files: Sequence[FileWrites[Write]]) -> None:
        async def work(session: AsyncClientSession) -> None:
            """By their ids too: a record that no longer says whose it is would be in the way of the one to write."""
            ids = [found for file in files for found in file.ids]
            replaced = {"$or": [_records_of([file.key for file in files]), {"_id": {"$in": ids}}]}
            await self._collection.delete_many(replaced, session=session)
            await self._collection.insert_many([write.document for file in files for write in file.writes], session=session)

        await self._store.in_transaction("replace files", work)

    async def remove(self, keys: Sequence[FileKey]) -> None:
        """Delete every record of these files, their heads last and marked: what a crash leaves never looks whole."""
        for some in slices(keys, count=FILES_PER_REQUEST):
            selected = _records_of(some)
            marked = {"$set": {PENDING: _REMOVED}}
            await self._update({**selected, "chunk_index": 0}, marked)
            await self._delete({**selected, "chunk_index": {"$gt": 0}})
            await self._delete(selected)

    async def remove_nameless(self, export_config_id: str) -> None:
        """Delete the records of a config that say of no file."""
        await self._delete({**scope(self._tenant_id, export_config_id), "parsed_directory_file_id": None})

    async def read_heads(self, keys: Sequence[FileKey]) -> list[Head]:
        heads: list[Head] = []
        for some in slices(keys, count=FILES_PER_REQUEST):
            selected = {**_records_of(some), "chunk_index": 0}
            found = await self._store.read_all("look up files", self._collection, selected, projection=HEAD_FIELDS)
            heads += [head for document in found if (head := to_head(document))]
        return heads

    async def upsert(self, writes: Sequence[Write]) -> None:
        await self._store.bulk_write(
            self._collection, [ReplaceOne({"_id": write.id}, write.document, upsert=True) for write in writes]
        )

    async def mark(self, ids: Sequence[str], marker: str) -> None:
        await self._update(self._with_ids(ids), {"$set": {PENDING: marker}})

    async def count_present(self, ids: Sequence[str]) -> int:
        return await self._store.call("count records", lambda: self._collection.count_documents(self._with_ids(ids)))

    async def clear_pending(self, heads: Sequence[Write]) -> int:
        return await self._update(self._with_ids([head.id for head in heads]), {"$unset": {PENDING: ""}})

    async def delete(self, ids: Sequence[str]) -> None:
        await self._delete(self._with_ids(ids))

    async def sweep(self, files: Sequence[FileWrites[Write]]) -> None:
        for some in slices(files, count=FILES_PER_REQUEST):
            versions = [file.record_set_hash for file in some]
            await self._delete({**_records_of([file.key for file in some]), "record_set_hash": {"$nin": versions}})

    def _with_ids(self, ids: Sequence[str]) -> Document:
        return {"_id": {"$in": list(ids)}, "tenant_id": self._tenant_id}

    async def _update(self, selected: Document, change: Document) -> int:
        """How many documents were selected."""
        return (await self._store.call("mark records", lambda: self._collection.update_many(selected, change))).matched_count

    async def _delete(self, selected: Document) -> None:
        await self._store.call("delete records", lambda: self._collection.delete_many(selected))


def _records_of(keys: Sequence[FileKey]) -> Document:
    """Selects every record of these files."""
    scopes = [scope(*config, file_ids) for config, file_ids in by_config(keys).items()]
    return scopes[0] if len(scopes) == 1 else {"$or": scopes}


def _beside_others(file: FileWrites[Write]) -> FileWrites[Write]:
    return replace(file, writes=[write.with_field(GENERATION, file.record_set_hash) for write in file.writes])
