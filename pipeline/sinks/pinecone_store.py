"""One Pinecone index over the vendor's SDK: finding and making it, its requests, and waiting out staleness.

Every request made here may be repeated: it leaves done twice what it leaves done once.

Pinecone's reads lag behind its writes. A write is answered with its position in the log of its namespace (LSN), a query with
the position it has seen (documented by the vendor). Reads here begin when a query has seen this store's own last write. The
SDK hides the position of a delete and version 9 knows half the names of the headers, so both are dealt with here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any, Final, TypeVar

import pinecone
from pinecone import AsyncIndex, AsyncPinecone, ServerlessSpec, Vector

from pipeline.api_keys import read_key
from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks.backoff import backoff
from pipeline.sinks.http_store import Failed, Garbled, HttpStore, Missing, RequestRefused, Unanswered
from pipeline.sinks.pinecone_layout import METRIC, Filter, Metadata, Write, index_tags
from pipeline.urls import is_http_url, origin

T = TypeVar("T")

API_KEY: Final = "PINECONE_API_KEY"
CONTROLLER_HOST: Final = "PINECONE_CONTROLLER_HOST"

_ONCE: Final = pinecone.RetryConfig(max_retries=0)
"""Asking again is ``HttpStore``'s: the SDK waits a minute or more each time, where Pinecone asks for as much."""

_LONGEST_POLL: Final = 2.0
_FIRST_LOOK: Final = 0.0625

_COMMITTED: Final = ("x-pinecone-request-lsn", "x-pinecone-lsn-committed")
_SEEN: Final = ("x-pinecone-max-indexed-lsn", "x-pinecone-lsn-reconciled")
_NOBODY: Final = "indexport-fence"
"""A record that never exists: updating it changes nothing and answers with a position (documented by the vendor)."""


class WriteRefused(RequestRefused):
    """Pinecone will not hold these records."""


class _NamespaceMissing(SinkUnavailable):
    """The namespace does not exist; nothing is in it."""


class PineconeStore(HttpStore):
    """One index. Methods that take a namespace find nothing in one that does not exist."""

    vendor = "Pinecone"
    key_variable = API_KEY

    def __init__(
        self, name: str, model: ModelIdentity, *, controller_host: str | None, request_seconds: float, freshness_seconds: float
    ) -> None:
        super().__init__(f"index {name!r}")
        self.name = name
        self._model = model
        self._controller_host = controller_host
        self._request_seconds = request_seconds
        self._freshness_seconds = freshness_seconds
        self._client: AsyncPinecone | None = None
        self._index: AsyncIndex | None = None
        self._opening = asyncio.Lock()
        self._committed: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._undated: set[str] = set()
        self._looking: dict[str, asyncio.Lock] = {}

    async def create(self, *, cloud: str, region: str, timeout_seconds: float) -> None:
        """Make the index when it is missing, and wait until it is ready.

        Raises SinkConflict when it exists and is not ours or does not fit, SinkUnavailable when it does not become ready.
        """
        deadline = monotonic() + timeout_seconds
        attempt = 0
        while True:
            attempt += 1
            try:
                found = await self._describe()
            except Missing:
                await self._create(cloud, region)
                state = "missing"
            else:
                self._check(found)
                if found.status.ready:
                    return
                state = found.status.state
            if state in ("InitializationFailed", "Terminating", "Disabled") or monotonic() > deadline:
                raise SinkUnavailable(
                    f"Pinecone index {self.name!r} is {state} and does not become ready; look at it in the console"
                )
            await asyncio.sleep(backoff(attempt, longest=_LONGEST_POLL))

    async def _create(self, cloud: str, region: str) -> None:
        client = self._connected()
        action = f"create index {self.name!r} in region {region!r} of cloud {cloud!r}"

        async def ask() -> None:
            try:
                await client.create_index(
                    self.name,
                    ServerlessSpec(cloud=cloud, region=region),
                    dimension=self._model.dimension,
                    metric=METRIC,
                    timeout=-1,
                    tags=index_tags(self._model),
                )
            except pinecone.ConflictError:
                return  # another process was first
            except pinecone.NotFoundError as error:
                told = self._quoted(error.message)
                raise RequestRefused(f"Pinecone cannot {action}: {told}; correct the sink's cloud and region") from None

        await self._ask(action, ask)

    async def _describe(self) -> Any:
        client = self._connected()
        return await self._ask("describe the index", lambda: client.describe_index(self.name))

    def _check(self, found: Any) -> None:
        """Both majors of the SDK answer these attributes, from different forms of the same description."""
        held = (getattr(found, "dimension", None), getattr(found, "metric", None), getattr(found, "vector_type", None))
        if held != (self._model.dimension, METRIC, "dense"):
            raise SinkConflict(
                f"Pinecone index {self.name!r} holds {held[2]} vectors of dimension {held[0]} with metric {held[1]}, "
                f"not dense ones of dimension {self._model.dimension} with metric {METRIC}; "
                "choose another index_prefix, or delete the index"
            )
        wanted = index_tags(self._model)
        tags = dict(found.tags or {})
        if {name: tags.get(name) for name in wanted} != wanted:
            raise SinkConflict(
                f"Pinecone index {self.name!r} is not ours or holds another model's vectors than {self._model.name!r}: it lacks "
                f"the tags {', '.join(f'{name}={value}' for name, value in wanted.items())}; choose another index_prefix, "
                "or set the tags if the index is empty"
            )

    def _connected(self) -> AsyncPinecone:
        """The client, made when first used: a sink can be declared where its key is not known."""
        if self._client is None:
            key = read_key(API_KEY)
            if not key:
                raise ConfigError(f"Pinecone needs an API key; set {API_KEY}")
            try:
                self._client = AsyncPinecone(
                    api_key=key, host=self._controller_host, timeout=self._request_seconds, retry_config=_ONCE
                )
            except pinecone.PineconeError as error:
                raise ConfigError(f"Pinecone cannot be used: {self._quoted(str(error))}") from None
        if not is_http_url(self._client.config.host):
            raise ConfigError(f"Pinecone's control plane has no http(s) URL; correct controller_host, or {CONTROLLER_HOST}")
        return self._client

    async def _opened(self) -> AsyncIndex:
        async with self._opening:
            if self._index is None:
                found = await self._describe()
                self._check(found)
                if not found.host:
                    raise SinkUnavailable(
                        f"Pinecone index {self.name!r} is not ready yet; provision the sink first (a sync does)"
                    )
                self._index = _asking_once(await self._connected().index(host=found.host))
            return self._index

    async def upsert(self, namespace: str, writes: Sequence[Write]) -> None:
        """Raises WriteRefused."""
        index = await self._opened()
        vectors = [write.to_vector() for write in writes]
        try:
            answer = await self._ask("write records", lambda: index.upsert(vectors=vectors, namespace=namespace))
        except RequestRefused as error:
            raise WriteRefused(str(error)) from None
        self._note(namespace, answer)

    async def update(self, namespace: str, record_id: str, metadata: Metadata) -> None:
        """Set metadata fields of a record if it exists."""
        index = await self._opened()
        with suppress(_NamespaceMissing):
            answer = await self._ask(
                "mark a record", lambda: index.update(id=record_id, set_metadata=metadata, namespace=namespace)
            )
            self._note(namespace, answer)

    async def update_where(self, namespace: str, where: Filter, metadata: Metadata) -> int:
        """Set metadata fields of the records a filter finds now, and answer how many these are.

        It may miss what was written just before. The vendor documents five such requests a second for a namespace.
        """
        index = await self._opened()
        try:
            answer = await self._ask(
                "mark records", lambda: index.update(filter=where, set_metadata=metadata, namespace=namespace)
            )
        except _NamespaceMissing:
            return 0
        self._undated.add(namespace)
        return answer.matched_records or 0

    async def delete(self, namespace: str, ids: Sequence[str]) -> None:
        await self._delete(namespace, ids=list(ids))

    async def delete_where(self, namespace: str, where: Filter) -> None:
        """Delete what a filter finds now; it may miss what was written just before."""
        await self._delete(namespace, filter=where)

    async def _delete(self, namespace: str, **selector: Any) -> None:
        index = await self._opened()
        with suppress(_NamespaceMissing):
            await self._ask("delete records", lambda: index.delete(namespace=namespace, **selector))
            self._undated.add(namespace)

    async def pages(self, namespace: str, where: Filter, *, limit: int) -> AsyncIterator[list[Vector]]:
        """Records a filter finds, up to ``limit`` a page; fewer when Pinecone refuses to answer with so much at once."""
        index = await self._opened()
        token: str | None = None
        while True:

            async def ask(token: str | None = token, limit: int = limit) -> Any:
                return await index.fetch_by_metadata(filter=where, namespace=namespace, limit=limit, pagination_token=token)

            try:
                answer = await self._ask("read records", ask)
            except _NamespaceMissing:
                return
            except RequestRefused:
                if limit == 1:
                    raise
                limit = max(1, limit // 2)
                continue
            if answer.vectors:
                yield list(answer.vectors.values())
            token = answer.pagination.next if answer.pagination else None
            if not token:
                return

    async def ids(self, namespace: str) -> AsyncIterator[list[str]]:
        """The ids of all records, in their order, up to 100 a page."""
        index = await self._opened()
        token: str | None = None
        while True:

            async def ask(token: str | None = token) -> Any:
                return await index.list_paginated(namespace=namespace, pagination_token=token)

            try:
                answer = await self._ask("list records", ask)
            except _NamespaceMissing:
                return
            if answer.vectors:
                yield [item.id for item in answer.vectors]
            token = answer.pagination.next if answer.pagination else None
            if not token:
                return

    async def fetch(self, namespace: str, ids: Sequence[str]) -> dict[str, Vector]:
        """Those of these records that exist, by id."""
        index = await self._opened()
        try:
            answer = await self._ask("read records", lambda: index.fetch(ids=list(ids), namespace=namespace))
        except _NamespaceMissing:
            return {}
        return dict(answer.vectors)

    async def query(self, namespace: str, vector: Sequence[float], where: Filter | None, k: int, *, metadata: bool) -> list[Any]:
        """The nearest ``k`` records (``id``, ``score`` and ``metadata``), best first."""
        try:
            answer = await self._query(namespace, vector, where, k, metadata=metadata)
        except _NamespaceMissing:
            return []
        return list(answer.matches)

    async def _query(self, namespace: str, vector: Sequence[float], where: Filter | None, k: int, *, metadata: bool) -> Any:
        index = await self._opened()
        return await self._ask(
            "search",
            lambda: index.query(
                vector=list(vector), top_k=k, namespace=namespace, filter=where, include_metadata=metadata, include_values=False
            ),
        )

    async def see_own_writes(self, namespace: str) -> None:
        """Wait until queries have seen what this store has written to the namespace.

        Raises SinkUnavailable when that takes too long.
        """
        async with self._looking.setdefault(namespace, asyncio.Lock()):
            await self._see_own_writes(namespace)

    async def _see_own_writes(self, namespace: str) -> None:
        if namespace in self._undated:
            await self._date(namespace)
        target = self._committed.get(namespace)
        if target is None or self._seen.get(namespace, -1) >= target:
            return
        deadline = monotonic() + self._freshness_seconds
        attempt = 0
        while not await self._has_seen(namespace, target):
            if monotonic() > deadline:
                raise SinkUnavailable(
                    f"Pinecone index {self.name!r} has not made its own writes readable for {self._freshness_seconds:g} s; "
                    "try again later, or raise freshness_seconds"
                )
            attempt += 1
            await asyncio.sleep(backoff(attempt, first=_FIRST_LOOK, longest=_LONGEST_POLL))

    async def _date(self, namespace: str) -> None:
        """Learn a position that is not before that of any delete that has been answered."""
        self._undated.discard(namespace)
        try:
            await self.update(namespace, _NOBODY, {"fence": True})
        except BaseException:
            self._undated.add(namespace)
            raise

    async def see_all_own_writes(self) -> None:
        """``see_own_writes`` of every namespace."""
        for namespace in sorted(self._undated | self._committed.keys()):
            await self.see_own_writes(namespace)

    async def _has_seen(self, namespace: str, target: int) -> bool:
        anywhere = [1.0, *[0.0] * (self._model.dimension - 1)]
        try:
            answer = await self._query(namespace, anywhere, None, 1, metadata=False)
        except _NamespaceMissing:
            return True
        position = _position(answer, _SEEN)
        if position is not None:
            self._seen[namespace] = max(position, self._seen.get(namespace, position))
        return position is not None and position >= target

    def _note(self, namespace: str, answer: Any) -> None:
        position = _position(answer, _COMMITTED)
        if position is not None:
            self._committed[namespace] = max(position, self._committed.get(namespace, position))

    async def _ask(self, action: str, ask: Callable[[], Awaitable[T]]) -> T:
        async def attempt() -> T:
            try:
                return await ask()
            except pinecone.ApiError as error:
                if error.status_code == 404 and "namespace" in error.message.lower():
                    raise _NamespaceMissing(f"{self._place} has no namespace to {action}") from None
                raise Failed(error.status_code, error.message, (error.headers or {}).get("retry-after")) from None
            except (pinecone.PineconeConnectionError, pinecone.PineconeTimeoutError) as error:
                raise Unanswered(late=isinstance(error, pinecone.PineconeTimeoutError)) from None
            except pinecone.ResponseParsingError:
                raise Garbled from None
            except pinecone.PineconeError as error:
                raise RequestRefused(f"Pinecone's SDK refuses to {action}: {self._quoted(str(error))}") from None

        return await self._patiently(action, attempt)

    @property
    def _shown_url(self) -> str:
        return origin(self._index.host if self._index else self._connected().config.host)

    async def close(self) -> None:
        if self._index is not None:
            await self._index.close()
            self._index = None
        if self._client is not None:
            await self._client.close()
            self._client = None


def _asking_once(index: AsyncIndex) -> AsyncIndex:
    """The index, told not to ask again by itself: the SDK hands its ``retry_config`` on to no index, so it is put where an index
    keeps one. A release that keeps it elsewhere asks up to four times for each of our tries."""
    with suppress(AttributeError, TypeError):
        index._http._config = replace(index._http._config, retry_config=_ONCE)
    return index


def _position(answer: Any, names: Sequence[str]) -> int | None:
    """The first of these headers that is a number. Its absence means that the position is unknown."""
    headers = answer.response_info.raw_headers if answer.response_info else {}
    values = [headers[name] for name in names if name in headers]
    return next((int(value) for value in values if value.isdecimal()), None)
