"""MongoDB in process, with or without Atlas's search; and a real one where a live test asks for it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient
from pymongo.asynchronous.collection import AsyncCollection

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.mongodb import MongoDBExporter, MongoDBSettings
from pipeline.sinks.mongodb_layout import field_name
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.emulators.atlas_search import AtlasSearch

if TYPE_CHECKING:
    from pipeline_tests.emulators.mongodb import MongoServer

PASSWORD = "s3cret-p%40ss"
UNREACHABLE_URI = f"mongodb://writer:{PASSWORD}@127.0.0.1:9/?authSource=admin"
NO_ENGINE = "SecantusDB is not installed, so the mongodb sink is NOT TESTED: install requirements-secantus.lock"

Collection = AsyncCollection[dict[str, Any]]

_UNREACHABLE_ENV = "UNREACHABLE_MONGODB_URI"


@dataclass
class MongoDBUnderTest:
    """``search`` sees a write only when ``settle`` lets it, where the server has one."""

    settings: MongoDBSettings
    server: MongoServer | None = None
    search: AtlasSearch | None = None
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = (PASSWORD, "s3cret-p@ss", UNREACHABLE_URI)
    holds_types: bool = False
    always_there: Sequence[str] = ()
    collections: set[str] = field(default_factory=set)
    """Every collection it was asked to open."""

    def make_exporter(self, context: SinkContext) -> Exporter:
        exporter = MongoDBExporter(self.settings, context)
        self.collections.add(exporter.collection_name)
        return exporter

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return MongoDBExporter(MongoDBSettings(uri_env=_UNREACHABLE_ENV, timeout_seconds=0.3), context)

    async def settle(self, exporter: Exporter) -> None:
        if self.search:
            self.search.catch_up()

    def alter(self, file_id: str, chunk_index: int, field: str, value: object) -> None:
        self._set(file_id, chunk_index, field_name(field), value)

    def alter_copy(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        self._set(file_id, chunk_index, f"metadata.{name}", value)

    def _set(self, file_id: str, chunk_index: int, name: str, value: object) -> None:
        assert self.server is not None
        change = {"$unset": {name: ""}} if value is None else {"$set": {name: value}}
        client: MongoClient[dict[str, Any]] = MongoClient(self.server.uri)
        with client:
            database = client[self.settings.database]
            where = {"parsed_directory_file_id": file_id, "chunk_index": chunk_index}
            names = database.list_collection_names()
            changed = sum(database[collection].update_one(where, change).modified_count for collection in names)
        assert changed == 1


@contextmanager
def emulated_mongodb(*, search: AtlasSearch | None, replica_set: bool = True) -> Iterator[MongoDBUnderTest]:
    pytest.importorskip("secantus", reason=NO_ENGINE)
    from pipeline_tests.emulators.mongodb import mongo_server

    with mongo_server(search=search, replica_set=replica_set) as server, pytest.MonkeyPatch.context() as patch:
        uri_env = f"CONFORMANCE_MONGODB_URI_{uuid.uuid4().hex[:8]}"
        patch.setenv(uri_env, server.uri)
        patch.setenv(_UNREACHABLE_ENV, UNREACHABLE_URI)
        yield MongoDBUnderTest(MongoDBSettings(uri_env=uri_env), server, search)


def mongodb(directory: Path) -> AbstractContextManager[MongoDBUnderTest]:
    """It keeps nothing in the directory."""
    return emulated_mongodb(search=AtlasSearch(build_seconds=0.05, lag_seconds=math.inf))


def collection_name(bench: Bench) -> str:
    """Of the collection a bench on a MongoDBUnderTest writes to."""
    assert isinstance(bench.exporter, MongoDBExporter)
    return bench.exporter.collection_name
