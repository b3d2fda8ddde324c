import json
from datetime import UTC, datetime
from itertools import count

import httpx
import pytest

from pipeline.errors import ConfigError, IncompleteListing
from pipeline.llama_cloud.models import DirectoryFile
from pipeline_tests.llama_cloud.fake_cloud import (
    FakeCloud,
    cloud_with,
    failure,
    file_body,
    index_body,
    list_all,
)

LISTING = "/beta/directories/dir-out/files"


def listing(text: str) -> httpx.Response:
    return httpx.Response(200, content=text.encode(), headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("choice", "output", "listed"),
    [
        ("auto", "dir-out", "dir-out"),
        ("auto", None, "dir-src"),
        ("output", "dir-out", "dir-out"),
        ("source", "dir-out", "dir-src"),
    ],
)
async def test_the_payload_directory_is_the_one_chosen(choice: str, output: str | None, listed: str) -> None:
    cloud = FakeCloud(
        indexes=[index_body(output_directory_id=output)],
        script=lambda request: httpx.Response(200, json={"items": []}) if request.url.path.endswith("/files") else None,
    )
    async with cloud.source(payload_directory=choice) as source:
        assert await list_all(source) == {}
    assert cloud.count(f"/directories/{listed}/files") == 1


async def test_a_missing_output_directory_names_the_setting() -> None:
    async with FakeCloud(indexes=[index_body(output_directory_id=None)]).source(payload_directory="output") as source:
        with pytest.raises(ConfigError, match="payload_directory"):
            await list_all(source)


async def test_a_directory_that_does_not_exist_names_the_setting() -> None:
    async with FakeCloud(indexes=[index_body(output_directory_id="gone")]).source() as source:
        with pytest.raises(ConfigError, match="payload_directory"):
            await list_all(source)


async def test_a_listing_goes_through_all_pages_and_resumes_from_a_token() -> None:
    cloud = cloud_with(25, page_size=10)
    async with cloud.source() as source:
        pages = [page async for page in source.list_files()]
        assert [len(page.files) for page in pages] == [10, 10, 5]
        assert pages[-1].next_page_token is None
        rest = [page async for page in source.list_files(page_token=pages[0].next_page_token)]
        assert rest == pages[1:]
        assert len(await list_all(source)) == 25
    assert cloud.count("page_size=1000") == 8


async def test_what_the_api_says_of_a_file_is_kept_and_cleaned() -> None:
    cloud = FakeCloud(
        files=[
            file_body(
                1, display_name="a\ud800b", metadata={"f": 1.5, "l": ["x"], "n": None, "nested": {"k": [1]}, "t\x00": "\x00"}
            ),
            file_body(2, display_name=None, metadata=None, file_id=None, updated_at=None),
        ],
        script=lambda request: listing(json.dumps({"items": cloud.files})) if LISTING in str(request.url) else None,
    )
    async with cloud.source() as source:
        files = await list_all(source)
    assert files["dfl-1"].display_name == "a\ufffdb"
    assert files["dfl-1"].metadata == {"f": 1.5, "l": ["x"], "n": None, "nested": '{"k": [1]}', "t\ufffd": "\ufffd"}
    assert files["dfl-1"].updated_at == datetime(2026, 11, 20, 10, 0, 1, tzinfo=UTC)
    assert files["dfl-2"] == DirectoryFile(id="dfl-2", display_name="f2.pdf", file_id=None)


async def test_updated_since_is_sent_as_the_inclusive_limit() -> None:
    cloud = cloud_with(10)
    async with cloud.source() as source:
        since = datetime(2026, 11, 20, 10, 0, 7, tzinfo=UTC)
        (page,) = [page async for page in source.list_files(updated_since=since)]
    assert [found.id for found in page.files] == ["dfl-7", "dfl-8", "dfl-9"]


async def test_soft_deleted_files_are_left_out_and_an_emptied_page_does_not_end_the_listing() -> None:
    gone = [file_body(number, deleted_at="2026-11-20T00:00:00Z") for number in range(2)]
    cloud = FakeCloud(files=[*gone, file_body(2)], page_size=2)
    async with cloud.source() as source:
        assert list(await list_all(source)) == ["dfl-2"]


async def test_an_empty_page_with_a_token_is_not_the_end() -> None:
    pages = iter([{"items": [], "next_page_token": "t"}, {"items": [file_body(1)], "next_page_token": ""}])
    cloud = FakeCloud(script=lambda request: httpx.Response(200, json=next(pages)) if LISTING in str(request.url) else None)
    async with cloud.source() as source:
        assert list(await list_all(source)) == ["dfl-1"]


@pytest.mark.parametrize(
    "second",
    [
        failure(500),
        failure(401),
        failure(400, "page token expired"),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"items": None}),
        httpx.Response(200, json={"items": ["?"]}),
        httpx.Response(200, json={"items": [{"display_name": "no id"}]}),
        httpx.Response(200, json={"items": [], "next_page_token": 7}),
        httpx.Response(200, json={"items": [file_body(1)], "next_page_token": "1"}),
        httpx.Response(200, text="<html>"),
    ],
)
async def test_a_listing_that_breaks_half_way_is_incomplete(second: httpx.Response) -> None:
    cloud = cloud_with(3, page_size=1)
    cloud.script = lambda request: second if "page_token" in str(request.url) else None
    async with cloud.source() as source:
        with pytest.raises(IncompleteListing):
            await list_all(source)


async def test_a_token_that_is_no_longer_accepted_is_an_incomplete_listing() -> None:
    cloud = FakeCloud(script=lambda request: failure(400, "expired") if "page_token=old" in str(request.url) else None)
    async with cloud.source() as source:
        with pytest.raises(IncompleteListing, match="expired"):
            _ = [page async for page in source.list_files(page_token="old")]


async def test_a_listing_that_repeats_itself_under_ever_new_tokens_ends() -> None:
    tokens = count()

    def again(request: httpx.Request) -> httpx.Response | None:
        page = {"items": [file_body(1), file_body(2)], "next_page_token": f"t{next(tokens)}"}
        return httpx.Response(200, json=page) if LISTING in str(request.url) else None

    async with FakeCloud(script=again).source() as source:
        with pytest.raises(IncompleteListing, match="does not end"):
            await list_all(source)


async def test_many_pages_without_news_are_not_the_end() -> None:
    """Filtered pages may be empty, and a directory that changes meanwhile shows a file again."""
    barren = [[], [file_body(0)]] * 45
    pages = iter([[file_body(0)], *barren, [file_body(1)], *barren, [file_body(2)]])
    tokens = count()

    def page(request: httpx.Request) -> httpx.Response | None:
        if LISTING not in str(request.url):
            return None
        items = next(pages)
        token = None if items == [file_body(2)] else f"t{next(tokens)}"
        return httpx.Response(200, json={"items": items, "next_page_token": token})

    async with FakeCloud(script=page).source() as source:
        assert list(await list_all(source)) == ["dfl-0", "dfl-1", "dfl-2"]
