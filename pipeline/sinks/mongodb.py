"""The MongoDB sink: Atlas, or any MongoDB; searching needs Atlas or a server with ``mongot``.

Where the server has transactions, a file of up to 1,000 records is replaced in one. A reader that must not see two versions
of a file mixed reads with read concern ``snapshot`` (MongoDB 5.0 or later): with ``local``, the default, a ``find`` whose
answer comes in several batches, of which the first has 101 documents, may begin in one version and end in the other.

Search indexes follow the collection with a delay. A new version has new ids, so from a replacement on until they have caught
up, seconds as a rule, vector and text search find neither version of a file that was replaced in a transaction.

Text search cuts words as MongoDB's standard analyzer does, which has no dictionaries for scripts without spaces.

What belongs here: the exporter. Documents are ``mongodb_layout``'s, requests ``mongodb_store``'s, replacing
``mongodb_replace``'s and searching ``mongodb_search``'s. The connection string, which holds the password, is read from the
environment.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

import pyarrow as pa
from pydantic import Field
from pymongo import ASCENDING

from pipeline.sinks.base import Exporter, ReplaceReport, SearchHit, SearchRequest, SinkContext, SinkSettings, Snapshot
from pipeline.sinks.file_keys import FileKey
from pipeline.sinks.filters import fields_of_file, parse_filters
from pipeline.sinks.fusion import HYBRID_DEPTH, fuse_hits
from pipeline.sinks.generations import to_snapshots, written
from pipeline.sinks.mongodb_layout import (
    HEAD_FIELDS,
    Document,
    compared_projection,
    decode_compared,
    encode_file,
    scope,
    to_head,
)
from pipeline.sinks.mongodb_replace import FILES_PER_REQUEST, MongoWriter
from pipeline.sinks.mongodb_search import MAX_RESULTS, MongoSearch
from pipeline.sinks.mongodb_store import MongoStore
from pipeline.sinks.records import FileRecords
from pipeline.sinks.refusals import check_vectors, encode_all, sift
from pipeline.sinks.slicing import file_slices, named_slices, one_ahead

_FILES_PER_BATCH: Final = 500
_BYTES_PER_BATCH: Final = 64 * 2**20
_BYTES_PER_FETCH: Final = 32 * 2**20
_HEADS_PER_BATCH: Final = 10_000
_RECORDS_PER_BATCH: Final = 2_000


class MongoDBSettings(SinkSettings):
    """Which server and database, and how long to wait for it."""

    uri_env: str = Field(
        default="INDEXPORT_MONGODB_URI",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with the mongodb:// or mongodb+srv:// address, user and password included.",
    )
    database: str = Field(default="indexport", pattern=r"^[A-Za-z0-9_-]{1,63}$", description="May hold other data too.")
    collection_prefix: str = Field(
        default="indexport", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="How the names of its collections begin."
    )
    timeout_seconds: float = Field(default=60, gt=0, description="Longest wait for a server, and for an answer.")
    index_wait_seconds: float = Field(
        default=600, ge=0, description="Longest wait for search indexes to be built when provisioning; 0 does not wait."
    )

    def place(self) -> tuple[object, ...]:
        return os.environ.get(self.uri_env, self.uri_env), self.database, self.collection_prefix


class MongoDBExporter(Exporter):
    """One collection a model, ``{collection_prefix}_{model.slug}``, shared by all tenants, configs and processes.

    A file of up to 1,000 records is replaced in one transaction where the server has them; a larger one, or any on a standalone
    server, one generation beside the other.
    """

    settings_type = MongoDBSettings
    search_modes = frozenset({"vector", "text", "hybrid"})
    ids_by_version = True
    settings: MongoDBSettings

    def __init__(self, settings: MongoDBSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        name = f"{settings.collection_prefix}_{context.model.slug}"
        self._store = MongoStore(settings.uri_env, settings.database, name, context.model, settings.timeout_seconds)

    @property
    def collection_name(self) -> str:
        return self._store.collection_name

    async def provision(self) -> None:
        """Create the collection, its indexes and its search indexes, and wait until what was made can be queried.

        An index lacks only what was declared since it was made; it is extended, and rebuilt by the server beside the old one.
        """
        collection = await self._store.create()
        await MongoSearch(self._store, collection, self.context).provision(self.settings.index_wait_seconds)

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """A transaction or a generation a file; see the class."""
        self.check_files(files)
        writer = await self._writer()
        checks = (partial(fields_of_file, declared=self.context.metadata_fields), check_vectors)
        accepted, refused = await asyncio.to_thread(sift, files, checks)
        batches = file_slices(accepted, count=_FILES_PER_BATCH, size=_BYTES_PER_BATCH)
        total = ReplaceReport(0, 0, tuple(refused))
        encode = partial(encode_file, declared=self.context.metadata_fields)
        async for _, (encoded, too_large) in one_ahead(batches, partial(encode_all, encode=encode)):
            await writer.replace(encoded)
            total += written(encoded, too_large)
        return total

    async def _writer(self) -> MongoWriter:
        return MongoWriter(self._store, await self._store.collection(), self.context.tenant_id)

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """Three requests for every 1,000 files, and one for what is no file's."""
        writer = await self._writer()
        await writer.remove([FileKey(self.context.tenant_id, export_config_id, name) for name in parsed_directory_file_ids])
        await writer.remove_nameless(export_config_id)

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One query for all files, answered in batches of 10,000, or one for every 1,000 named ones."""
        collection = await self._store.collection()
        heads: list[Document] = []
        for file_ids in named_slices(parsed_directory_file_ids, count=FILES_PER_REQUEST):
            selected = {**scope(self.context.tenant_id, export_config_id, file_ids), "chunk_index": 0}
            heads += await self._store.read_all(
                "list files", collection, selected, projection=HEAD_FIELDS, batch_size=_HEADS_PER_BATCH
            )
        return to_snapshots(head for document in heads if (head := to_head(document)))

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 32 MB, or of one file that alone is larger; one query for all files or for every 1,000 named ones."""
        collection = await self._store.collection()
        order = [("parsed_directory_file_id", ASCENDING), ("chunk_index", ASCENDING)]
        for file_ids in named_slices(parsed_directory_file_ids, count=FILES_PER_REQUEST):
            selected = scope(self.context.tenant_id, export_config_id, file_ids)
            batches = self._store.stream(
                "read records",
                collection,
                selected,
                projection=compared_projection(),
                sort=order,
                batch_size=_RECORDS_PER_BATCH,
            )
            async for documents in _whole_files(batches):
                yield await asyncio.to_thread(
                    decode_compared, documents, self.context.model.dimension, self.context.metadata_fields
                )

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Vector search by cosine, text search by BM25, hybrid by relative score fusion of the two.

        Raises SinkConflict on a server without search and SinkUnavailable while an index cannot be queried.
        """
        self.check_search(request)
        if request.k > MAX_RESULTS:
            raise ValueError(f"k must be at most {MAX_RESULTS:,} for MongoDB, not {request.k:,}")
        conditions = parse_filters(request.filters, self.context.metadata_fields)
        found = MongoSearch(self._store, await self._store.collection(), self.context)
        if request.mode == "vector":
            return await found.by_vector(request, conditions, request.k)
        if request.mode == "text":
            return await found.by_text(request, conditions, request.k)
        depth = max(request.k, HYBRID_DEPTH)
        rankings = await asyncio.gather(found.by_vector(request, conditions, depth), found.by_text(request, conditions, depth))
        return fuse_hits(*rankings, request.k)

    async def list_scopes(self) -> frozenset[tuple[str, str]]:
        """One pass over an index."""
        collection = await self._store.collection()
        group = {"$group": {"_id": {"tenant": "$tenant_id", "config": "$export_config_id"}}}

        async def attempt() -> list[Document]:
            scoped = {"tenant_id": {"$gte": ""}, "export_config_id": {"$gte": ""}}
            stages = [{"$match": scoped}, group]  # nodes LlamaIndex has added belong to no tenant
            return await (await collection.aggregate(stages, hint="records")).to_list()

        found = await self._store.call("list the scopes", attempt)
        return frozenset((item["_id"]["tenant"], item["_id"]["config"]) for item in found)

    async def drop_collection(self) -> None:
        await self._store.drop()

    async def close(self) -> None:
        await self._store.close()


async def _whole_files(batches: AsyncIterator[tuple[list[Document], int]]) -> AsyncIterator[list[Document]]:
    """Batches sorted by file, cut anew between files once enough bytes are held."""
    held: list[Document] = []
    size = 0
    async for documents, added in batches:
        held += documents
        size += added
        if size >= _BYTES_PER_FETCH:
            last = held[-1].get("parsed_directory_file_id")
            cut = next(at for at, document in enumerate(held) if document.get("parsed_directory_file_id") == last)
            if cut:
                yield held[:cut]
                size = size * (len(held) - cut) // len(held)
                held = held[cut:]
    if held:
        yield held
