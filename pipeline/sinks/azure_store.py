"""One Azure AI Search index over the vendor's SDK: its requests and their answers, documents that fail alone among them.

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
from pipeline.sinks.azure_documents import MAX_REQUEST_BYTES, Row
from pipeline.sinks.azure_layout import SORT_KEY, Definition
from pipeline.sinks.backoff import backoff
from pipeline.sinks.http_store import BUSY, Failed, HttpStore, Missing, RequestRefused, Unanswered, read_object
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

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


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


class AzureStore(HttpStore):
    """One index, perhaps not made yet."""

    vendor = "Azure AI Search"
    key_variable = API_KEY
    busy = BUSY | {409, 422}
    """Of a request or of one document: 409 is a version conflict, 422 an index that is being updated."""

    def __init__(self, index: str, endpoint: str | None) -> None:
        super().__init__(f"index {index!r}")
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
        """The index's definition. Raises Missing."""
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
        with suppress(Missing):
            await self._answer("delete the index", "DELETE", "")

    async def change(self, action: str, changes: Sequence[Action]) -> dict[str, Failure]:
        """Make these changes, at most 1,000, each of another document; what the service will not do, by document.

        Changes that fail for the moment are tried again, alone, ten times in all. Raises Missing or SinkUnavailable.
        """
        failures: dict[str, Failure] = {}
        due = list(changes)
        for attempt in range(1, self.busy_attempts + 1):
            statuses = await self._batch(action, due)
            failures |= {found: failure for found, failure in statuses.items() if failure.status not in (200, 201, *self.busy)}
            passing = Failure(503, "no answer for this document")
            due = [change for change in due if statuses.get(change.id, passing).status in self.busy]
            if not due:
                return failures
            if attempt < self.busy_attempts:
                await asyncio.sleep(backoff(attempt))
        told = statuses.get(due[0].id, passing)
        raise SinkUnavailable(
            f"{self._place} cannot {action}: {len(due)} documents failed {self.busy_attempts} times, "
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
            item["key"]: Failure(item["statusCode"], self._quoted(str(item.get("errorMessage") or "")))
            for item in answer["value"]
        }

    async def search(self, action: str, query: Mapping[str, Any]) -> list[Row]:
        """The documents a query finds, of one answer or several. Raises Missing or RequestRefused.

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
            except Missing:
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
        return await self._patiently(action, lambda: self._ask(method, path, content, headers or {}))

    async def _ask(self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> dict[str, Any]:
        request = HttpRequest(
            method,
            f"indexes('{self.index}'){path}",
            params={"api-version": _API_VERSION},
            content=content,
            headers={"Accept": "application/json;odata.metadata=minimal", "Content-Type": "application/json", **headers},
        )
        try:
            async with await self._connected().send_request(request, stream=True) as response:
                body = await response.read()
        except AzureError as error:
            raise Unanswered(late=isinstance(error, ServiceResponseTimeoutError)) from None
        if response.status_code == 412:
            raise _ChangedMeanwhile(f"Azure AI Search index {self.index!r} keeps changing; run again")
        if response.status_code >= 300:
            raise Failed(response.status_code, _message(body), response.headers.get("Retry-After"))
        return {} if response.status_code == 204 else await read_object(body)

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
