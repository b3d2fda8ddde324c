"""A store over HTTP that may be busy, out of reach, closed to us or something else: asking again, typed errors.

What belongs here: how often a request is sent, how long is waited, and which error of ours an answer becomes. What a request
looks like, and how a vendor's SDK says that it failed, is that store's own module.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, TypeVar

from pipeline.api_keys import read_key
from pipeline.errors import SinkConflict, SinkUnavailable
from pipeline.quoting import quoted
from pipeline.sinks.backoff import backoff, wait

T = TypeVar("T")

BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
_REFUSED: Final = frozenset({400, 409, 413, 422})
"""Statuses that speak of what was sent; another says nothing of the records in it."""


class RequestRefused(SinkConflict):
    """The store will not do what was asked for, however often it is asked; the message is its own."""


class RequestTooLarge(RequestRefused):
    """The request has more bytes than the store takes, or the proxy before it."""


class Missing(SinkUnavailable):
    """The collection, index or namespace does not exist; nothing is in it."""


class Failed(Exception):
    """One try had another answer than success: its HTTP ``status``, ``None`` without HTTP, and the store's own words, if any."""

    def __init__(self, status: int | None, said: str = "", retry_after: str | None = None) -> None:
        super().__init__(said)
        self.status = status
        self.retry_after = retry_after


class Unanswered(Exception):
    """One try had no answer: there was no connection, it broke, or the answer was too ``late``."""

    def __init__(self, *, late: bool) -> None:
        super().__init__("did not answer in time" if late else "cannot be reached")


class Garbled(Exception):
    """One try was answered as this vendor never does."""


async def read_object(content: bytes) -> dict[str, Any]:
    """The JSON object an answer consists of, read in a thread. Raises Garbled."""
    try:
        answer = await asyncio.to_thread(json.loads, content)
    except ValueError:
        raise Garbled from None
    if not isinstance(answer, dict):
        raise Garbled
    return answer


class HttpStore(ABC):
    """One collection, index or namespace (``thing``, with its name) of a vendor's. Every request may be made twice."""

    vendor: ClassVar[str]
    key_variable: ClassVar[str]
    busy: ClassVar[frozenset[int]] = BUSY
    """Statuses that pass."""
    busy_attempts: ClassVar[int] = 10
    connection_attempts: ClassVar[int] = 3

    def __init__(self, thing: str) -> None:
        self._thing = thing

    @property
    @abstractmethod
    def _shown_url(self) -> str:
        """Where requests go, without what may be a secret."""

    async def _patiently(self, action: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt answers, made again while the store is busy or cannot be reached.

        An attempt raises Failed, Unanswered or Garbled; of these are made SinkUnavailable, Missing and RequestRefused.
        """
        asked = unanswered = 0
        while True:
            asked += 1
            try:
                return await attempt()
            except Failed as failure:
                if failure.status not in self.busy or asked >= self.busy_attempts:
                    raise self._error(action, failure) from None
                pause = wait(failure.retry_after, asked)
            except Unanswered as failure:
                unanswered += 1
                if unanswered == self.connection_attempts:
                    raise SinkUnavailable(f"{self._place} {failure} to {action}") from None
                pause = backoff(unanswered)
            except Garbled:
                raise SinkUnavailable(
                    f"what answers at {self._shown_url} to {action} is not {self.vendor}; check the address"
                ) from None
            await asyncio.sleep(pause)

    def _error(self, action: str, failure: Failed) -> SinkUnavailable | RequestRefused:
        status = failure.status
        told = ", ".join(filter(None, (str(status or ""), self._quoted(str(failure)))))
        if status == 404:
            return Missing(f"{self._place} has no {self._thing} to {action}: {told}; provision the sink first (a sync does)")
        if status in (401, 402, 403):
            return SinkUnavailable(
                f"{self._place} does not let us {action}: {told}; check the key in {self.key_variable} and what its plan allows"
            )
        if status in _REFUSED - self.busy:
            refusal = RequestTooLarge if status == 413 else RequestRefused
            return refusal(f"{self.vendor} refuses to {action} in {self._thing}: {told}")
        return SinkUnavailable(f"{self._place} cannot {action}: {told}")

    @property
    def _place(self) -> str:
        return f"{self.vendor} at {self._shown_url}"

    def _quoted(self, said: str) -> str:
        """The store's words without its key."""
        return quoted(said, read_key(self.key_variable))
