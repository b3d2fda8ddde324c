"""The requests of one call of an embedding endpoint: side by side, tried again, and patient together.

What belongs here: when a request is sent and how often. How texts are shared among requests is openai_embedder's, what an
answer means openai_wire's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from pipeline.embedding.base import Vectors
from pipeline.embedding.openai_wire import BrokeDown, Garbled, Refused, Throttled, TimedOut, TryAgain
from pipeline.errors import ConfigError, EmbedderUnavailable

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_ASKED_SECONDS = 120.0
"""A server's longest wish that is waited for; limits of requests and tokens are commonly a minute's."""
_THROTTLED_FACTOR = 4.0
"""How much longer than a fault's the waits of a server are that throttles and does not say for how long: over six tries, half a
minute at the least and a minute in most cases."""
_GARBLED_ATTEMPTS = 2
"""A whole answer of no use is paid for."""


class KeepsBreakingDown(EmbedderUnavailable):
    """The server failed in every try of a request."""


class Session:
    """What the requests of one call share. ``attempt`` sends texts once; it answers their vectors or raises what ``openai_wire``
    does."""

    def __init__(
        self, attempt: Callable[[list[str]], Awaitable[Vectors]], *, url: str, max_attempts: int, first_wait_seconds: float
    ) -> None:
        self._attempt = attempt
        self._url = url
        self._max_attempts = max_attempts
        self._first_wait = first_wait_seconds
        self._queue = asyncio.Lock()
        self._over = asyncio.Event()
        self.answers = 0
        """How many requests were answered."""
        self.failure: EmbedderUnavailable | ConfigError | None = None
        """The first that was for good. Requests under way are paid for and may end; none is sent, or waited for, after it."""

    def fail(self, error: EmbedderUnavailable | ConfigError) -> None:
        """Let no request be sent any more; of several errors the first counts."""
        self.failure = self.failure or error
        self._over.set()

    async def request(self, texts: list[str], *, suspected: bool = False) -> Vectors:
        """The vectors of texts, asked for up to ``max_attempts`` times.

        Raises Refused, also for ``suspected`` texts that the server breaks down over; TimedOut, at once, for more than one text;
        EmbedderUnavailable when the tries are used up, KeepsBreakingDown among them; and the session's failure.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._in_turn(texts)
            except TryAgain as verdict:
                if isinstance(verdict, TimedOut) and len(texts) > 1:
                    raise
                if isinstance(verdict, BrokeDown) and suspected:
                    raise Refused(str(verdict)) from None
                await self._pause(verdict, attempt)

    async def _in_turn(self, texts: list[str]) -> Vectors:
        """One try. One that the server puts off is made again in a queue, which whoever has not asked yet waits behind: side by
        side they would take the server's patience from each other, and use up their tries while others are answered."""
        async with self._queue:
            pass
        try:
            return await self.send(texts)
        except Throttled as told:
            verdict = told
        attempt, since, answers = 1, time.monotonic(), self.answers
        async with self._queue:
            while True:
                await self._pause(verdict, attempt, time.monotonic() - since)
                try:
                    return await self.send(texts)
                except Throttled as told:
                    verdict = told
                attempt = attempt + 1 if self.answers == answers else 1  # while others are answered, it has not failed
                since, answers = time.monotonic(), self.answers

    async def send(self, texts: list[str]) -> Vectors:
        """One try, now."""
        if self.failure:
            raise self.failure
        vectors = await self._attempt(texts)
        self.answers += 1
        return vectors

    async def _pause(self, verdict: TryAgain, attempt: int, waited: float = 0.0) -> None:
        """Wait for the next try; raises EmbedderUnavailable when there is none."""
        attempts = min(_GARBLED_ATTEMPTS, self._max_attempts) if isinstance(verdict, Garbled) else self._max_attempts
        if attempt >= attempts or (verdict.after or 0) > _LONGEST_ASKED_SECONDS:
            raise self.given_up(attempt, verdict) from None
        wait = max(0.0, self._wait_seconds(attempt, verdict) - waited)
        _log.warning("embedding request %d of %d failed (%s); next in %.1f s", attempt, attempts, verdict, wait)
        await self._sleep(wait)

    def given_up(self, attempts: int, verdict: TryAgain) -> EmbedderUnavailable:
        """What is raised after the last of so many tries."""
        error = KeepsBreakingDown if isinstance(verdict, BrokeDown) else EmbedderUnavailable
        return error(f"{self._url} did not answer in {attempts} attempts: {verdict}")

    def _wait_seconds(self, attempt: int, verdict: TryAgain) -> float:
        """The server's wish when it has one, else doubling with full jitter of the upper half."""
        first = self._first_wait * (_THROTTLED_FACTOR if isinstance(verdict, Throttled) else 1.0)
        backoff = min(_LONGEST_BACKOFF_SECONDS, first * 2.0 ** (attempt - 1))
        jittered = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, guards nothing
        return jittered if verdict.after is None else verdict.after + min(1.0, jittered / 10)

    async def _sleep(self, seconds: float) -> None:
        """Ends early when another request has failed for good."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
