"""Calls of the LlamaCloud API through the vendor's SDK, with our errors.

What belongs here: sending a request, reading its JSON, following pages, and the mapping of everything that can go wrong to
``pipeline.errors``. Retries of throttling and server errors are the SDK's own (five, jittered, ``Retry-After``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx
from llama_cloud import (
    DEFAULT_MAX_RETRIES,
    APIConnectionError,
    APIStatusError,
    AsyncAPIResponse,
    AsyncLlamaCloud,
    AuthenticationError,
    DefaultAsyncHttpxClient,
    LlamaCloudError,
    PermissionDeniedError,
)
from pydantic import SecretStr

from pipeline.api_keys import read_key, usable_key
from pipeline.errors import ConfigError, IncompleteListing, IndexportError, SourceUnavailable
from pipeline.llama_cloud.addresses import is_loopback
from pipeline.llama_cloud.decoding import clean_text
from pipeline.llama_cloud.rate_limit import RateLimiter
from pipeline.llama_cloud.wire import UnexpectedAnswer, read_items
from pipeline.proxies import client_mounts
from pipeline.quoting import quoted
from pipeline.tls import ssl_context, tls_problem
from pipeline.urls import is_http_url, without_secrets

T = TypeVar("T")
_TOTAL_SECONDS = 900.0
"""For all attempts at one request, with the waits for its turn and for what ``Retry-After`` says: a server that sends a byte now
and then defeats every other time limit."""
_THROTTLED = 429
_API_KEY = "LLAMA_CLOUD_API_KEY"
_FORMER_API_KEY = "LLAMA_PARSE_API_KEY"
"""Which the SDK takes where the other is not set."""

_MOST_BARREN_PAGES = 100
"""In a row. Few enough for a look's 40 seconds, after which the next one goes on from the token."""


class Rejected(ConfigError):
    """The API understood the request and said no (4xx); ``status`` is its answer's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotThere(Rejected):
    """404: what was asked for does not exist, or not for this key and project."""


class KeyRefused(SourceUnavailable):
    """401: no request with this key would fare better."""


class ServerFailed(SourceUnavailable):
    """The API failed (5xx) or throttles (429) after the SDK's retries; ``status`` is its last answer's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CloudApi:
    """The SDK's client and the project it asks about. ``client`` retries (``max_retries`` times), ``once`` never."""

    def __init__(
        self,
        *,
        api_key: SecretStr | None,
        base_url: str | None,
        project_id: str | None,
        requests_per_second: float | None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        key = usable_key(api_key.get_secret_value(), _API_KEY) if api_key else read_key(_API_KEY) or read_key(_FORMER_API_KEY)
        if not key:
            raise ConfigError(f"no LlamaCloud API key: set the environment variable {_API_KEY}")
        http_client = DefaultAsyncHttpxClient(transport=transport, verify=ssl_context(), mounts=client_mounts())
        try:
            self.client = AsyncLlamaCloud(
                api_key=key,
                base_url=base_url,
                max_retries=max_retries,
                http_client=http_client,
            )
        except httpx.InvalidURL:
            raise ConfigError("LLAMA_CLOUD_BASE_URL is not a URL") from None
        self.once = self.client.with_options(max_retries=0)
        self.project_id = project_id
        url = httpx.URL(str(self.client.base_url))
        if not is_http_url(str(url)):
            raise ConfigError(
                "LLAMA_CLOUD_BASE_URL must start with https:// (or http://) and name a host, and a port below 65536"
            )
        self.host = url.host
        self.is_local = is_loopback(url.host)
        if requests_per_second is not None and not self.is_local:  # This machine's own server is nobody's to spare.
            http_client.event_hooks = {"request": [_pacing(requests_per_second)]}
        self.shown_url = without_secrets(str(url))

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def call(
        self, request: Awaitable[AsyncAPIResponse[Any]], read: Callable[[object], T], *, doing: str, setting: str | None = None
    ) -> T:
        """Send ``request`` and ``read`` its JSON. ``doing`` and ``setting`` (what a 404 points at) go into error messages.

        Raises ``NotThere``, ``Rejected``, ``ServerFailed`` or ``SourceUnavailable``.
        """
        try:
            response = await self._in_time(request, doing)
        except ValueError:  # The SDK's word for a path with an id like ".." or half a surrogate pair, and for its own headers.
            culprits = "an id that fits into no URL, or LLAMA_CLOUD_CUSTOM_HEADERS with letters that are not ASCII"
            raise NotThere(f"no request can be made for {doing}: {culprits}", httpx.codes.NOT_FOUND) from None
        except LlamaCloudError as error:
            raise self._translated(error, doing, setting) from None
        try:
            return read(await response.json())
        except UnexpectedAnswer as error:
            raise self._not_llama_cloud(doing, str(error)) from None
        except (ValueError, RecursionError):
            raise self._not_llama_cloud(doing, "something that is not JSON") from None

    async def attempt(self, request: Awaitable[AsyncAPIResponse[Any]], *, refusals: frozenset[int], doing: str) -> bool:
        """Send ``request``; ``False`` when the answer's status is one of ``refusals``. Errors as ``call``'s."""
        try:
            await self._in_time(request, doing)
        except LlamaCloudError as error:
            if isinstance(error, APIStatusError) and error.status_code in refusals:
                return False
            raise self._translated(error, doing, None) from None
        return True

    async def pages(
        self,
        send: Callable[[str | None], Awaitable[AsyncAPIResponse[Any]]],
        *,
        what: str,
        setting: str | None = None,
        token: str | None = None,
    ) -> AsyncIterator[tuple[list[Mapping[str, Any]], str | None]]:
        """``(items, token of the next page)`` until there is no next page, from ``token`` on.

        The tokens are followed here because the SDK's own paging takes an empty page for the last one, and a listing that ends
        early would look like removals. Raises ``IncompleteListing`` for any failure after the first page, and for a listing
        without an end: one that repeats a token, or whose pages show nothing new for ever. Some may: filtered pages may be
        empty, and what moves meanwhile may be shown again.
        """
        seen: set[str] = set()
        known: set[str] = set()
        barren = 0
        while True:
            try:
                items, following = await self.call(
                    send(token), lambda answer: read_items(answer, what), doing=f"listing {what}", setting=setting
                )
            except IndexportError as error:
                if token is None:
                    raise
                raise IncompleteListing(f"the listing of {what} stopped half way: {error}") from None
            yield items, following
            if following is None:
                return
            if following in seen or following == token:
                raise IncompleteListing(f"the listing of {what} does not end: LlamaCloud repeats a page token")
            before = len(known)
            known.update(key for item in items if isinstance(key := item.get("id"), str))
            barren = 0 if len(known) > before else barren + 1
            if barren >= _MOST_BARREN_PAGES:
                raise IncompleteListing(f"the listing of {what} does not end: {barren} pages in a row show nothing new")
            seen.add(following)
            token = following

    async def _in_time(self, request: Awaitable[T], doing: str) -> T:
        try:
            async with asyncio.timeout(_TOTAL_SECONDS):
                return await request
        except TimeoutError:
            message = f"LlamaCloud at {self.shown_url} took longer than {_TOTAL_SECONDS:g} seconds while {doing}"
            raise SourceUnavailable(message) from None

    def _not_llama_cloud(self, doing: str, got: str) -> SourceUnavailable:
        return SourceUnavailable(
            f"{self.shown_url} answered {doing} with {got}: check that LLAMA_CLOUD_BASE_URL is a LlamaCloud API and its state"
        )

    def _translated(self, error: LlamaCloudError, doing: str, setting: str | None) -> IndexportError:
        if isinstance(error, AuthenticationError | PermissionDeniedError):
            kind = KeyRefused if isinstance(error, AuthenticationError) else SourceUnavailable
            return kind(
                f"LlamaCloud refused the API key while {doing} (HTTP {error.status_code}{self._detail(error)}): set "
                f"{_API_KEY} to a key of the index's project, and LLAMA_CLOUD_BASE_URL to its region "
                f"({self.shown_url} now)"
            )
        if isinstance(error, APIStatusError):
            return self._translated_status(error, doing, setting)
        if isinstance(error, APIConnectionError):
            problem = tls_problem(error)
            told = f": {problem}; check" if problem else f" ({type(error.__cause__ or error).__name__}): check the network and"
            return SourceUnavailable(f"LlamaCloud cannot be reached at {self.shown_url} while {doing}{told} LLAMA_CLOUD_BASE_URL")
        return SourceUnavailable(f"the LlamaCloud SDK failed while {doing}: {type(error).__name__}")

    def _translated_status(self, error: APIStatusError, doing: str, setting: str | None) -> IndexportError:
        status, detail = error.status_code, self._detail(error)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == _THROTTLED:
            remedy = "; lower requests_per_second" if status == _THROTTLED else ""
            return ServerFailed(f"LlamaCloud at {self.shown_url} failed while {doing}: HTTP {status}{detail}{remedy}", status)
        if status == httpx.codes.NOT_FOUND:
            remedy = f"; check {setting} and project_id" if setting else ""
            return NotThere(f"LlamaCloud does not know what was asked for while {doing} (HTTP 404{detail}){remedy}", status)
        return Rejected(f"LlamaCloud refused the request while {doing}: HTTP {status}{detail}", status)

    def _detail(self, error: APIStatusError) -> str:
        """The vendor's own words, bounded, without the key or the signature of a URL if they quote one."""
        body = error.body
        detail = body.get("detail") if isinstance(body, dict) else None
        return f": {quoted(clean_text(str(detail)), self.client.api_key)}" if detail else ""


def _pacing(requests_per_second: float) -> Callable[[httpx.Request], Awaitable[None]]:
    limiter = RateLimiter(requests_per_second)

    async def take_turn(_: httpx.Request) -> None:
        await limiter.wait()

    return take_turn
