"""Fetching the bytes behind presigned URLs.

What belongs here: plain HTTP GETs without our API key, their limits and their retries. A presigned URL is a credential: it
is in no exception, log record or ``repr`` made here. Attempts therefore *return* their failures; an exception raised while
another one is handled would carry it along.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from types import TracebackType
from typing import Self

import httpx

from pipeline.errors import PayloadError, PayloadOutOfReach
from pipeline.llama_cloud.addresses import AddressPolicy, AddressRefused, GuardedTransport
from pipeline.llama_cloud.models import DirectoryFile
from pipeline.llama_cloud.normalise import DEFAULT_MAX_PAYLOAD_BYTES
from pipeline.llama_cloud.quiet_logs import urls_are_secret
from pipeline.llama_cloud.wire import PresignedUrl
from pipeline.retry_after import seconds_asked
from pipeline.tls import tls_problem

ResolveUrl = Callable[[DirectoryFile], Awaitable[PresignedUrl]]

_EXPIRY_MARGIN = timedelta(seconds=30)
_MAX_REDIRECTS = 5
_MAX_PORT = 65_535
_MAX_LENGTH_DIGITS = 18
_MAX_RETRY_AFTER_SECONDS = 60.0
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity"}
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=None)
_TOTAL_SECONDS = 900.0
"""For all attempts at one payload: a server that sends a byte a minute defeats every other time limit."""
_REFUSALS = frozenset({400, 401, 403})
"""How object stores answer an expired URL; and every URL where a policy, a filter or a clock is wrong."""
_ABSENCES = frozenset({404, 410})
"""How they answer one for an object that has been replaced, is not visible yet, or is gone."""
_PASSING_STATUSES = frozenset({408, 425, 429})
"""Beside those of servers that fail."""
_READABLE_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip"})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``attempts`` in all; pauses of ``base_seconds`` doubling up to ``max_seconds``, each cut by up to a quarter at random."""

    attempts: int = 5
    base_seconds: float = 0.5
    max_seconds: float = 8.0

    def pause(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 0); what the server asked for wins, up to a minute."""
        if retry_after is not None:
            return min(retry_after, _MAX_RETRY_AFTER_SECONDS)
        jitter = 1 - 0.25 * random.random()  # noqa: S311 - spreads retries, guards nothing
        return min(self.base_seconds * 2.0**attempt, self.max_seconds) * jitter


class _Kind(Enum):
    REFUSED = auto()
    """The URL is refused: ask for another one. A fresh one may be answered when the store is set right."""
    ABSENT = auto()
    """Nothing is behind the URL: ask for another one. Behind a fresh one it is gone."""
    TRANSIENT = auto()
    """This answer may be different in a moment, or when the store is well again."""
    FINAL = auto()


@dataclass(frozen=True, slots=True)
class _Failure:
    kind: _Kind
    reason: str
    retry_after: float | None = None

    def error(self, file: DirectoryFile) -> PayloadError:
        kind = PayloadOutOfReach if self.kind in {_Kind.TRANSIENT, _Kind.REFUSED} else PayloadError
        return kind(file.id, f"the payload of {file.display_name!r} cannot be downloaded: {self.reason}")


class PayloadDownloader:
    """Downloads payloads, at most ``max_concurrent`` at a time. An async context manager.

    ``resolve`` asks the API for a fresh presigned URL of a file. ``transport`` replaces the network (and the address guard).
    """

    def __init__(
        self,
        resolve: ResolveUrl,
        *,
        addresses: AddressPolicy,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
        max_concurrent: int = 16,
        retries: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._resolve = resolve
        self._max_bytes = max_payload_bytes
        self._slots = asyncio.Semaphore(max_concurrent)
        self._retries = retries or RetryPolicy()
        self._transport = transport
        self._addresses = addresses
        # A transport a download in flight: every request looks at every connection of a pool, twice, so that one pool of
        # sixteen costs more than the downloads. And no client over it: a presigned GET has no cookies and no
        # authentication, and following redirects with limits of our own leaves it nothing to do.
        self._transports: list[httpx.AsyncBaseTransport] = []
        self._idle: list[httpx.AsyncBaseTransport] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for transport in self._transports:
            await transport.aclose()

    async def download(self, file: DirectoryFile, url: PresignedUrl | None = None) -> bytes:
        """The stored bytes of one file, as they are (possibly gzip). ``url`` saves a request when it is still usable.

        Raises ``PayloadError`` when this file cannot be had, its ``PayloadOutOfReach`` when that may pass, and whatever
        ``resolve`` raises.
        """
        outcome: bytes | _Failure
        async with self._slots, self._warmest() as transport:
            try:
                async with asyncio.timeout(_TOTAL_SECONDS):
                    outcome = await self._fetch_fresh(transport, file, url)
            except TimeoutError:
                outcome = _Failure(_Kind.TRANSIENT, f"it takes longer than {_TOTAL_SECONDS:g} seconds")
        if isinstance(outcome, _Failure):
            raise outcome.error(file)
        return outcome

    async def _fetch_fresh(
        self, transport: httpx.AsyncBaseTransport, file: DirectoryFile, url: PresignedUrl | None
    ) -> bytes | _Failure:
        """From ``url`` while it can be used; one that is refused is replaced once."""
        outcome = await self._fetch(transport, url if url and url.usable(_EXPIRY_MARGIN) else await self._resolve(file))
        if isinstance(outcome, _Failure) and outcome.kind in {_Kind.REFUSED, _Kind.ABSENT}:
            await asyncio.sleep(self._retries.pause(0, None))
            outcome = await self._fetch(transport, await self._resolve(file))
        return outcome

    @asynccontextmanager
    async def _warmest(self) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """The transport last given back, whose connection is the warmest."""
        if not self._idle:
            self._transports.append(self._transport or GuardedTransport(self._addresses))
            self._idle.append(self._transports[-1])
        transport = self._idle.pop()
        try:
            yield transport
        finally:
            self._idle.append(transport)

    async def _fetch(self, transport: httpx.AsyncBaseTransport, url: PresignedUrl) -> bytes | _Failure:
        """Attempts until one succeeds, fails for good, or there were enough."""
        for attempt in range(self._retries.attempts):
            outcome = await self._attempt(transport, url)
            if isinstance(outcome, bytes) or outcome.kind is not _Kind.TRANSIENT:
                break
            if attempt + 1 < self._retries.attempts:
                await asyncio.sleep(self._retries.pause(attempt, outcome.retry_after))
        return outcome

    async def _attempt(self, transport: httpx.AsyncBaseTransport, url: PresignedUrl) -> bytes | _Failure:
        with urls_are_secret():
            try:
                return await self._follow(transport, _get(httpx.URL(url.url)))
            except AddressRefused as error:
                return _Failure(_Kind.FINAL, f"{error}; set allow_private_addresses if your storage is on a private network")
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                reason = tls_problem(error) or type(error).__name__
                return _Failure(_Kind.TRANSIENT, f"the storage behind LlamaCloud's presigned URLs does not answer: {reason}")
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError):  # ValueError: a host no name service can hold.
                return _Failure(_Kind.FINAL, "its URL is not an HTTP URL")
            except httpx.RequestError as error:
                return _Failure(_Kind.TRANSIENT, f"the connection broke ({type(error).__name__})")

    async def _follow(self, transport: httpx.AsyncBaseTransport, request: httpx.Request) -> bytes | _Failure:
        """The answer at the end of the redirects. The bodies of redirects are never read: they have no size limit."""
        for _ in range(_MAX_REDIRECTS + 1):
            response = await transport.handle_async_request(request)
            try:
                if not response.has_redirect_location:
                    return await self._read(response)
                target = request.url.join(response.headers["Location"])
                if request.url.scheme == "https" and target.scheme != "https":
                    return _Failure(_Kind.FINAL, "the storage redirects from https to http")
                request = _get(target)
            finally:
                await response.aclose()
        return _Failure(_Kind.FINAL, f"the storage redirects more than {_MAX_REDIRECTS} times")

    async def _read(self, response: httpx.Response) -> bytes | _Failure:
        if response.status_code != httpx.codes.OK:
            return _failed_status(response)
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _READABLE_ENCODINGS:
            return _Failure(_Kind.FINAL, f"it is stored with Content-Encoding {encoding[:40]!r}; only gzip is understood")
        too_large = _Failure(_Kind.FINAL, f"it is larger than max_payload_bytes ({self._max_bytes:,} bytes)")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and (len(length) > _MAX_LENGTH_DIGITS or int(length) > self._max_bytes):
            return too_large
        pieces: list[bytes] = []
        received = 0
        async for piece in response.aiter_raw():
            received += len(piece)
            if received > self._max_bytes:
                return too_large
            pieces.append(piece)
        return b"".join(pieces)


def _get(url: httpx.URL) -> httpx.Request:
    if url.port is not None and url.port > _MAX_PORT:
        raise httpx.InvalidURL("port")
    return httpx.Request("GET", url, headers=_HEADERS, extensions={"timeout": _TIMEOUT.as_dict()})


def _failed_status(response: httpx.Response) -> _Failure:
    status = response.status_code
    if status in _REFUSALS | _ABSENCES:
        kind = _Kind.REFUSED if status in _REFUSALS else _Kind.ABSENT
        return _Failure(kind, f"the storage refused a fresh presigned URL as well (HTTP {status})")
    if status in _PASSING_STATUSES or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        asked = seconds_asked(response.headers.get("Retry-After"))
        return _Failure(_Kind.TRANSIENT, f"the storage answered HTTP {status}", asked)
    return _Failure(_Kind.FINAL, f"the storage answered HTTP {status}")
