"""What the OpenAI embedder does about requests an endpoint refuses: for their encoding, their size, one text, or the settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.embedding.base import PartlyEmbedded, TextsRefused
from pipeline.errors import ConfigError, EmbedderUnavailable
from pipeline_tests.embedding.openai_endpoint import KEY, Answer, Body, Endpoint, embed, embedder, right, vector


def knows_only(*encodings: str | None, status: int, refusal: Any) -> Callable[[Body], Answer]:
    return lambda request: right(request) if request.get("encoding_format") in encodings else (status, refusal)


@pytest.mark.parametrize(
    ("known", "status", "refusal"),
    [
        ("float", 400, {"error": {"message": "encoding_format must be float"}}),
        ("float", 422, {"detail": [{"loc": ["body", "encoding_format"], "msg": "Input should be 'float'"}]}),
        (None, 400, {"error": {"message": "UnsupportedParamsError: vertex_ai does not support 'encoding_format'"}}),
        (None, 400, [{"error": {"code": 400, "message": 'Unknown name "encoding_format": Cannot find field.'}}]),
    ],
)
async def test_a_server_is_asked_for_the_encoding_it_takes_from_then_on(
    endpoint: Endpoint, known: str | None, status: int, refusal: Any
) -> None:
    endpoint.script = [knows_only(known, status=status, refusal=refusal)] * 99
    made = embedder(endpoint, request_items=1)
    endpoint.gate = threading.Barrier(4)  # so that each of the first four is refused
    assert (await made.embed(list("abcd"), [1] * 4)).tolist() == [vector("a")] * 4
    endpoint.gate = None
    before = len(endpoint.requests)
    await made.embed(["d"], [1])
    assert [request.get("encoding_format") for request in endpoint.requests[before:]] == [known]


def refuses(text: str, answer: Answer) -> Callable[[Body], Answer]:
    return lambda request: answer if any(text in sent for sent in request["input"]) else right(request)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            (500, {"error": {"message": "failed to encode response: json: unsupported value: NaN"}}),
            "HTTP 500: failed to encode response: json: unsupported value: NaN",
        ),
        (
            (400, {"object": "error", "message": "maximum context length is 512 tokens", "code": 400}),
            "HTTP 400: maximum context length is 512 tokens",
        ),
        ((400, [{"error": {"code": 400, "message": "input is too long"}}]), "HTTP 400: input is too long"),
    ],
)
async def test_a_text_the_endpoint_refuses_costs_no_other_and_has_its_reason(
    endpoint: Endpoint, answer: Answer, reason: str
) -> None:
    endpoint.script = [refuses("poison", answer)] * 99
    texts = ["good"] * 5 + ["poison"] + ["well"] * 6
    with pytest.raises(TextsRefused, match="refused 1 of 12 texts, text 5: " + reason) as caught:
        await embed(endpoint, texts)
    assert caught.value.refused == {5: reason}
    rows = caught.value.vectors.tolist()
    assert np.isnan(rows[5]).all()
    assert rows[:5] + rows[6:] == [vector("good")] * 11
    assert len(endpoint.requests) < len(texts)


async def test_the_reason_of_a_refused_text_is_short_and_without_the_key(endpoint: Endpoint) -> None:
    endpoint.script = [refuses("poison", (400, {"error": {"message": f"not for {KEY}: " + "x" * 1000}}))] * 9
    with pytest.raises(TextsRefused) as caught:
        await embed(endpoint, ["poison"])
    assert caught.value.refused[0].startswith("HTTP 400: not for ***: xxx")
    assert len(caught.value.refused[0]) < 400


async def test_what_was_answered_of_a_request_before_its_other_half_failed_is_kept(endpoint: Endpoint) -> None:
    too_many: Answer = (413, {"error": {"message": "too many"}})
    endpoint.script = [too_many, right, *[(503, {"error": {"message": "overloaded"}})] * 3]
    with pytest.raises(PartlyEmbedded, match="overloaded") as caught:
        await embed(endpoint, ["a", "bb", "ccc", "dddd"])
    assert caught.value.vectors[:2].tolist() == [vector("a"), vector("bb")]
    assert np.isnan(caught.value.vectors[2:]).all()


TOO_LONG: Body = {"error": {"code": 500, "message": "input (992 tokens) is too large to process", "type": "server_error"}}


@pytest.mark.parametrize("status", [424, 500, 502, 504])
async def test_a_text_that_makes_the_server_fail_costs_no_other_and_few_requests(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [refuses("poison", (status, TOO_LONG))] * 99
    texts = ["good"] * 37 + ["poison"] + ["good"] * 26
    with pytest.raises(TextsRefused) as caught:
        await embed(endpoint, texts)
    assert caught.value.refused == {37: f"HTTP {status}: input (992 tokens) is too large to process"}
    assert np.flatnonzero(np.isnan(caught.value.vectors[:, 0])).tolist() == [37]
    tries, probes, both_halves_of_six_levels = 3, 2, 12
    assert len(endpoint.requests) == tries + probes + both_halves_of_six_levels


def drops(text: str) -> Callable[[Body], Answer | None]:
    return lambda request: None if text in request["input"] else right(request)


def hangs(text: str, released: threading.Event) -> Callable[[Body], Answer]:
    def answer(request: Body) -> Answer:
        if any(text in sent for sent in request["input"]):
            released.wait(timeout=30)
        return right(request)

    return answer


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Lets go at the end whoever waits."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("how", ["drops", "hangs"])
async def test_a_text_over_which_the_server_drops_the_connection_or_hangs_costs_no_other(
    endpoint: Endpoint, how: str, released: threading.Event
) -> None:
    endpoint.script = [drops("poison") if how == "drops" else hangs("poison", released)] * 99
    with pytest.raises(TextsRefused) as caught:
        await embed(endpoint, ["good"] * 7 + ["poison"] + ["good"] * 8, timeout_seconds=0.3)
    reason = {"drops": "RemoteProtocolError Server disconnected", "hangs": "no whole answer in 0.3 s"}[how]
    assert caught.value.refused.keys() == {7}
    assert caught.value.refused[7].startswith(reason)
    assert np.flatnonzero(np.isnan(caught.value.vectors[:, 0])).tolist() == [7]
    tries, probes, both_halves_of_four_levels = 3, 2, 8
    assert len(endpoint.requests) == tries + probes + both_halves_of_four_levels


async def test_a_search_among_many_texts_that_hang_ends_and_blames_what_it_has_not_told_apart(
    endpoint: Endpoint, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.embedding.openai_embedder._SEARCH_TIME_LIMITS", 2)
    endpoint.script = [hangs("poison", released)] * 999
    texts = ["good"] * 64 + ["poison"] * 63 + ["good"]
    with pytest.raises(TextsRefused) as caught:
        await embed(endpoint, texts, timeout_seconds=0.2)
    assert caught.value.refused.keys() >= set(range(64, 127))
    assert np.flatnonzero(np.isnan(caught.value.vectors[:, 0])).tolist() == sorted(caught.value.refused)
    assert len(endpoint.requests) < 20


async def test_a_server_too_slow_for_a_request_gets_smaller_ones(endpoint: Endpoint) -> None:
    def slow(request: Body) -> Answer:
        time.sleep(0.02 * len(request["input"]))
        return right(request)

    endpoint.script = [slow] * 99
    assert await embed(endpoint, ["good"] * 32, timeout_seconds=0.4) == [vector("good")] * 32


async def test_a_lone_text_is_to_blame_only_when_another_is_answered_and_it_fails_again(endpoint: Endpoint) -> None:
    endpoint.script = [refuses("poison", (500, TOO_LONG))] * 99
    with pytest.raises(TextsRefused, match="refused 1 of 1 texts"):
        await embed(endpoint, ["poison"])
    assert [request["input"] for request in endpoint.requests] == [*[["poison"]] * 3, ["text"], ["poison"], ["text"]]
    endpoint.script = [(500, TOO_LONG)] * 3
    assert await embed(endpoint, ["abc"]) == [vector("abc")]


@pytest.mark.parametrize("other", [(500, TOO_LONG), (400, {"error": {"message": "no"}}), None])
async def test_a_server_that_fails_on_any_text_is_down(endpoint: Endpoint, other: Answer | None) -> None:
    endpoint.script = [*[(500, TOO_LONG)] * 3, other]
    with pytest.raises(EmbedderUnavailable, match="3 attempts: HTTP 500: input"):
        await embed(endpoint, ["a"] * 64)
    assert len(endpoint.requests) == 4


async def test_a_server_that_goes_down_while_a_text_is_looked_for_is_down(endpoint: Endpoint) -> None:
    endpoint.script = [*[(500, TOO_LONG)] * 3, right, *[(500, {"error": "gone"})] * 99]
    with pytest.raises(EmbedderUnavailable, match="3 attempts: HTTP 500: gone"):
        await embed(endpoint, ["a"] * 8)
    assert len(endpoint.requests) == 3 + 1 + 3 + 3


@pytest.mark.parametrize("overloaded", [(503, TOO_LONG), (529, TOO_LONG), (500, TOO_LONG, {"Retry-After": "0"})])
async def test_no_text_is_to_blame_for_a_server_that_says_it_is_overloaded(endpoint: Endpoint, overloaded: Answer) -> None:
    endpoint.script = [refuses("poison", overloaded)] * 99
    with pytest.raises(EmbedderUnavailable, match="3 attempts"):
        await embed(endpoint, ["good", "poison"])
    assert len(endpoint.requests) == 3


async def test_throttling_is_waited_out_while_a_text_is_looked_for(endpoint: Endpoint) -> None:
    endpoint.script = [*[(500, TOO_LONG)] * 3, right, (429, {}), (429, {})]
    assert await embed(endpoint, ["a", "bb"]) == [vector("a"), vector("bb")]


async def test_a_request_of_too_many_texts_is_sent_again_in_halves(endpoint: Endpoint) -> None:
    def takes_eight(request: Body) -> Answer:
        asked = len(request["input"])
        if asked <= 8:
            return right(request)
        return 422, {"message": f"batch size {asked} > maximum allowed batch size 8", "code": 422, "type": "Validation"}

    endpoint.script = [takes_eight] * 99
    texts = ["a" * (n + 1) for n in range(30)]
    assert await embed(endpoint, texts) == [vector(text) for text in texts]


async def test_a_refusal_of_every_text_is_the_settings_fault_and_soon_told(endpoint: Endpoint) -> None:
    endpoint.script = [(422, {"message": "model is loading something else", "type": "Validation"})] * 99
    with pytest.raises(ConfigError, match=r"HTTP 422: model is loading.*check embedding\.model"):
        await embed(endpoint, ["a"] * 64)
    assert len(endpoint.requests) == 8
    with pytest.raises(ConfigError, match="model is loading"):
        await embedder(endpoint).embed_query("a")
