"""A Qdrant collection that may be busy, missing, full or out of reach: its client, trying again, typed errors.

What belongs here: how a request is made. A server is asked over HTTP. A local directory (the client's own local mode,
documented by the vendor as fit for tests and small collections) is opened once in a process and shared by its exporters.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast

import httpx
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from pipeline.api_keys import read_key
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.quoting import quoted
from pipeline.sinks.backoff import backoff, wait
from pipeline.urls import without_secrets

URL: Final = "QDRANT_URL"
API_KEY: Final = "QDRANT_API_KEY"

_CONNECTION_ATTEMPTS: Final = 3
_BUSY_ATTEMPTS: Final = 10
_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})

T = TypeVar("T")
Ask = Callable[[AsyncQdrantClient], Awaitable[T]]


class RequestRefused(SinkConflict):
    """Qdrant will not do what was asked for, however often it is asked; the message is its own."""


class CollectionMissing(SinkUnavailable):
    """The collection does not exist; nothing is in it."""


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


class Connection(Protocol):
    """Where the collections are. ``client`` opens it once; ``shown`` is its address without what may be a secret."""

    shown: str
    is_local: bool

    async def client(self) -> AsyncQdrantClient: ...

    async def close(self) -> None: ...


def connection(*, url: str | None, path: str | None, timeout_seconds: int) -> Connection:
    """A directory where ``path`` is given, else the server at ``url`` or ``QDRANT_URL``; nothing is opened yet."""
    return _Directory(path) if path else _Server(url or os.environ.get(URL), timeout_seconds)


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
            client, users = self._open.get(self._path) or (_local_client(self._path), 0)
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


def _local_client(path: str) -> QdrantClient:
    return QdrantClient(path=path, force_disable_check_same_thread=True)


class _InThread:
    """The synchronous local client with the methods of the asynchronous one: each runs in a thread, one at a time."""

    def __init__(self, client: QdrantClient, lock: threading.Lock) -> None:
        self._client = client
        self._lock = lock

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        def locked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return method(*args, **kwargs)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(locked, *args, **kwargs)

        return call


class QdrantStore:
    """One collection, perhaps not made yet."""

    def __init__(self, place: Connection, collection: str) -> None:
        self.collection = collection
        self._place = place
        self._limits: Limits | None = None

    @property
    def is_local(self) -> bool:
        """A local directory has no payload indexes and needs none."""
        return self._place.is_local

    async def limits(self) -> Limits:
        """Read from the collection once."""
        if self._limits is None:
            await self.info()
        return self._limits or Limits()

    async def info(self) -> models.CollectionInfo:
        """The collection's settings. Raises CollectionMissing."""
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
        while True:
            records, following = await self.call(action, _scroll(self.collection, where, payload, vectors, size, offset))
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
        """The answer, asked for again while the server is busy (ten times in all) or out of reach (three times).

        Every request of this sink may be made twice. Raises SinkUnavailable, CollectionMissing or RequestRefused.
        """
        client = await self._place.client()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await ask(client)
            except ResponseHandlingException as error:
                failure = self._unreachable(action, error)
                pause = backoff(attempt) if _is_passing(error) and attempt < _CONNECTION_ATTEMPTS else None
            except ResourceExhaustedResponse as error:
                failure = self._failure(action, 429, str(error))
                pause = wait(str(error.retry_after_s), attempt)
            except UnexpectedResponse as error:
                failure = self._failure(action, error.status_code or 0, _message(error))
                pause = backoff(attempt) if error.status_code in _BUSY else None
            except QdrantException as error:  # a 429 whose Retry-After is a date
                failure = self._failure(action, 429, str(error))
                pause = backoff(attempt)
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise self._stranger(action) from None
            except (ValueError, OSError, sqlite3.Error) as error:
                if not self.is_local:
                    raise
                raise self._local_failure(action, error) from None
            if pause is None or attempt == _BUSY_ATTEMPTS:
                raise failure from None
            await asyncio.sleep(pause)

    def _unreachable(self, action: str, error: ResponseHandlingException) -> Exception:
        if isinstance(error.source, httpx.TimeoutException):
            return SinkUnavailable(f"Qdrant at {self._place.shown} did not answer in time to {action}")
        if isinstance(error.source, httpx.TransportError):
            return SinkUnavailable(f"Qdrant at {self._place.shown} cannot be reached to {action}")
        return self._stranger(action)

    def _stranger(self, action: str) -> SinkUnavailable:
        return SinkUnavailable(f"what answers at {self._place.shown} to {action} is not Qdrant; check the address")

    def _failure(self, action: str, status: int, message: str) -> Exception:
        told = f"{status}{f', {quoted(message, read_key(API_KEY))}' if message else ''}"
        if status == 404:
            return CollectionMissing(
                f"Qdrant at {self._place.shown} has no collection {self.collection!r} to {action}; provision the sink first"
            )
        if status in (401, 403):
            return SinkUnavailable(f"Qdrant at {self._place.shown} refuses to {action}; check {API_KEY}: {told}")
        if 400 <= status < 500 and status not in _BUSY:
            return RequestRefused(f"Qdrant refuses to {action} in collection {self.collection!r}: {told}")
        return SinkUnavailable(f"Qdrant at {self._place.shown} cannot {action}: {told}")

    def _local_failure(self, action: str, error: Exception) -> Exception:
        if not isinstance(error, ValueError):
            return SinkUnavailable(f"Qdrant in {self._place.shown} cannot {action}: {error}")
        return self._failure(action, 404 if str(error) == f"Collection {self.collection} not found" else 400, str(error))

    async def close(self) -> None:
        await self._place.close()


def _scroll(
    collection: str,
    where: models.Filter,
    payload: Sequence[str],
    vectors: bool,
    limit: int,
    offset: models.ExtendedPointId | None,
) -> Ask[tuple[list[models.Record], Any]]:
    return lambda client: client.scroll(
        collection, where, limit=limit, offset=offset, with_payload=list(payload), with_vectors=vectors
    )


def _is_passing(error: ResponseHandlingException) -> bool:
    return isinstance(error.source, httpx.TransportError) and not isinstance(error.source, httpx.UnsupportedProtocol)


def _message(error: UnexpectedResponse) -> str:
    """What the server says is wrong."""
    try:
        told = error.structured()["status"]["error"]
    except (ValueError, LookupError, TypeError):
        told = error.reason_phrase
    return str(told)
