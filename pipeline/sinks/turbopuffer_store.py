"""One Turbopuffer namespace over the vendor's SDK: requests, waiting out throttling, typed errors.

The SDK's own retries are off: they would sit on a ``Retry-After`` of up to half an hour. Every request made here may be
repeated, writes too: a replace, a delete and a conditional patch done twice leave what they leave done once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import httpx2
import turbopuffer

from pipeline.api_keys import read_key
from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.quoting import quoted
from pipeline.sinks.backoff import backoff, wait
from pipeline.sinks.turbopuffer_layout import Filter, Row
from pipeline.urls import origin

API_KEY: Final = "TURBOPUFFER_API_KEY"
MAX_LIMIT: Final = 10_000
"""Most documents, or groups of an aggregation, one query answers with; documented by the vendor."""

_TIMEOUT: Final = httpx2.Timeout(120.0, connect=10.0)
_CONNECTION_ATTEMPTS: Final = 3
_BUSY_ATTEMPTS: Final = 10
_BUSY: Final = frozenset({202, 408, 409, 429, 500, 502, 503, 504})
"""Statuses that pass: 429 is back-pressure while indexing catches up, 202 an index still being built."""

_REFUSED: Final = frozenset({400, 413, 422})

Ask = Callable[[turbopuffer.AsyncTurbopuffer], Awaitable[httpx2.Response]]


class RequestRefused(SinkConflict):
    """Turbopuffer will not do what was asked for, however often it is asked; the message is its own."""


class NamespaceMissing(SinkUnavailable):
    """The namespace does not exist; nothing is in it."""


class TurbopufferStore:
    """One namespace. Reads are strongly consistent: they see every write that was answered."""

    def __init__(self, namespace: str, *, region: str | None, base_url: str | None) -> None:
        self.namespace = namespace
        self._region = region
        self._base_url = base_url
        self._client: turbopuffer.AsyncTurbopuffer | None = None

    def _connected(self) -> turbopuffer.AsyncTurbopuffer:
        """The client, made when first used: a sink can be declared where its key is not known."""
        if self._client is None:
            key = read_key(API_KEY)
            try:
                self._client = turbopuffer.AsyncTurbopuffer(
                    api_key=key or None, region=self._region, base_url=self._base_url, timeout=_TIMEOUT, max_retries=0
                )
            except (turbopuffer.TurbopufferError, httpx2.InvalidURL) as error:
                raise ConfigError(
                    f"Turbopuffer cannot be used: {quoted(str(error), key)}. It needs {API_KEY} and either the region or the "
                    "base_url (settings, or TURBOPUFFER_REGION and TURBOPUFFER_BASE_URL)"
                ) from None
        return self._client

    async def schema(self) -> dict[str, Any]:
        """The types and indexes of the namespace's attributes. Raises NamespaceMissing."""

        async def ask(client: turbopuffer.AsyncTurbopuffer) -> httpx2.Response:
            return (await client.namespace(self.namespace).with_raw_response.metadata()).http_response

        answer: dict[str, Any] = (await self._answer("read the schema", ask))["schema"]
        return answer

    async def write(self, action: str, body: bytes) -> dict[str, Any]:
        """One atomic write; ``body`` is the request's JSON. Raises RequestRefused, or NamespaceMissing."""

        async def ask(client: turbopuffer.AsyncTurbopuffer) -> httpx2.Response:
            return await client.post(
                f"/v2/namespaces/{self.namespace}",
                content=body,
                options={"headers": {"Content-Type": "application/json"}},
                cast_to=httpx2.Response,
            )

        return await self._answer(action, ask)

    async def drop(self) -> None:
        """Delete the namespace; a missing one is no error."""

        async def ask(client: turbopuffer.AsyncTurbopuffer) -> httpx2.Response:
            return (await client.namespace(self.namespace).with_raw_response.delete_all()).http_response

        try:
            await self._answer("delete the namespace", ask)
        except NamespaceMissing:
            return

    async def query(self, action: str, query: dict[str, Any]) -> dict[str, Any]:
        """Raises NamespaceMissing."""

        async def ask(client: turbopuffer.AsyncTurbopuffer) -> httpx2.Response:
            namespace = client.namespace(self.namespace).with_raw_response
            asked = await namespace.query(consistency={"level": "strong"}, vector_encoding="base64", **query)
            return asked.http_response

        return await self._answer(action, ask)

    async def answers(self, action: str, queries: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to several queries, all of one snapshot. Raises NamespaceMissing."""
        if len(queries) == 1:
            return [await self.query(action, queries[0])]

        async def ask(client: turbopuffer.AsyncTurbopuffer) -> httpx2.Response:
            namespace = client.namespace(self.namespace).with_raw_response
            asked = await namespace.multi_query(consistency={"level": "strong"}, queries=queries)
            return asked.http_response

        results: list[dict[str, Any]] = (await self._answer(action, ask))["results"]
        return results

    async def pages(
        self, action: str, where: Filter, attributes: Sequence[str], *, limit: int | None = None
    ) -> AsyncIterator[list[Row]]:
        """Documents in the order of their ids, up to ``limit`` a page; none where the namespace does not exist."""
        limit = limit or MAX_LIMIT
        last: str | None = None
        while True:
            after: Filter = where if last is None else ("And", [where, ("id", "Gt", last)])
            query = {"rank_by": ("id", "asc"), "filters": after, "include_attributes": attributes, "limit": limit}
            try:
                rows: list[Row] = (await self.query(action, query))["rows"]
            except NamespaceMissing:
                return
            if rows:
                yield rows
            if len(rows) < limit:
                return
            last = rows[-1]["id"]

    async def counts(self, action: str, where: Filter, attribute: str) -> AsyncIterator[list[tuple[str, int]]]:
        """How many documents have each value of an attribute, up to 10,000 values a page, in the order of the values."""
        last: str | None = None
        while True:
            following = (attribute, "NotEq", None) if last is None else (attribute, "Gt", last)
            after: Filter = ("And", [where, following])
            query = {"aggregate_by": {"documents": ("Count",)}, "group_by": [attribute], "filters": after, "limit": MAX_LIMIT}
            try:
                groups = (await self.query(action, query))["aggregation_groups"]
            except NamespaceMissing:
                return
            if groups:
                yield [(group[attribute], group["documents"]) for group in groups]
            if len(groups) < MAX_LIMIT:
                return
            last = groups[-1][attribute]

    async def _answer(self, action: str, ask: Ask) -> dict[str, Any]:
        response = await self._patiently(action, ask)
        try:
            answer: dict[str, Any] = await asyncio.to_thread(json.loads, response.content)
        except ValueError:
            raise SinkUnavailable(
                f"Turbopuffer at {self._shown_url} answers with something other than JSON to {action}; check the address"
            ) from None
        return answer

    async def _patiently(self, action: str, ask: Ask) -> httpx2.Response:
        """The answer, asked for again while Turbopuffer is busy (ten times in all) or cannot be reached (three times)."""
        client = self._connected()
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await ask(client)
                if response.status_code not in _BUSY:
                    return response
                message = ""
            except turbopuffer.APIStatusError as error:
                response, message = error.response, _message(error)
                if response.status_code not in _BUSY:
                    raise self._error(action, response.status_code, message) from None
            except turbopuffer.APIConnectionError as error:
                if attempt == _CONNECTION_ATTEMPTS:
                    kind = "did not answer in time" if isinstance(error, turbopuffer.APITimeoutError) else "cannot be reached"
                    raise SinkUnavailable(f"Turbopuffer at {self._shown_url} {kind} to {action}") from None
                await asyncio.sleep(backoff(attempt))
                continue
            if attempt == _BUSY_ATTEMPTS:
                raise self._error(action, response.status_code, message)
            await asyncio.sleep(wait(response.headers.get("Retry-After"), attempt))

    def _error(self, action: str, status: int, message: str) -> Exception:
        told = f"{status}{f', {quoted(message, read_key(API_KEY))}' if message else ''}"
        if status == 404:
            return NamespaceMissing(
                f"Turbopuffer at {self._shown_url} has no namespace {self.namespace!r} to {action}; provision the sink first"
            )
        if status in (401, 403):
            return SinkUnavailable(f"Turbopuffer at {self._shown_url} refuses the key in {API_KEY} to {action}: {told}")
        if status in _REFUSED:
            return RequestRefused(f"Turbopuffer refuses to {action} in namespace {self.namespace!r}: {told}")
        return SinkUnavailable(f"Turbopuffer at {self._shown_url} cannot {action}: {told}")

    @property
    def _shown_url(self) -> str:
        return origin(str(self._connected().base_url))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def _message(error: turbopuffer.APIStatusError) -> str:
    told = error.body.get("error") if isinstance(error.body, dict) else None
    return str(told or error.response.reason_phrase)
