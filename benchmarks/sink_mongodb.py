"""The MongoDB sink beside the vendor's own driver upserting the same documents into the same server.

``python -m benchmarks.sink mongodb`` runs it against SecantusDB in a process of its own, or against the server named by
``INDEXPORT_MONGODB_URI``; it drops the collections it made. Against SecantusDB only the ratio means something, and of
searches nothing does.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import bson
from pymongo import AsyncMongoClient, ReplaceOne

from benchmarks import comparison
from benchmarks.endpoints import in_another_process
from pipeline.sinks.mongodb import MongoDBExporter, MongoDBSettings
from pipeline.sinks.mongodb_layout import encode_file

URI = "INDEXPORT_MONGODB_URI"
TURNS = 3

Documents = list[dict[str, Any]]


def server() -> AbstractContextManager[None]:
    """The one that is configured, or one for the time being."""
    return in_another_process(_serving, (URI,), unless=URI)


@contextmanager
def _serving() -> Iterator[tuple[str, ...]]:
    from pipeline_tests.emulators.atlas_search import AtlasSearch
    from pipeline_tests.emulators.mongodb import mongo_server

    with mongo_server(search=AtlasSearch()) as made:
        yield (made.uri,)


def _client() -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient(os.environ[URI])


class Comparison(comparison.Comparison[MongoDBExporter]):
    """Both ways of writing the same batches."""

    client = "the driver's upsert"

    def documents(self) -> list[Documents]:
        """What the driver takes."""
        encoded = [[encode_file(file, self.context.metadata_fields) for file in files] for files in self.batches]
        return [[bson.decode(write.document.raw) for file in files for write in file.writes] for files in encoded]

    async def exporter(self, prefix: str) -> MongoDBExporter:
        made = MongoDBExporter(MongoDBSettings(collection_prefix=prefix), self.context)
        await made.provision()
        return made

    async def upsert_all(self, collection: str, batches: Sequence[Documents]) -> None:
        async with _client() as client:
            for documents in batches:
                requests = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in documents]
                await client[MongoDBSettings().database][collection].bulk_write(requests, ordered=False)

    def by_client(self) -> Callable[[MongoDBExporter], Awaitable[None]]:
        documents = self.documents()
        return lambda exporter: self.upsert_all(exporter.collection_name, documents)

    async def drop(self, exporter: MongoDBExporter) -> None:
        await exporter.close()
        async with _client() as client:
            await client[exporter.settings.database].drop_collection(exporter.collection_name)
