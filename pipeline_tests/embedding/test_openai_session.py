"""When the OpenAI embedder sends a request, and again: time-outs, throttling, failures for good, cancellations."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.embedding.base import EmbeddingCancelled, PartlyEmbedded
from pipeline.embedding.openai_session import Session
from pipeline.errors import ConfigError, EmbedderUnavailable
from pipeline_tests.embedding.openai_endpoint import Answer, Body, Endpoint, embed, embedder, right, vector

THROTTLED: Answer = (429, {"error": {"message": "too many requests"}}, {"Retry-After": "0"})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would be waited, in seconds."""
    waited: list[float] = []

    async def wait(_session: Session, seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(Session, "_sleep", wait)
    return waited


async def test_a_slow_answer_is_tried_again(endpoint: Endpoint) -> None:
    released = threading.Event()

    def stuck(request: Body) -> Answer:
        released.wait(timeout=30)
        return right(request)

    endpoint.script = [stuck]
    try:
        assert await embed(endpoint, ["abc"], timeout_seconds=0.3) == [vector("abc")]
    finally:
        released.set()
    assert len(endpoint.requests) == 2


async def test_tries_are_bounded_and_the_last_reason_is_told(endpoint: Endpoint) -> None:
    endpoint.script = [(503, {"error": {"message": "overloaded"}})] * 3
    with pytest.raises(EmbedderUnavailable, match=r"3 attempts: HTTP 503: overloaded"):
        await embed(endpoint, ["a"])
    assert len(endpoint.requests) == 3


async def test_one_failure_stops_the_other_requests(endpoint: Endpoint) -> None:
    endpoint.script = [(404, {"error": {"message": "no such model"}})]
    with pytest.raises(ConfigError, match="no such model"):
        await embed(endpoint, ["a"] * 50, request_items=1, concurrency=1)
    assert len(endpoint.requests) < 50


async def test_what_was_answered_before_a_failure_comes_with_it(endpoint: Endpoint) -> None:
    endpoint.script = [right, right, (503, {}), (503, {})]
    with pytest.raises(PartlyEmbedded, match="503") as caught:
        await embed(endpoint, ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"], request_items=2, concurrency=1, max_attempts=2)
    assert type(caught.value.cause) is EmbedderUnavailable
    assert caught.value.vectors[:4].tolist() == [vector("a"), vector("bb"), vector("ccc"), vector("dddd")]
    assert np.isnan(caught.value.vectors[4:]).all()


async def test_answers_of_no_use_end_the_tries_whatever_was_before_them(endpoint: Endpoint) -> None:
    endpoint.script = [*[(503, {})] * 3, *[(200, b"not json")] * 99]
    with pytest.raises(EmbedderUnavailable, match="4 attempts: the answer is not JSON"):
        await embed(endpoint, ["a"], max_attempts=6)
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [({"Retry-After": "60"}, 60), ({"retry-after-ms": "1500", "Retry-After": "60"}, 1.5), ({"retry-after-ms": "soon"}, 0)],
)
async def test_the_time_a_server_asks_for_is_waited(
    endpoint: Endpoint, waits: list[float], asked: dict[str, str], seconds: float
) -> None:
    endpoint.script = [(429, {"error": {"message": "requests a minute"}}, asked)]
    assert await embed(endpoint, ["abc"]) == [vector("abc")]
    [waited] = waits
    assert seconds - 0.1 < waited < seconds + 1


async def test_a_server_that_throttles_without_a_time_gets_most_of_a_minute(endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.script = [(429, {"error": {"message": "tokens a minute"}})] * 5
    made = embedder(endpoint, max_attempts=6)
    made._first_wait = 0.5
    assert (await made.embed(["abc"], [3])).tolist() == [vector("abc")]
    assert 30 < sum(waits) <= 62


async def test_a_wait_longer_than_two_minutes_is_left_to_the_caller(endpoint: Endpoint) -> None:
    endpoint.script = [(429, {"error": {"message": "tomorrow"}}, {"Retry-After": "86400"})]
    with pytest.raises(EmbedderUnavailable, match="1 attempts: HTTP 429: tomorrow"):
        await embed(endpoint, ["a"])


class Bucket:
    """Answers one request after every refusal, however many ask: the patience of a server with a limit a minute."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.room = True
        self.lock = threading.Lock()
        self.refused = 0
        endpoint.script = [self.answer] * 10_000

    def answer(self, request: Body) -> Answer:
        with self.lock:
            self.room = not self.room
            if self.room:
                self.refused += 1
                return THROTTLED
        return right(request)


async def test_a_rate_limit_that_is_obeyed_ends_no_load(endpoint: Endpoint) -> None:
    bucket = Bucket(endpoint)
    texts = ["a" * (n + 1) for n in range(80)]
    assert await embed(endpoint, texts, request_items=1, concurrency=8, max_attempts=4) == [vector(text) for text in texts]
    assert bucket.refused >= 70


async def test_requests_that_are_throttled_ask_again_one_at_a_time_and_new_ones_after_them(endpoint: Endpoint) -> None:
    """Of four that are refused at once, three wait while one asks: it alone decides when there is room again."""
    together = threading.Barrier(4)
    asked: Counter[str] = Counter()
    patience = 3

    def first_of_four(request: Body) -> Answer:
        together.wait(timeout=30)
        asked.update(request["input"])
        return THROTTLED

    def no_room_yet(request: Body) -> Answer:
        asked.update(request["input"])
        return THROTTLED

    endpoint.script = [*[first_of_four] * 4, *[no_room_yet] * patience]
    texts = list("abcdefgh")
    assert await embed(endpoint, texts, request_items=1, concurrency=4, max_attempts=6) == [vector(text) for text in texts]
    assert sorted(asked.values()) == [1, 1, 1, 1 + patience]
    assert len(endpoint.requests) == 4 + patience + len(texts)


async def test_requests_under_way_when_another_fails_for_good_are_kept_and_none_is_sent_after_it(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are paid for."""
    together, failed, fail = threading.Barrier(3), threading.Event(), Session.fail

    def failing(session: Session, error: EmbedderUnavailable | ConfigError) -> None:
        fail(session, error)
        failed.set()

    def out_of_quota(_request: Body) -> Answer:
        together.wait(timeout=30)
        return 429, {"error": {"message": "no money left", "code": "insufficient_quota"}}

    def under_way(request: Body) -> Answer:
        together.wait(timeout=30)
        failed.wait(timeout=30)
        return right(request)

    monkeypatch.setattr(Session, "fail", failing)
    endpoint.script = [under_way, out_of_quota, under_way]
    with pytest.raises(PartlyEmbedded, match="no money left") as caught:
        await embed(endpoint, list("abcxyz"), request_items=1, concurrency=3)
    assert np.isfinite(caught.value.vectors).all(axis=1).sum() == 2
    assert len(endpoint.requests) == 3


async def test_a_request_that_waits_for_its_next_try_does_not_outlast_a_failure_for_good(endpoint: Endpoint) -> None:
    endpoint.script = [(503, {"error": {"message": "overloaded"}}), (404, {"error": {"message": "no such model"}})]
    made = embedder(endpoint, request_items=1, concurrency=2)
    made._first_wait = 3600.0
    with pytest.raises(ConfigError, match="no such model"):
        await asyncio.wait_for(made.embed(["a", "b"], [1, 1]), 30)
    assert len(endpoint.requests) == 2


def slow_over(most: int, released: threading.Event) -> Callable[[Body], Answer]:
    def answer(request: Body) -> Answer:
        if len(request["input"]) > most:
            released.wait(timeout=30)
        return right(request)

    return answer


async def test_a_server_too_slow_for_a_request_gets_smaller_ones_from_then_on(endpoint: Endpoint) -> None:
    released = threading.Event()
    endpoint.script = [slow_over(4, released)] * 1000
    made = embedder(endpoint, timeout_seconds=0.3, concurrency=1, max_attempts=6)
    texts = ["a" * (n + 1) for n in range(32)]
    try:
        assert (await made.embed(texts, [1] * 32)).tolist() == [vector(text) for text in texts]
        sizes = [len(request["input"]) for request in endpoint.requests]
        assert sizes == [32, 16, 8, *[4] * 8]
        await made.embed(texts, [1] * 32)
        assert {len(request["input"]) for request in endpoint.requests[len(sizes) :]} == {4}
    finally:
        released.set()


async def test_a_server_that_never_answers_is_given_up_after_as_many_tries_as_another(endpoint: Endpoint) -> None:
    released = threading.Event()
    endpoint.script = [slow_over(0, released)] * 1000
    try:
        with pytest.raises(
            EmbedderUnavailable, match=r"3 attempts: no whole answer in 0\.1 s; raise embedding\.openai\.timeout_seconds"
        ):
            await embed(endpoint, ["a"] * 64, timeout_seconds=0.1, concurrency=1)
        assert len(endpoint.requests) == 3
    finally:
        released.set()


async def test_what_was_answered_before_a_cancellation_comes_with_it(endpoint: Endpoint) -> None:
    loop, reached, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def stuck(request: Body) -> Answer:
        loop.call_soon_threadsafe(reached.set)
        released.wait(timeout=30)
        return right(request)

    endpoint.script = [right, stuck]
    task = asyncio.create_task(embedder(endpoint, request_items=1, concurrency=1).embed(["a", "bb"], [1, 2]))
    try:
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(EmbeddingCancelled) as caught:
            await task
    finally:
        released.set()
    assert caught.value.vectors[0].tolist() == vector("a")
    assert np.isnan(caught.value.vectors[1]).all()
