"""The MongoDB sink beside the vendor's own driver upserting the same documents into the same server.

``python -m benchmarks.sink mongodb`` runs it against SecantusDB in a process of its own, or against the server named by
``INDEXPORT_MONGODB_URI``; it drops the collections it made. Against SecantusDB only the ratio means something, and of
searches nothing does.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import bson
from pymongo import AsyncMongoClient, ReplaceOne

from benchmarks.endpoints import in_another_process
from pipeline.sinks.base import SinkContext
from pipeline.sinks.mongodb import MongoDBExporter, MongoDBSettings
from pipeline.sinks.mongodb_layout import encode_file
from pipeline.sinks.records import FileRecords

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


@dataclass(frozen=True)
class Comparison:
    """Both ways of writing the same batches."""

    context: SinkContext
    batches: Sequence[Sequence[FileRecords]]

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

    async def replace_all(self, exporter: MongoDBExporter) -> None:
        for files in self.batches:
            await exporter.replace_files(files)

    async def run(self, timed: Callable[[str, int, Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> list[Any]:
        """The best turn of each, turn by turn, into collections with the same indexes."""
        records = sum(file.table.num_rows for files in self.batches for file in files)
        documents = self.documents()
        bare, ours = [], []
        for turn in range(TURNS):
            exporter = await self.exporter(f"bare{turn}")
            work = partial(self.upsert_all, exporter.collection_name, documents)
            bare.append(await timed("the driver's upsert", records, work))
            await self._drop(exporter)
            exporter = await self.exporter(f"turn{turn}")
            ours.append(await timed("replace_files, best turn", records, partial(self.replace_all, exporter)))
            await self._drop(exporter)
        return [min(turns, key=lambda measure: measure.seconds) for turns in (bare, ours)]

    async def _drop(self, exporter: MongoDBExporter) -> None:
        await exporter.close()
        async with _client() as client:
            await client[exporter.settings.database].drop_collection(exporter.collection_name)
