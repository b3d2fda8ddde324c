"""What becomes of a request to a store over HTTP that is busy, out of reach, closed to us or another."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks import http_store
from pipeline.sinks.http_store import BUSY, Failed, Garbled, HttpStore, Missing, RequestRefused, RequestTooLarge, Unanswered


class Store(HttpStore):
    vendor = "Acme"
    key_variable = "ACME_KEY"
    busy = BUSY | {422}

    def __init__(self, *failures: Exception) -> None:
        super().__init__("box 'b'")
        self.failures = list(failures)
        self.attempts = 0

    @property
    def _shown_url(self) -> str:
        return "http://acme"

    async def read(self) -> str:
        return await self._patiently("read", self._attempt)

    async def _attempt(self) -> str:
        self.attempts += 1
        if self.failures:
            raise self.failures.pop(0)
        return "answer"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Sequence[float]:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("pipeline.sinks.http_store.asyncio.sleep", sleep)
    monkeypatch.setenv("ACME_KEY", "acme-secret")
    return waited


async def test_a_busy_store_is_asked_ten_times_and_waited_for_as_it_asks(waits: Sequence[float]) -> None:
    store = Store(*[Failed(status) for status in (408, 422, 429, 500, 502, 503, 504, 503)], Failed(429, "slow", "7"))
    assert await store.read() == "answer"
    assert (store.attempts, len(waits)) == (10, 9)
    assert 7.0 <= waits[-1] <= 8.75


async def test_a_store_that_stays_busy_is_unavailable() -> None:
    store = Store(*[Failed(429, "slow down")] * 99)
    with pytest.raises(SinkUnavailable, match=r"^Acme at http://acme cannot read: 429, slow down$"):
        await store.read()
    assert store.attempts == 10


@pytest.mark.parametrize(("late", "told"), [(False, "cannot be reached"), (True, "did not answer in time")])
async def test_a_store_that_never_answers_is_asked_three_times_however_busy_it_was_before(late: bool, told: str) -> None:
    store = Store(*[Failed(503)] * 4, *[Unanswered(late=late)] * 99)
    with pytest.raises(SinkUnavailable, match=rf"^Acme at http://acme {told} to read$"):
        await store.read()
    assert store.attempts == 7


@pytest.mark.parametrize("answered", range(1, 10))
async def test_answers_that_are_lost_among_those_of_a_busy_store_come_to_an_end(answered: int) -> None:
    store = Store(*[*[Failed(503)] * answered, Unanswered(late=False)] * 20)
    with pytest.raises(SinkUnavailable):
        await store.read()
    assert store.attempts <= 12


@pytest.mark.parametrize(
    ("failure", "kind", "told"),
    [
        (
            Failed(404, "gone"),
            Missing,
            "Acme at http://acme has no box 'b' to read: 404, gone; provision the sink first (a sync does)",
        ),
        (Failed(401), SinkUnavailable, "does not let us read: 401; check the key in ACME_KEY and what its plan allows"),
        (Failed(402, "pay"), SinkUnavailable, "does not let us read: 402, pay;"),
        (Failed(403, "no acme-secret"), SinkUnavailable, "403, no ***;"),
        (Failed(400, "bad vector"), RequestRefused, "Acme refuses to read in box 'b': 400, bad vector"),
        (Failed(409), RequestRefused, "refuses"),
        (Failed(413), RequestTooLarge, "refuses"),
        (Failed(405, "not allowed"), SinkUnavailable, "Acme at http://acme cannot read: 405, not allowed"),
        (Failed(None, "disk full"), SinkUnavailable, "Acme at http://acme cannot read: disk full"),
        (Garbled(), SinkUnavailable, "what answers at http://acme to read is not Acme; check the address"),
    ],
)
async def test_what_passes_by_no_waiting_is_told_at_once(failure: Exception, kind: type[Exception], told: str) -> None:
    store = Store(failure)
    with pytest.raises((SinkUnavailable, SinkConflict)) as caught:
        await store.read()
    assert type(caught.value) is kind
    assert isinstance(caught.value, ConfigError) == issubclass(kind, RequestRefused)
    assert told in str(caught.value)
    assert (store.attempts, caught.value.__cause__) == (1, None)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'"text"'])
async def test_an_answer_that_is_no_json_object_is_no_such_stores(content: bytes) -> None:
    with pytest.raises(Garbled):
        await http_store.read_object(content)
    assert await http_store.read_object(b'{"rows": []}') == {"rows": []}
