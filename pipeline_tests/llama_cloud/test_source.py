import asyncio
import traceback
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from pipeline.errors import ConfigError, SourceUnavailable
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline_tests.llama_cloud.fake_cloud import (
    API_KEY,
    FakeCloud,
    failure,
    index_body,
)


@pytest.mark.parametrize("named", [{"index_id": "a", "index_name": "b"}, {"index_id": ""}, {"index_name": ""}])
def test_an_index_is_named_in_one_way_at_most(named: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        LlamaCloudSettings.model_validate(named)


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_a_missing_key_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("LLAMA_CLOUD_API_KEY", key)
    monkeypatch.delenv("LLAMA_PARSE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="no LlamaCloud API key: set the environment variable LLAMA_CLOUD_API_KEY"):
        LlamaCloudSource(LlamaCloudSettings(index_id="idx"))


@pytest.mark.parametrize("key", ["llx-sec\nret", "llx secret", "llx-sécret"])
def test_a_key_no_header_can_hold_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError, match="LLAMA_CLOUD_API_KEY holds white space") as refused:
        LlamaCloudSource(LlamaCloudSettings(index_id="idx"), api_key=SecretStr(key))
    assert "ret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://host:port", "http://", "http://host:114343", "http://xn--a"]
)
def test_a_base_url_that_is_none_names_the_variable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CLOUD_BASE_URL", url)
    with pytest.raises(ConfigError, match="LLAMA_CLOUD_BASE_URL"):
        LlamaCloudSource(LlamaCloudSettings(index_id="idx"), api_key=SecretStr(API_KEY))


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_the_sources_fault_and_names_the_variable(status: int) -> None:
    cloud = FakeCloud(script=lambda _: failure(status))
    async with cloud.source() as source:
        with pytest.raises(SourceUnavailable, match="LLAMA_CLOUD_API_KEY") as refused:
            await source.get_index()
    assert API_KEY not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failing_api_is_unavailable(status: int) -> None:
    async with FakeCloud(script=lambda _: failure(status, "try later")).source() as source:
        with pytest.raises(SourceUnavailable, match=f"HTTP {status}: try later"):
            await source.get_index()


async def test_an_api_that_cannot_be_reached_is_named() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with FakeCloud(script=refuse).source() as source:
        with pytest.raises(SourceUnavailable, match=r"https://api\.example.*LLAMA_CLOUD_BASE_URL"):
            await source.get_index()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_all_tries_of_a_request_together_have_one_limit_of_time(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dripping(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.01)
                yield b" "

    monkeypatch.setattr("pipeline.llama_cloud.api._TOTAL_SECONDS", 0.1)
    cloud = FakeCloud(script=lambda request: httpx.Response(200, stream=Dripping()) if request.method == method else None)
    async with cloud.source() as source, asyncio.timeout(20):
        with pytest.raises(SourceUnavailable, match="took longer than"):
            await source.start_sync()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>a proxy's login page</html>"),
        httpx.Response(200, content=b"", headers={"Content-Type": "application/json"}),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"id": "idx"}),
        httpx.Response(200, json=index_body(id="idx\n1")),
        httpx.Response(200, content=b"[" * 100_000),
    ],
)
async def test_success_with_the_wrong_content_is_unavailable(answer: httpx.Response) -> None:
    async with FakeCloud(script=lambda _: answer).source() as source:
        with pytest.raises(SourceUnavailable, match="LLAMA_CLOUD_BASE_URL"):
            await source.get_index()


async def test_requests_are_spaced_by_the_limit() -> None:
    moments: list[float] = []

    def note(_: httpx.Request) -> None:
        moments.append(asyncio.get_running_loop().time())

    async with FakeCloud(script=note).source(requests_per_second=50) as source:
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(source.get_index() for _ in range(4)))
    assert moments[-1] - started >= 0.058


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
async def test_requests_to_this_machine_are_not_spaced(host: str) -> None:
    cloud = FakeCloud()
    source = LlamaCloudSource(
        LlamaCloudSettings(index_id="idx-1", requests_per_second=0.01),
        api_key=SecretStr(API_KEY),
        base_url=f"http://{host}:8800",
        transport=httpx.MockTransport(cloud.handle),
    )
    async with source, asyncio.timeout(50):
        await asyncio.gather(*(source.get_index() for _ in range(3)))
    assert cloud.count("idx-1") == 3


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_keeps_the_vendors_words_but_never_the_key(status: int) -> None:
    detail = f"Index V2 is not part of your plan ({API_KEY})" + "." * 1000
    async with FakeCloud(script=lambda _: failure(status, detail)).source() as source:
        with pytest.raises(SourceUnavailable, match="Index V2 is not part of your plan") as refused:
            await source.get_index()
    assert API_KEY not in str(refused.value)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize(("status", "error"), [(422, ConfigError), (500, SourceUnavailable)])
async def test_a_presigned_url_in_the_vendors_words_is_shown_without_its_signature(status: int, error: type[Exception]) -> None:
    detail = "Client error '403 Forbidden' for url 'https://storage.example/a?X-Amz-Signature=secret'"
    async with FakeCloud(script=lambda _: failure(status, detail)).source() as source:
        with pytest.raises(error, match=r"'403 Forbidden' for url 'https://storage\.example/a'") as refused:
            await source.get_index()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("said", ["of an answer", "of the index"])
async def test_a_key_in_the_vendors_words_is_not_shown(said: str) -> None:
    words = "x" * 290 + f" {API_KEY}"
    index = index_body(metadata={"status": "failed", "error_message": words})
    cloud = FakeCloud(indexes=[index]) if said == "of the index" else FakeCloud(script=lambda _: failure(422, words))
    async with cloud.source() as source:
        try:
            told = (await source.get_index()).error_message
        except ConfigError as error:
            told = str(error)
    assert told is not None
    assert "xxx ***" in told
    assert "llx" not in told


async def test_a_base_url_with_a_path_too_many_is_named() -> None:
    async with FakeCloud(script=lambda _: failure(404, "Not Found")).source(base_url="https://bob:pw@api.example/api") as source:
        with pytest.raises(ConfigError, match=r"404: Not Found.*LLAMA_CLOUD_BASE_URL \(https://api\.example/api/? now\)"):
            await source.get_index()


async def test_throttling_that_outlasts_the_retries_names_the_limit_to_lower() -> None:
    async with FakeCloud(script=lambda _: failure(429)).source() as source:
        with pytest.raises(SourceUnavailable, match="HTTP 429: no; lower requests_per_second"):
            await source.get_index()


async def test_headers_that_no_request_can_hold_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CLOUD_CUSTOM_HEADERS", "X-Team: sécret")
    async with FakeCloud().source() as source:
        with pytest.raises(ConfigError, match="LLAMA_CLOUD_CUSTOM_HEADERS") as refused:
            await source.get_index()
    assert "cret" not in str(refused.value)
