"""One Turbopuffer namespace over the vendor's SDK: its requests and their answers.

The SDK's own retries are off: they would sit on a ``Retry-After`` of up to half an hour. Every request made here may be
repeated, writes too: a replace, a delete and a conditional patch done twice leave what they leave done once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import httpx2
import turbopuffer

from pipeline.api_keys import read_key
from pipeline.errors import ConfigError
from pipeline.quoting import quoted
from pipeline.sinks.http_store import BUSY, Failed, HttpStore, Missing, Unanswered, read_object
from pipeline.sinks.turbopuffer_layout import Filter, Row
from pipeline.urls import origin

API_KEY: Final = "TURBOPUFFER_API_KEY"
MAX_LIMIT: Final = 10_000
"""Most documents, or groups of an aggregation, one query answers with; documented by the vendor."""

_TIMEOUT: Final = httpx2.Timeout(120.0, connect=10.0)

_VENDORS_URL: Final = "https://{region}.turbopuffer.com"
_CONSISTENT: Final[dict[str, Any]] = {"consistency": {"level": "strong"}}


class TurbopufferStore(HttpStore):
    """One namespace. Reads are strongly consistent: they see every write that was answered."""

    vendor = "Turbopuffer"
    key_variable = API_KEY
    busy = BUSY | {202, 409}
    """202 is an index still being built."""

    def __init__(self, namespace: str, base_url: str | None, region: str | None) -> None:
        """``base_url`` may have ``{region}`` in it; without one it is the vendor's."""
        super().__init__(f"namespace {namespace!r}")
        self.namespace = namespace
        self._base_url = base_url
        self._region = region
        self._client: turbopuffer.AsyncTurbopuffer | None = None

    def _connected(self) -> turbopuffer.AsyncTurbopuffer:
        """The client, made when first used: a sink can be declared where its key is not known."""
        if self._client is None:
            key = read_key(API_KEY)
            base_url, region = self._base_url or _VENDORS_URL, self._region
            if "{region}" not in base_url:
                # The SDK takes a region from the environment, and refuses one that the address has no place for.
                base_url, region = "{region}", base_url
            try:
                self._client = turbopuffer.AsyncTurbopuffer(
                    api_key=key or None, region=region, base_url=base_url, timeout=_TIMEOUT, max_retries=0
                )
            except (turbopuffer.TurbopufferError, httpx2.InvalidURL) as error:
                raise ConfigError(
                    f"Turbopuffer cannot be used: {quoted(str(error), key)}. It needs {API_KEY} and either the region or the "
                    "base_url (settings, or TURBOPUFFER_REGION and TURBOPUFFER_BASE_URL)"
                ) from None
        return self._client

    async def schema(self) -> dict[str, Any]:
        """The types and indexes of the namespace's attributes. Raises Missing."""
        schema: dict[str, Any] = (await self._ask("read the schema", lambda namespace: namespace.metadata()))["schema"]
        return schema

    async def write(self, action: str, body: bytes) -> dict[str, Any]:
        """One atomic write; ``body`` is the request's JSON. Raises RequestRefused, or Missing."""
        client = self._connected()
        return await self._answer(
            action,
            lambda: client.post(
                f"/v2/namespaces/{self.namespace}",
                content=body,
                options={"headers": {"Content-Type": "application/json"}},
                cast_to=httpx2.Response,
            ),
        )

    async def drop(self) -> None:
        """Delete the namespace; a missing one is no error."""
        with suppress(Missing):
            await self._ask("delete the namespace", lambda namespace: namespace.delete_all())

    async def query(self, action: str, query: dict[str, Any]) -> dict[str, Any]:
        """Raises Missing."""
        return await self._ask(action, lambda namespace: namespace.query(**_CONSISTENT, vector_encoding="base64", **query))

    async def answers(self, action: str, queries: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers to several queries, all of one snapshot. Raises Missing."""
        if len(queries) == 1:
            return [await self.query(action, queries[0])]
        answer = await self._ask(action, lambda namespace: namespace.multi_query(**_CONSISTENT, queries=queries))
        results: list[dict[str, Any]] = answer["results"]
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
            except Missing:
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
            except Missing:
                return
            if groups:
                yield [(group[attribute], group["documents"]) for group in groups]
            if len(groups) < MAX_LIMIT:
                return
            last = groups[-1][attribute]

    async def _ask(self, action: str, ask: Callable[[Any], Awaitable[Any]]) -> dict[str, Any]:
        """The answer to a request that the SDK makes of the namespace."""
        namespace = self._connected().namespace(self.namespace).with_raw_response

        async def send() -> httpx2.Response:
            response: httpx2.Response = (await ask(namespace)).http_response
            return response

        return await self._answer(action, send)

    async def _answer(self, action: str, send: Callable[[], Awaitable[httpx2.Response]]) -> dict[str, Any]:
        async def attempt() -> dict[str, Any]:
            try:
                response = await send()
            except turbopuffer.APIStatusError as error:
                raise Failed(error.status_code, _message(error), error.response.headers.get("Retry-After")) from None
            except turbopuffer.APIConnectionError as error:
                raise Unanswered(late=isinstance(error, turbopuffer.APITimeoutError)) from None
            if response.status_code in self.busy:
                raise Failed(response.status_code, retry_after=response.headers.get("Retry-After"))
            return await read_object(response.content)

        return await self._patiently(action, attempt)

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
