"""One Azure AI Search index over the vendor's SDK: requests, waiting out throttling, partial failures, typed errors.

Requests go through the SDK's own pipeline (``send_request``): its transport, authentication and headers, with bodies and
answers as they are on the wire, which SDK 11 and 12 share. The SDK's retries are off: they know nothing of documents that
fail alone. Every request made here may be repeated: what it does twice leaves what it leaves done once.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import AzureError, ServiceResponseTimeoutError
from azure.core.rest import HttpRequest
from azure.search.documents.indexes.aio import SearchIndexClient

from pipeline.api_keys import read_key
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.quoting import quoted
from pipeline.sinks.azure_documents import MAX_REQUEST_BYTES, Row
from pipeline.sinks.azure_layout import SORT_KEY, Definition
from pipeline.sinks.backoff import backoff, wait
from pipeline.sinks.records import compact_json
from pipeline.urls import is_http_url, origin

ENDPOINT: Final = "AZURE_SEARCH_ENDPOINT"
API_KEY: Final = "AZURE_SEARCH_API_KEY"

MAX_PAGE: Final = 1000
"""Most documents one search answers with, and one batch writes; documented by the vendor."""

_API_VERSION: Final = "2025-09-01"
"""The stable version both SDKs know; its data plane is the same in the later 2026-04-01."""

_CONNECT_SECONDS: Final = 10
_READ_SECONDS: Final = 120
_CONNECTION_ATTEMPTS: Final = 3
_BUSY_ATTEMPTS: Final = 10
_BUSY: Final = frozenset({408, 409, 422, 429, 500, 502, 503, 504})
"""Statuses that pass, of a request or of one document: 409 is a version conflict, 422 an index that is being updated."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class RequestRefused(SinkConflict):
    """The service will not do what was asked for, however often it is asked; the message is its own."""


class IndexMissing(SinkUnavailable):
    """The index does not exist; nothing is in it."""


class _ChangedMeanwhile(SinkUnavailable):
    """The index is not what the request took it for."""


@dataclass(frozen=True, slots=True)
class Action:
    """A change of one document: ``line`` is its JSON object, ``@search.action`` included."""

    id: str
    line: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the service will not make one change; ``status`` is HTTP's, 404 for a document that does not exist."""

    status: int
    message: str


class AzureStore:
    """One index, perhaps not made yet."""

    def __init__(self, index: str, endpoint: str | None) -> None:
        self.index = index
        self._endpoint = endpoint
        self._client: SearchIndexClient | None = None
        self._session = uuid.uuid4().hex

    def _connected(self) -> SearchIndexClient:
        """The client, made when first used: a sink can be declared where its key is not known."""
        if self._client is None:
            endpoint = self._endpoint or os.environ.get(ENDPOINT, "")
            key = read_key(API_KEY)
            if not is_http_url(endpoint):
                raise ConfigError(f"Azure AI Search has no address: set {ENDPOINT}, or the sink's endpoint, to https://host")
            parts = urlsplit(endpoint)
            if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
                raise ConfigError(f"Azure AI Search at {origin(endpoint)} would get its key unencrypted; use https")
            if not key:
                raise ConfigError(f"Azure AI Search has no key: set {API_KEY} to an admin key of {origin(endpoint)}")
            self._endpoint = endpoint
            self._client = SearchIndexClient(
                endpoint.rstrip("/"),
                AzureKeyCredential(key),
                retry_total=0,
                connection_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                user_agent="indexport",
            )
        return self._client

    async def get_index(self) -> Definition:
        """The index's definition. Raises IndexMissing."""
        return await self._answer("read the index", "GET", "")

    async def put_index(self, definition: Definition, *, replacing: str | None) -> bool:
        """Create the index where none exists, or update the one with the entity tag ``replacing``; False where it is another."""
        headers = {"If-None-Match": "*"} if replacing is None else {"If-Match": replacing}
        try:
            await self._answer(
                "write the index", "PUT", "", compact_json(definition), {**headers, "Prefer": "return=representation"}
            )
        except _ChangedMeanwhile:
            return False
        return True

    async def drop_index(self) -> None:
        """Delete the index and everything in it; a missing one is no error."""
        with suppress(IndexMissing):
            await self._patiently("delete the index", "DELETE", "", None, {})

    async def change(self, action: str, changes: Sequence[Action]) -> dict[str, Failure]:
        """Make these changes, at most 1,000, each of another document; what the service will not do, by document.

        Changes that fail for the moment are tried again, alone, ten times in all. Raises IndexMissing or SinkUnavailable.
        """
        failures: dict[str, Failure] = {}
        due = list(changes)
        for attempt in range(1, _BUSY_ATTEMPTS + 1):
            statuses = await self._batch(action, due)
            failures |= {found: failure for found, failure in statuses.items() if failure.status not in (200, 201, *_BUSY)}
            passing = Failure(503, "no answer for this document")
            due = [change for change in due if statuses.get(change.id, passing).status in _BUSY]
            if not due:
                return failures
            if attempt < _BUSY_ATTEMPTS:
                await asyncio.sleep(backoff(attempt))
        told = statuses.get(due[0].id, passing)
        raise SinkUnavailable(
            f"Azure AI Search at {self._shown_url} cannot {action}: {len(due)} documents failed {_BUSY_ATTEMPTS} times, "
            f"with {told.status}, {told.message}"
        )

    async def _batch(self, action: str, changes: Sequence[Action]) -> dict[str, Failure]:
        """The status of every change; of a request that is refused as a whole, each half, down to single documents."""
        body = b'{"value":[' + b",".join([change.line for change in changes]) + b"]}"
        try:
            if len(body) > MAX_REQUEST_BYTES and len(changes) > 1:
                raise RequestRefused(f"{len(body)} bytes")
            answer = await self._answer(action, "POST", "/docs/search.index", body)
        except RequestRefused as error:
            if len(changes) == 1:
                return {changes[0].id: Failure(400, str(error))}
            half = len(changes) // 2
            return {**await self._batch(action, changes[:half]), **await self._batch(action, changes[half:])}
        return {
            item["key"]: Failure(item["statusCode"], _quoted(str(item.get("errorMessage") or ""))) for item in answer["value"]
        }

    async def search(self, action: str, query: Mapping[str, Any]) -> list[Row]:
        """The documents a query finds, of one answer or several. Raises IndexMissing or RequestRefused.

        The vendor documents that an answer may have fewer documents than were asked for, and then says what to ask next.
        """
        rows: list[Row] = []
        due: Mapping[str, Any] | None = query
        while due is not None:
            answer = await self._answer(action, "POST", "/docs/search.post.search", compact_json(due))
            rows += answer["value"]
            due = answer.get("@search.nextPageParameters")
        return rows

    async def rows(self, action: str, where: str, select: Sequence[str], *, top: int | None = None) -> list[Row]:
        """Up to a page of the documents a filter finds, in the order of ``sort_key``, as this object's own writes left them.

        One session for all: the vendor documents that it is kept on one set of replicas where possible.
        """
        return await self.search(
            action,
            {
                "filter": where,
                "select": ",".join(select),
                "orderby": SORT_KEY,
                "top": top or MAX_PAGE,
                "sessionId": self._session,
            },
        )

    async def pages(
        self, action: str, where: str, select: Sequence[str], *, limit: int | None = None
    ) -> AsyncIterator[list[Row]]:
        """All documents a filter finds, in the order of ``sort_key``, up to ``limit`` a page; none where no index exists."""
        size = limit or MAX_PAGE
        fields = list(dict.fromkeys([*select, SORT_KEY]))
        after = where
        while True:
            try:
                rows = await self.rows(action, after, fields, top=size)
            except IndexMissing:
                return
            if len(rows) < size:
                if rows:
                    yield rows
                return
            last = rows[-1][SORT_KEY]  # documents may share it: those of the page's end come with the next page
            whole = [row for row in rows if row[SORT_KEY] != last]
            if not whole:
                raise SinkConflict(f"more than {size} documents of index {self.index!r} share a {SORT_KEY}; delete the index")
            yield whole
            after = f"({where}) and {SORT_KEY} ge {last}"

    async def _answer(
        self, action: str, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        body = await self._patiently(action, method, path, content, headers or {})
        try:
            answer: dict[str, Any] = await asyncio.to_thread(json.loads, body)
        except ValueError:
            raise SinkUnavailable(
                f"what answers at {self._shown_url} to {action} is not Azure AI Search; check the address"
            ) from None
        return answer

    async def _patiently(self, action: str, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> bytes:
        """The answer, asked for again while the service is busy (ten times in all) or cannot be reached (three times)."""
        attempt = 0
        while True:
            attempt += 1
            try:
                status, retry_after, body = await self._ask(method, path, content, headers)
            except AzureError as error:
                if attempt == _CONNECTION_ATTEMPTS:
                    kind = "did not answer in time" if isinstance(error, ServiceResponseTimeoutError) else "cannot be reached"
                    raise SinkUnavailable(f"Azure AI Search at {self._shown_url} {kind} to {action}") from None
                await asyncio.sleep(backoff(attempt))
                continue
            if status < 300:
                return body
            if status not in _BUSY or attempt == _BUSY_ATTEMPTS:
                raise self._error(action, status, _message(body))
            await asyncio.sleep(wait(retry_after, attempt))

    async def _ask(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, str | None, bytes]:
        request = HttpRequest(
            method,
            f"indexes('{self.index}'){path}",
            params={"api-version": _API_VERSION},
            content=content,
            headers={"Accept": "application/json;odata.metadata=minimal", "Content-Type": "application/json", **headers},
        )
        async with await self._connected().send_request(request, stream=True) as response:
            return response.status_code, response.headers.get("Retry-After"), await response.read()

    def _error(self, action: str, status: int, message: str) -> Exception:
        told = f"{status}{f', {_quoted(message)}' if message else ''}"
        if status == 404:
            return IndexMissing(
                f"Azure AI Search at {self._shown_url} has no index {self.index!r} to {action}; provision the sink first"
            )
        if status == 412:
            return _ChangedMeanwhile(f"Azure AI Search index {self.index!r} keeps changing; run again")
        if status in (401, 403):
            return SinkUnavailable(f"Azure AI Search at {self._shown_url} refuses to {action} with the key in {API_KEY}: {told}")
        if 400 <= status < 500 and status not in _BUSY:
            return RequestRefused(f"Azure AI Search refuses to {action} in index {self.index!r}: {told}")
        return SinkUnavailable(f"Azure AI Search at {self._shown_url} cannot {action}: {told}")

    @property
    def _shown_url(self) -> str:
        return origin(self._endpoint or "")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def _message(body: bytes) -> str:
    """What the service says is wrong."""
    try:
        told = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return ""
    return str(told)


def _quoted(told: str) -> str:
    return quoted(told, read_key(API_KEY))
