"""Searching a collection: keeping its search indexes as they should be, and the queries that use them.

What belongs here: MongoDB's vector search and full-text search, which Atlas, Atlas Local and Community servers with ``mongot``
have and other servers lack. Both follow the collection with a delay.

A query of an index that is missing or not built yet finds nothing and says nothing (documented by the vendor), so an empty
answer is believed only of an index that can be queried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeVar

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure
from pymongo.operations import SearchIndexModel

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks.backoff import backoff
from pipeline.sinks.base import SearchHit, SearchRequest, SinkContext
from pipeline.sinks.filters import Condition
from pipeline.sinks.mongodb_index import (
    TEXT_INDEX,
    VECTOR_INDEX,
    grown_text_definition,
    grown_vector_definition,
    text_definition,
    vector_definition,
)
from pipeline.sinks.mongodb_layout import Document, decode, packed, projection, text_query, vector_filter
from pipeline.sinks.mongodb_store import MongoStore
from pipeline.sinks.records import to_records

T = TypeVar("T")

MAX_RESULTS: Final = 10_000
"""Candidates, and so results, of one vector query; documented by the vendor, as is the next."""

_MAX_DIMENSION: Final = 8_192
_CANDIDATES_PER_RESULT: Final = 20
_FEWEST_CANDIDATES: Final = 100
_NO_SEARCH: Final = frozenset({59, 115, 31082, 40324, 6047401})
"""How servers of various versions say that they have no search."""

_INDEX_EXISTS: Final = 68
_BUILT: Final = frozenset({"READY", "STALE"})
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 5.0

_log = logging.getLogger(__name__)


class _SearchMissing(Exception):
    """The server has no search."""


@dataclass(frozen=True, slots=True)
class _Index:
    name: str
    type: str
    define: Callable[[SinkContext], dict[str, Any]]
    grow: Callable[[Mapping[str, Any], SinkContext], dict[str, Any] | None]


_INDEXES: Final = (
    _Index(VECTOR_INDEX, "vectorSearch", vector_definition, grown_vector_definition),
    _Index(TEXT_INDEX, "search", text_definition, grown_text_definition),
)


class MongoSearch:
    """Search in one collection."""

    def __init__(self, store: MongoStore, collection: AsyncCollection[Document], context: SinkContext) -> None:
        self._store = store
        self._collection = collection
        self._context = context
        self._has_asked = False
        """For an index to be created or extended."""

    async def provision(self, wait_seconds: float) -> None:
        """Create or extend the indexes; who has had to waits until they are built, and sees that no other undid it meanwhile.

        What others have asked for is not waited for: records are written without indexes, an index being extended goes on
        answering, and a search says when there is none. A server without search is only told of in the log.

        Raises SinkConflict for an index that does not fit and SinkUnavailable when building takes longer than
        ``wait_seconds``; 0 does not wait.
        """
        deadline = monotonic() + wait_seconds
        asked = 1
        try:
            while not await self._advance() and self._has_asked:
                if monotonic() >= deadline:
                    if wait_seconds:
                        raise SinkUnavailable(
                            f"the search indexes of MongoDB collection {self._collection.name!r} are still being built after "
                            f"{wait_seconds:g} s; run again later, or set index_wait_seconds higher, or to 0 not to wait"
                        )
                    return
                await asyncio.sleep(backoff(asked, first=_FIRST_WAIT, longest=_LONGEST_WAIT))
                asked += 1
        except _SearchMissing:
            _log.warning("%s", self._missing())

    async def _advance(self) -> bool:
        """Ask for what is not yet asked for; whether all is built."""
        found = await self._list()
        dimension = self._context.model.dimension
        if dimension > _MAX_DIMENSION:
            raise ConfigError(f"MongoDB searches vectors of at most {_MAX_DIMENSION:,} dimensions, the model has {dimension:,}")
        return all([await self._advance_index(index, found.get(index.name)) for index in _INDEXES])

    async def _advance_index(self, index: _Index, found: Mapping[str, Any] | None) -> bool:
        if found is None or found["status"] == "DOES_NOT_EXIST":
            await self._request("create a search index", lambda: self._create(index))
            return False
        if found.get("type", index.type) != index.type or found["status"] == "FAILED":
            state = "could not be built" if found["status"] == "FAILED" else f"is of type {found['type']!r}"
            raise SinkConflict(
                f"search index {index.name!r} of MongoDB collection {self._collection.name!r} {state}; "
                "drop the index and provision again"
            )
        grown = index.grow(found["latestDefinition"], self._context)
        if grown:
            self._has_asked = True
            await self._request("extend a search index", lambda: self._collection.update_search_index(index.name, grown))
            return False
        return bool(found["queryable"]) and found["status"] in _BUILT

    async def _create(self, index: _Index) -> None:
        self._has_asked = True
        model = SearchIndexModel(index.define(self._context), index.name, index.type)
        try:
            await self._collection.create_search_index(model)
        except OperationFailure as error:
            if error.code != _INDEX_EXISTS:  # another process was first, or the list lags behind
                raise

    async def _list(self) -> dict[str, Mapping[str, Any]]:
        async def attempt() -> list[Mapping[str, Any]]:
            return await (await self._collection.list_search_indexes()).to_list()

        return {found["name"]: found for found in await self._request("list the search indexes", attempt)}

    async def _request(self, action: str, send: Callable[[], Awaitable[T]]) -> T:
        """Raises _SearchMissing where the server has no search."""

        async def attempt() -> T:
            try:
                return await send()
            except OperationFailure as error:
                if error.code in _NO_SEARCH:
                    raise _SearchMissing from None
                raise

        return await self._store.call(action, attempt)

    def _missing(self) -> str:
        return (
            f"MongoDB collection {self._collection.name!r} is on a server without search: records are kept, but cannot be "
            "searched; use Atlas, Atlas Local, or a Community replica set of version 8.2 or later with mongot"
        )

    async def by_vector(self, request: SearchRequest, conditions: Sequence[Condition], k: int) -> list[SearchHit]:
        """Scores are cosines: MongoDB's own is (1 + cosine) / 2 (documented by the vendor)."""
        assert request.vector is not None  # noqa: S101 - check_search has seen to it
        stage = {
            "index": VECTOR_INDEX,
            "path": "embedding",
            "queryVector": packed(request.vector),
            "numCandidates": min(MAX_RESULTS, max(_CANDIDATES_PER_RESULT * k, _FEWEST_CANDIDATES)),
            "limit": k,
            "filter": vector_filter(self._context.tenant_id, request.export_config_id, conditions),
        }
        found = await self._find(VECTOR_INDEX, [{"$vectorSearch": stage}], "vectorSearchScore")
        return [SearchHit(hit.record, min(1.0, max(-1.0, 2 * hit.score - 1))) for hit in found]

    async def by_text(self, request: SearchRequest, conditions: Sequence[Condition], k: int) -> list[SearchHit]:
        assert request.text is not None  # noqa: S101 - check_search has seen to it
        query = text_query(request.text, self._context.tenant_id, request.export_config_id, conditions)
        return await self._find(TEXT_INDEX, [{"$search": {"index": TEXT_INDEX, "compound": query}}, {"$limit": k}], "searchScore")

    async def _find(self, index: str, stages: list[Document], score: str) -> list[SearchHit]:
        pipeline = [*stages, {"$project": {**projection(vectors=False), "score": {"$meta": score}}}]

        async def attempt() -> list[Document]:
            try:
                return await (await self._collection.aggregate(pipeline)).to_list()
            except OperationFailure:
                await self._list()  # a server without search may stumble over something else first
                raise

        try:
            documents = await self._request("search", attempt)
            if not documents:
                await self._check_queryable(index)
        except _SearchMissing:
            raise SinkConflict(self._missing()) from None
        records = to_records(decode(documents, self._context.model.dimension, vectors=False))
        return [SearchHit(record, document["score"]) for record, document in zip(records, documents, strict=True)]

    async def _check_queryable(self, index: str) -> None:
        found = (await self._list()).get(index)
        if found is None or not found["queryable"]:
            state = "is missing; provision the sink" if found is None else f"is {found['status']}; search again when it is built"
            raise SinkUnavailable(f"search index {index!r} of MongoDB collection {self._collection.name!r} {state}")
