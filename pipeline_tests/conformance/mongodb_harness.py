"""MongoDB in process, with Atlas's search, which sees a write only when ``settle`` lets it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.mongodb import MongoDBExporter, MongoDBSettings
from pipeline_tests.emulators.atlas_search import AtlasSearch

if TYPE_CHECKING:
    from pipeline_tests.emulators.mongodb import MongoServer

PASSWORD = "s3cret-p%40ss"
UNREACHABLE_URI = f"mongodb://writer:{PASSWORD}@127.0.0.1:9/?authSource=admin"
NO_ENGINE = "SecantusDB is not installed, so MongoDB is NOT TESTED: pip install -r requirements-secantus.lock"


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@dataclass
class MongoDBUnderTest:
    server: MongoServer
    search: AtlasSearch
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: Sequence[str] = (PASSWORD, "s3cret-p@ss", UNREACHABLE_URI)

    def make_exporter(self, context: SinkContext) -> Exporter:
        return MongoDBExporter(MongoDBSettings(uri_env="CONFORMANCE_MONGODB_URI"), context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        return MongoDBExporter(MongoDBSettings(uri_env="UNREACHABLE_MONGODB_URI", timeout_seconds=0.3), context)

    async def settle(self, exporter: Exporter) -> None:
        self.search.catch_up()


@contextmanager
def mongodb(directory: Path) -> Iterator[MongoDBUnderTest]:
    pytest.importorskip("secantus", reason=NO_ENGINE)
    from pipeline_tests.emulators.mongodb import mongo_server

    search = AtlasSearch(build_seconds=0.05, lag_seconds=math.inf)
    with (
        mongo_server(search=search) as server,
        environment(CONFORMANCE_MONGODB_URI=server.uri, UNREACHABLE_MONGODB_URI=UNREACHABLE_URI),
    ):
        yield MongoDBUnderTest(server, search)
