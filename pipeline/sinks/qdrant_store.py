"""A Qdrant collection over the vendor's SDK: its client, its requests and their answers.

What belongs here: how a request is made. A server is asked over HTTP. A local directory (the client's own local mode,
documented by the vendor as fit for tests and small collections) is opened once in a process and shared by its exporters.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, cast

import httpx
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from pipeline.api_keys import read_key
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.sinks.http_store import Failed, Garbled, HttpStore, Unanswered
from pipeline.urls import without_secrets

URL: Final = "QDRANT_URL"
API_KEY: Final = "QDRANT_API_KEY"

_NOT_FOUND: Final = re.compile("Collection .* not found")
"""What the local client says of a collection that does not exist."""

T = TypeVar("T")
Ask = Callable[[AsyncQdrantClient], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for: points of a page, points of an upsert, values of a condition."""

    page: int = 1000
    upsert: int = 256
    names: int = 500

    @classmethod
    def of(cls, strict: models.StrictModeConfigOutput | None) -> Limits:
        """Less where the collection's strict mode allows less."""
        most = cls()
        if strict is None or not strict.enabled:
            return most
        return cls(
            page=min(most.page, strict.max_query_limit or most.page),
            upsert=max(2, min(most.upsert, strict.upsert_max_batchsize or most.upsert)),
            names=max(2, min(most.names, strict.condition_max_size or most.names)),
        )


class _Server:
    is_local = False

    def __init__(self, url: str | None, timeout_seconds: int) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._client: AsyncQdrantClient | None = None
        self.shown = without_secrets(url or "")

    async def client(self) -> AsyncQdrantClient:
        if not self._url:
            raise ConfigError(f"Qdrant has no address: set {URL}, or the sink's url (a server) or path (a local directory)")
        if self._client is None:
            key = read_key(API_KEY) or None
            try:
                self._client = await asyncio.to_thread(
                    AsyncQdrantClient,
                    url=self._url,
                    api_key=key,
                    timeout=self._timeout_seconds,
                    check_compatibility=False,
                )
            except ValueError:
                raise ConfigError(f"Qdrant cannot use the address {self.shown!r}; write http(s)://host:port") from None
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


class _Directory:
    """One client a directory and process, as the vendor's lock demands; the last exporter to close it closes the client."""

    is_local = True
    _open: ClassVar[dict[str, tuple[QdrantClient, int]]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = str(Path(path).absolute())
        self.shown = self._path
        self._client: _InThread | None = None

    async def client(self) -> AsyncQdrantClient:
        if self._client is None:
            try:
                self._client = await asyncio.to_thread(self._acquire)
            except (RuntimeError, OSError, sqlite3.Error) as error:
                raise SinkUnavailable(f"Qdrant cannot open the directory {self._path}: {error}") from None
        return cast(AsyncQdrantClient, self._client)

    def _acquire(self) -> _InThread:
        with self._opening:
            client, users = self._open.get(self._path) or (QdrantClient(path=self._path, force_disable_check_same_thread=True), 0)
            self._open[self._path] = (client, users + 1)
            return _InThread(client, self._opening)

    async def close(self) -> None:
        if self._client is not None:
            self._client = None
            await asyncio.to_thread(self._release)

    def _release(self) -> None:
        with self._opening:
            client, users = self._open.pop(self._path)
            if users > 1:
                self._open[self._path] = (client, users - 1)
            else:
                client.close()


class _InThread:
    """The synchronous local client with the methods of the asynchronous one: each runs in a thread, one at a time, and fails
    as a request does."""

    def __init__(self, client: QdrantClient, lock: threading.Lock) -> None:
        self._client = client
        self._lock = lock

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                try:
                    return method(*args, **kwargs)
                except ValueError as error:
                    raise Failed(404 if _NOT_FOUND.fullmatch(str(error)) else 400, str(error)) from None
                except (OSError, sqlite3.Error) as error:
                    raise Failed(None, str(error)) from None

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(locked, *args, **kwargs)

        return call


Connection = _Server | _Directory
"""Where the collections are. ``client`` opens it once; ``shown`` is its address without what may be a secret."""


def connection(*, url: str | None, path: str | None, timeout_seconds: int) -> Connection:
    """A directory where ``path`` is given, else the server at ``url`` or ``QDRANT_URL``; nothing is opened yet."""
    return _Directory(path) if path else _Server(url or os.environ.get(URL), timeout_seconds)


class QdrantStore(HttpStore):
    """One collection, perhaps not made yet."""

    vendor = "Qdrant"
    key_variable = API_KEY

    def __init__(self, place: Connection, collection: str) -> None:
        super().__init__(f"collection {collection!r}")
        self.collection = collection
        self._connection = place
        self._limits: Limits | None = None

    @property
    def is_local(self) -> bool:
        """A local directory has no payload indexes and needs none."""
        return self._connection.is_local

    async def limits(self) -> Limits:
        """Read from the collection once."""
        if self._limits is None:
            await self.info()
        return self._limits or Limits()

    async def info(self) -> models.CollectionInfo:
        """The collection's settings. Raises Missing."""
        found = await self.call("read the collection", lambda client: client.get_collection(self.collection))
        self._limits = Limits.of(found.config.strict_mode_config)
        return found

    async def pages(
        self, action: str, where: models.Filter, payload: Sequence[str], *, vectors: bool = False, limit: int | None = None
    ) -> AsyncIterator[list[models.Record]]:
        """Points in the order of their ids, up to ``limit`` a page."""
        most = (await self.limits()).page
        size = min(most, limit or most)
        offset: models.ExtendedPointId | None = None

        async def scroll(client: AsyncQdrantClient) -> tuple[list[models.Record], Any]:
            return await client.scroll(
                self.collection, where, limit=size, offset=offset, with_payload=list(payload), with_vectors=vectors
            )

        while True:
            records, following = await self.call(action, scroll)
            if records:
                yield records
            if following is None:
                return
            offset = cast(models.ExtendedPointId, following)

    async def delete_where(self, action: str, where: models.Filter) -> None:
        """Delete the points a filter finds, and wait until they are gone."""
        selected = models.FilterSelector(filter=where)
        await self.call(action, lambda client: client.delete(self.collection, selected, wait=True))

    async def call(self, action: str, ask: Ask[T]) -> T:
        """The answer. Raises SinkUnavailable, Missing or RequestRefused."""
        client = await self._connection.client()

        async def attempt() -> T:
            try:
                return await ask(client)
            except ResponseHandlingException as error:
                if not isinstance(error.source, httpx.TransportError):
                    raise Garbled from None
                raise Unanswered(late=isinstance(error.source, httpx.TimeoutException)) from None
            except ResourceExhaustedResponse as error:
                raise Failed(429, str(error), str(error.retry_after_s)) from None
            except UnexpectedResponse as error:
                raise Failed(error.status_code, _message(error), error.headers.get("Retry-After")) from None
            except QdrantException as error:  # a 429 whose Retry-After is a date
                raise Failed(429, str(error)) from None
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise Garbled from None

        return await self._patiently(action, attempt)

    @property
    def _shown_url(self) -> str:
        return self._connection.shown

    async def close(self) -> None:
        await self._connection.close()


def _message(error: UnexpectedResponse) -> str:
    """What the server says is wrong."""
    try:
        told = error.structured()["status"]["error"]
    except (ValueError, LookupError, TypeError):
        told = error.reason_phrase
    return str(told)
