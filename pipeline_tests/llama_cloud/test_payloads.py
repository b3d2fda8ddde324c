import asyncio
import json
import logging
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from pipeline.errors import PayloadError, PayloadOutOfReach, SourceUnavailable
from pipeline.llama_cloud.models import DirectoryFile, Payload
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline_tests.llama_cloud.fake_cloud import (
    API_KEY,
    BASE_URL,
    URL_SECRET,
    FakeCloud,
    cloud_with,
    failure,
    list_all,
    payload_of,
    presigned,
)


def file(number: int, **changes: Any) -> DirectoryFile:
    fields: dict[str, Any] = {"id": f"dfl-{number}", "display_name": f"f{number}.pdf", "file_id": f"file-{number}"}
    return DirectoryFile(**(fields | changes))


async def test_one_payload_takes_one_request_and_one_download() -> None:
    cloud = cloud_with(1)
    async with cloud.source() as source:
        payload = await payload_of(source, file(0))
    assert [page.page_number for page in payload.pages] == [1, 2]
    assert [request.url.path for request in cloud.requests] == ["/api/v1/beta/files/file-0/content", "/file-0"]


async def test_a_file_without_storage_is_not_asked_for() -> None:
    cloud = cloud_with(1)
    async with cloud.source() as source:
        with pytest.raises(PayloadError, match="not stored yet"):
            await payload_of(source, file(0, file_id=None))
    assert cloud.requests == []


@pytest.mark.parametrize("answer", [failure(404), failure(422), httpx.Response(200, json={"url": None})])
async def test_a_url_that_cannot_be_had_is_the_files_fault(answer: httpx.Response) -> None:
    async with FakeCloud(script=lambda _: answer).source() as source:
        with pytest.raises(PayloadError, match=r"f0\.pdf") as refused:
            await payload_of(source, file(0))
    assert refused.type is PayloadError


@pytest.mark.parametrize("answer", [failure(403), failure(500), failure(503), httpx.Response(200, text="<html>")])
async def test_a_url_that_cannot_be_had_now_may_be_so_for_this_file_alone_or_for_all(answer: httpx.Response) -> None:
    async with FakeCloud(script=lambda _: answer).source() as source:
        with pytest.raises(PayloadOutOfReach, match=r"f0\.pdf"):
            await payload_of(source, file(0))


@pytest.mark.parametrize("answer", [failure(401), failure(429)])
async def test_an_api_that_refuses_everything_is_not_the_files_fault(answer: httpx.Response) -> None:
    async with FakeCloud(script=lambda _: answer).source() as source:
        with pytest.raises(SourceUnavailable):
            await payload_of(source, file(0))


async def fetch_all(source: LlamaCloudSource, files: list[DirectoryFile]) -> dict[str, Payload | PayloadError]:
    return {found.id: outcome async for found, outcome in source.fetch_payloads(files)}


async def test_many_payloads_take_their_urls_from_listings() -> None:
    cloud = cloud_with(300, page_size=100)
    async with cloud.source() as source:
        outcomes = await fetch_all(source, list((await list_all(source)).values()))
    assert len(outcomes) == 300
    assert all(isinstance(outcome, Payload) for outcome in outcomes.values())
    assert cloud.count("/content") == 0
    assert cloud.count("expand=download_url") == 3


async def test_few_payloads_are_asked_for_one_by_one() -> None:
    cloud = cloud_with(300)
    async with cloud.source() as source:
        assert len(await fetch_all(source, [file(number) for number in range(5)])) == 5
    assert cloud.count("/content") == 5
    assert cloud.count("expand=") == 0


async def test_only_the_span_of_the_wanted_files_is_listed() -> None:
    cloud = cloud_with(60)
    async with cloud.source() as source:
        files = await list_all(source)
        assert len(await fetch_all(source, [files[f"dfl-{number}"] for number in range(20, 46)])) == 26
    (asked,) = [request.url.params for request in cloud.requests if request.url.params.get("expand") == "download_url"]
    assert asked["updated_at_on_or_after"] == "2026-11-20T10:00:19+00:00"
    assert asked["updated_at_on_or_before"] == "2026-11-20T10:00:46+00:00"
    assert cloud.count("/content") == 0


async def test_listing_is_given_up_when_it_costs_more_than_it_saves() -> None:
    cloud = cloud_with(4000, page_size=100)
    async with cloud.source() as source:
        assert len(await fetch_all(source, [file(number) for number in range(3000, 3050)])) == 50
    assert cloud.count("expand=download_url") == 2
    assert cloud.count("/content") == 50


async def test_listings_without_urls_fall_back_to_single_requests() -> None:
    cloud = cloud_with(30, gives_urls=False)
    async with cloud.source() as source:
        assert len(await fetch_all(source, [file(number) for number in range(30)])) == 30
    assert cloud.count("/content") == 30


@pytest.mark.parametrize(
    "answer",
    [
        failure(500),
        failure(403),
        failure(404),
        failure(422),
        httpx.Response(200, json={"items": [{"display_name": "no id"}]}),
        httpx.Response(200, text="<html>of a gateway</html>"),
        httpx.ReadTimeout("x"),
        httpx.RemoteProtocolError("x"),
    ],
)
@pytest.mark.parametrize("page", [1, 2])
async def test_a_listing_that_fails_falls_back_to_single_requests(answer: httpx.Response | Exception, page: int) -> None:
    cloud = cloud_with(60, page_size=30)

    def fails(request: httpx.Request) -> httpx.Response | None:
        if "expand=download_url" not in str(request.url) or (page == 2 and "page_token=" not in str(request.url)):
            return None
        if isinstance(answer, Exception):
            raise answer
        return answer

    cloud.script = fails
    async with cloud.source() as source:
        outcomes = await fetch_all(source, [file(number) for number in range(60)])
    assert sum(isinstance(outcome, Payload) for outcome in outcomes.values()) == 60
    assert cloud.count("/content") == (60 if page == 1 else 30)


async def test_a_listed_file_with_another_storage_id_is_not_taken_for_the_wanted_one() -> None:
    cloud = cloud_with(30)
    wanted = [file(number) for number in range(29)] + [file(29, file_id="older")]
    async with cloud.source() as source:
        assert len(await fetch_all(source, wanted)) == 30
    assert cloud.count("/content") == cloud.count("/files/older/content") == 1


async def test_a_file_asked_for_twice_comes_once() -> None:
    async with cloud_with(2).source() as source:
        assert [found.id async for found, _ in source.fetch_payloads([file(0), file(0)])] == ["dfl-0"]


async def test_one_bad_file_does_not_stop_the_others() -> None:
    cloud = cloud_with(40)
    cloud.script = lambda request: (
        httpx.Response(200, stream=httpx.ByteStream(b"%PDF"))
        if str(request.url).startswith("https://storage.example/file-7?")
        else None
    )
    async with cloud.source() as source:
        outcomes = await fetch_all(source, [file(number) for number in range(39)] + [file(39, file_id=None)])
    bad = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, PayloadError)}
    assert len(outcomes) == 40
    assert sorted(bad) == ["dfl-39", "dfl-7"]
    assert "looks like a PDF" in bad["dfl-7"].reason


@pytest.mark.parametrize(
    ("address", "redirected"),
    [("https://xn--/x", False), ("https://xn--/x", True), ("https://storage.example/\ud800", False)],
    ids=ascii,
)
async def test_an_address_that_is_none_is_an_error_of_its_file_alone(address: str, redirected: bool) -> None:
    answer = {"url": address, "expires_at": "2126-01-01T00:00:00Z"}

    def odd(request: httpx.Request) -> httpx.Response | None:
        if redirected and request.url.path == "/file-3":
            return httpx.Response(302, headers={"Location": address})
        if not redirected and request.url.path.endswith("/file-3/content"):
            return httpx.Response(200, content=json.dumps(answer), headers={"Content-Type": "application/json"})
        return None

    async with cloud_with(5, script=odd).source() as source:
        outcomes = await fetch_all(source, [file(number) for number in range(5)])
    assert [key for key, outcome in outcomes.items() if isinstance(outcome, PayloadError)] == ["dfl-3"]
    assert len(outcomes) == 5


@pytest.mark.parametrize("file_id", ["..", ".", "a\ud800b"], ids=ascii)
async def test_a_file_id_that_no_request_can_hold_is_an_error_of_its_file_alone(file_id: str) -> None:
    cloud = cloud_with(5)
    cloud.files[3]["file_id"] = file_id
    listing = httpx.Response(200, content=json.dumps({"items": cloud.files}), headers={"Content-Type": "application/json"})

    def odd(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/files"):
            return listing
        return failure(404) if request.url.host == "api.example" and "�" in request.url.path else None

    cloud.script = odd
    async with cloud.source() as source:
        listed = await list_all(source)
        outcomes = await fetch_all(source, list(listed.values()))
    assert [key for key, outcome in outcomes.items() if isinstance(outcome, PayloadError)] == ["dfl-3"]
    assert len(outcomes) == 5
    assert listed["dfl-3"].change_token.encode()


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_a_time_that_stands_for_none_costs_no_other_file_its_payload(moment: str) -> None:
    cloud = cloud_with(30)
    cloud.files[3]["updated_at"] = moment
    async with cloud.source() as source:
        listed = await list_all(source)
        outcomes = await fetch_all(source, list(listed.values()))
    assert listed["dfl-3"].updated_at is None
    assert all(isinstance(outcome, Payload) for outcome in outcomes.values())


@pytest.mark.parametrize(("status", "says"), [(401, "LLAMA_CLOUD_API_KEY"), (429, "HTTP 429")])
@pytest.mark.parametrize("count", [5, 40])
async def test_an_unavailable_source_stops_everything(count: int, status: int, says: str) -> None:
    cloud = cloud_with(40)
    cloud.script = lambda request: (
        failure(status) if "/content" in str(request.url) or "expand=download_url" in str(request.url) else None
    )
    async with cloud.source() as source:
        with pytest.raises(SourceUnavailable, match=says):
            await fetch_all(source, [file(number) for number in range(count)])
    assert cloud.count("storage.example") == 0


async def test_stopping_early_leaves_nothing_running() -> None:
    async with cloud_with(300, page_size=100).source() as source:
        async with aclosing(source.fetch_payloads([file(number) for number in range(300)])) as outcomes:
            async for _ in outcomes:
                break
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_files_need_no_requests() -> None:
    cloud = cloud_with(1)
    async with cloud.source() as source:
        assert await fetch_all(source, []) == {}
    assert cloud.requests == []


async def test_neither_key_nor_url_is_ever_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cloud = cloud_with(40)
    expired = {"dfl-1": presigned("file-1", "2020-01-01T00:00:00Z")}
    cloud.files = [entry | {"download_url": expired.get(entry["id"])} for entry in cloud.files]
    async with cloud.source() as source:
        await fetch_all(source, [file(number) for number in range(40)])
        await payload_of(source, file(0))
    assert BASE_URL in caplog.text
    assert URL_SECRET not in caplog.text
    assert API_KEY not in caplog.text
