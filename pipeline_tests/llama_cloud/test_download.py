import asyncio
import gzip
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from pipeline.errors import PayloadError, PayloadOutOfReach
from pipeline.llama_cloud.addresses import AddressPolicy
from pipeline.llama_cloud.download import PayloadDownloader, RetryPolicy
from pipeline.llama_cloud.models import DirectoryFile
from pipeline.llama_cloud.wire import PresignedUrl
from pipeline_tests.llama_cloud.samples import FILE

SECRET = "sig-do-not-show"
URL = PresignedUrl(f"https://storage.example/{SECRET}?{SECRET}", None)
Handler = Callable[[httpx.Request], httpx.Response]


class Resolver:
    """Counts how often a fresh URL was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, file: DirectoryFile) -> PresignedUrl:
        self.calls += 1
        return PresignedUrl(f"https://storage.example/fresh?{SECRET}", None)


def downloader(handler: Handler, resolver: Resolver | None = None, **options: int) -> PayloadDownloader:
    return PayloadDownloader(
        resolver or Resolver(),
        addresses=AddressPolicy(),
        retries=RetryPolicy(attempts=3, base_seconds=0.0),
        transport=httpx.MockTransport(handler),
        **options,
    )


def answers(*responses: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """Each response in turn, the last one for ever, and what was asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = responses[min(len(asked), len(responses)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

    return handle, asked


async def refusal(handler: Handler, url: PresignedUrl | None = URL, **options: int) -> PayloadError:
    async with downloader(handler, None, **options) as downloads:
        with pytest.raises(PayloadError) as refused:
            await downloads.download(FILE, url)
    return refused.value


async def test_the_body_arrives_as_stored_and_no_credentials_are_sent() -> None:
    handle, asked = answers(httpx.Response(200, content=gzip.compress(b"{}", mtime=0)))
    async with downloader(handle) as downloads:
        assert await downloads.download(FILE, URL) == gzip.compress(b"{}", mtime=0)
    assert "Authorization" not in asked[0].headers
    assert asked[0].headers["Accept-Encoding"] == "identity"


async def test_a_body_with_content_encoding_gzip_is_left_to_the_bounded_decoder() -> None:
    def encoded(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(b"{}", mtime=0)))

    async with downloader(encoded) as downloads:
        assert await downloads.download(FILE, URL) == gzip.compress(b"{}", mtime=0)


async def test_another_content_encoding_is_named() -> None:
    def encoded(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": "br"}, stream=httpx.ByteStream(b"?"))

    assert "Content-Encoding 'br'" in str(await refusal(encoded))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_refused_url_is_asked_for_again_once(status: int) -> None:
    handle, asked = answers(httpx.Response(status), httpx.Response(200, content=b"ok"))
    resolver = Resolver()
    async with downloader(handle, resolver) as downloads:
        assert await downloads.download(FILE, URL) == b"ok"
    assert resolver.calls == 1
    assert [request.url.path for request in asked] == [f"/{SECRET}", "/fresh"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, PayloadOutOfReach), (401, PayloadOutOfReach), (403, PayloadOutOfReach), (404, PayloadError), (410, PayloadError)],
)
async def test_a_fresh_url_refused_too_may_be_the_storages_fault_unless_it_has_nothing_there(
    status: int, kind: type[PayloadError]
) -> None:
    handle, asked = answers(httpx.Response(status))
    error = await refusal(handle)
    assert type(error) is kind
    assert f"HTTP {status}" in str(error)
    assert "q3.pdf" in str(error)
    assert len(asked) == 2


async def test_an_expiring_url_is_replaced_before_it_is_tried() -> None:
    handle, asked = answers(httpx.Response(200, content=b"ok"))
    resolver = Resolver()
    async with downloader(handle, resolver) as downloads:
        await downloads.download(FILE, PresignedUrl("https://storage.example/old", datetime.now(UTC) + timedelta(seconds=5)))
    assert [request.url.path for request in asked] == ["/fresh"]


@pytest.mark.parametrize(
    "first",
    [
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503),
        httpx.ConnectError("x"),
        httpx.ReadError("x"),
        httpx.ReadTimeout("x"),
    ],
)
async def test_what_may_pass_is_tried_again(first: httpx.Response | Exception) -> None:
    handle, asked = answers(first, httpx.Response(200, content=b"ok"))
    async with downloader(handle) as downloads:
        assert await downloads.download(FILE, URL) == b"ok"
    assert len(asked) == 2


@pytest.mark.parametrize(
    "last",
    [
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503),
        httpx.ConnectError("x"),
        httpx.ConnectTimeout("x"),
        httpx.ReadError("x"),
        httpx.RemoteProtocolError("x"),
    ],
)
async def test_a_store_that_fails_every_time_may_do_so_for_this_file_alone_or_for_all(last: httpx.Response | Exception) -> None:
    handle, asked = answers(last)
    assert isinstance(await refusal(handle), PayloadOutOfReach)
    assert len(asked) == 3


async def test_an_answer_that_will_not_change_is_not_tried_again() -> None:
    handle, asked = answers(httpx.Response(418))
    assert type(await refusal(handle)) is PayloadError
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    [
        ("7", 7, 7),
        ("9999", 60, 60),
        ("soon", 1.5, 2),
        (None, 1.5, 2),
        (format_datetime(datetime(2020, 1, 1, tzinfo=UTC)), 1.5, 2),
        ("Fri, 01 Jan 99999999999999999999 00:00:00 GMT", 1.5, 2),
    ],
)
async def test_pauses_follow_the_server_within_limits(
    retry_after: str | None, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def record(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("pipeline.llama_cloud.download.asyncio.sleep", record)
    headers = {"Retry-After": retry_after} if retry_after else {}
    handle, _ = answers(httpx.Response(503, headers=headers), httpx.Response(200, content=b"ok"))
    policy = RetryPolicy(attempts=2, base_seconds=2.0)
    async with PayloadDownloader(
        Resolver(), addresses=AddressPolicy(), retries=policy, transport=httpx.MockTransport(handle)
    ) as downloads:
        await downloads.download(FILE, URL)
    (pause,) = pauses
    assert low <= pause <= high


async def test_a_declared_size_over_the_limit_is_refused_before_reading() -> None:
    class Unreadable(httpx.AsyncByteStream):
        def __aiter__(self) -> AsyncIterator[bytes]:
            raise AssertionError("the body was read")

    error = await refusal(
        lambda _: httpx.Response(200, headers={"Content-Length": "11"}, stream=Unreadable()), max_payload_bytes=10
    )
    assert "max_payload_bytes (10 bytes)" in str(error)


async def test_an_undeclared_size_over_the_limit_stops_the_download() -> None:
    sent = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1
                yield b"12345"

    error = await refusal(lambda _: httpx.Response(200, stream=Endless()), max_payload_bytes=10)
    assert isinstance(error, PayloadError)
    assert sent == 3


async def test_all_tries_together_have_one_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dripping(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.01)
                yield b" "

    monkeypatch.setattr("pipeline.llama_cloud.download._TOTAL_SECONDS", 0.1)
    tries: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        return httpx.Response(200, stream=Dripping())

    error = await refusal(handle)
    assert isinstance(error, PayloadOutOfReach)
    assert "it takes longer than" in str(error)
    assert len(tries) == 1


def redirecting(location: str) -> Handler:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/target":
            return httpx.Response(200, stream=httpx.ByteStream(b"there"))
        return httpx.Response(307, headers={"Location": location})

    return handle


async def test_redirects_are_followed() -> None:
    async with downloader(redirecting("/target")) as downloads:
        assert await downloads.download(FILE, URL) == b"there"


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://storage.example/target", "from https to http"),
        ("/again", "redirects more than 5 times"),
        ("https://host:port/target", "not an HTTP URL"),
        ("https://host:99999/target", "not an HTTP URL"),
        ("file:///etc/passwd", "https to http"),
    ],
)
async def test_redirects_that_lead_nowhere_safe_are_refused(location: str, says: str) -> None:
    assert says in str(await refusal(redirecting(location)))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://storage.example/x",
        "not a url",
        "http://host:port/",
        "http://127.0.0.1:99999/",
        "https://" + "a" * 70000,
        "https://xn--/x",
        "https://storage.example/\ud800",
    ],
    ids=lambda url: ascii(url[:30]),
)
@pytest.mark.parametrize("private", [False, True])
async def test_a_url_that_is_none_is_refused(url: str, private: bool) -> None:
    async with PayloadDownloader(Resolver(), addresses=AddressPolicy(private), retries=RetryPolicy(attempts=1)) as downloads:
        with pytest.raises(PayloadError):
            await downloads.download(FILE, PresignedUrl(url, None))


async def test_no_more_downloads_run_at_once_than_allowed() -> None:
    running = highest = 0

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1
        return httpx.Response(200, stream=httpx.ByteStream(b"ok"))

    async with PayloadDownloader(
        Resolver(), addresses=AddressPolicy(), max_concurrent=3, transport=httpx.MockTransport(handle)
    ) as downloads:
        await asyncio.gather(*(downloads.download(FILE, URL) for _ in range(20)))
    assert highest == 3


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "outcome",
    [
        httpx.Response(403),
        httpx.Response(500),
        httpx.Response(302, headers={"Location": f"https://other.example/{SECRET}"}),
        httpx.ConnectError(f"cannot reach https://storage.example/{SECRET}"),
        httpx.ReadError(SECRET),
        httpx.UnsupportedProtocol(SECRET),
        httpx.InvalidURL(SECRET),
        ssl.SSLError(SECRET),
    ],
)
async def test_the_url_is_in_no_error_no_log_and_no_repr(
    outcome: httpx.Response | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if isinstance(outcome, ssl.SSLError):
        outcome = httpx.ConnectError(str(outcome))
    error = await refusal(answers(outcome)[0])
    assert SECRET not in "".join(traceback.format_exception(error))
    for link in chain(error):
        assert SECRET not in repr(link)
        assert SECRET not in repr(vars(link))
    assert SECRET not in caplog.text
    assert SECRET not in repr(URL)


async def test_other_requests_of_the_process_are_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    handle, _ = answers(httpx.Response(200, content=b"ok"))
    async with downloader(handle) as downloads, httpx.AsyncClient(transport=httpx.MockTransport(handle)) as other:
        await downloads.download(FILE, URL)
        await other.get("https://elsewhere.example/visible")
    assert "elsewhere.example/visible" in caplog.text
    assert "storage.example" not in caplog.text
