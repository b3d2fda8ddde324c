"""Every fault knob, seen through the SDK and a plain HTTP client."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import llama_cloud
import pytest
from pydantic import ValidationError

from pipeline.local_cloud.faults import Faults
from pipeline_tests.local_cloud.harness import Harness, bearer, metadata, running


def _url(cloud: Harness, name: str = "hello.md") -> str:
    file_id = cloud.output()[name].file_id
    assert file_id is not None
    return cloud.client.files.content(file_id).url


def _names(cloud: Harness, *, page_size: int) -> list[str]:
    directory = cloud.index().output_directory_id
    assert directory is not None
    return [file.display_name for file in cloud.client.beta.directories.files.list(directory, page_size=page_size)]


@pytest.fixture
def many(cloud: Harness, documents: Path) -> Harness:
    """Ten parsed files, d00.txt to d09.txt."""
    (documents / "hello.md").unlink()
    (documents / "guides" / "boats.txt").unlink()
    for number in range(10):
        (documents / f"d{number:02d}.txt").write_text(str(number))
    cloud.sync()
    return cloud


def test_throttled_requests_say_when_to_come_back_and_end(cloud: Harness) -> None:
    cloud.inject(rate_limited_requests=2, retry_after_seconds=7)
    for _ in range(2):
        with pytest.raises(llama_cloud.RateLimitError) as throttled:
            cloud.client.indexes.list()
        assert throttled.value.response.headers["retry-after"] == "7"
    assert cloud.client.indexes.list().items


def test_the_sdk_rides_out_a_burst_of_errors(cloud: Harness) -> None:
    cloud.inject(server_error_requests=1, server_error_status=502)
    with pytest.raises(llama_cloud.InternalServerError) as failed:
        cloud.client.indexes.list()
    assert failed.value.status_code == 502
    cloud.inject(rate_limited_requests=1, retry_after_seconds=0.01, server_error_requests=1)
    assert cloud.client.with_options(max_retries=3).indexes.list().items


def test_faults_do_not_lock_the_admin_out(cloud: Harness) -> None:
    cloud.inject(server_error_requests=1000)
    cloud.inject()
    assert cloud.client.indexes.list().items


def test_urls_expire_on_demand_and_a_second_try_works(cloud: Harness) -> None:
    url = _url(cloud)
    cloud.inject(expired_blob_requests=1)
    assert [httpx.get(url).status_code for _ in range(2)] == [403, 200]


def test_chosen_files_have_no_file_id_yet(cloud: Harness) -> None:
    cloud.inject(null_file_ids=["*.md"])
    listed = cloud.output(expand=["download_url"])
    assert listed["hello.md"].file_id is None
    assert listed["hello.md"].download_url is None
    assert listed["guides/boats.txt"].file_id is not None


@pytest.mark.parametrize("fault", ["truncated", "not_json"])
def test_payloads_can_be_no_json(cloud: Harness, fault: str) -> None:
    url, other = _url(cloud), _url(cloud, "guides/boats.txt")
    cloud.inject(payloads={"*.md": fault})
    answer = httpx.get(url)
    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        answer.json()
    assert "parse" in httpx.get(other).json()


def test_payloads_can_have_an_unknown_shape_or_be_missing(cloud: Harness) -> None:
    url = _url(cloud)
    cloud.inject(payloads={"hello.md": "wrong_shape"})
    assert "parse" not in httpx.get(url).json()
    cloud.inject(payloads={"hello.md": "missing"})
    assert httpx.get(url).status_code == 404


def test_faults_spoil_payloads_not_the_documents_themselves(cloud: Harness) -> None:
    file_id = cloud.source()["hello.md"].file_id
    assert file_id is not None
    url = cloud.client.files.content(file_id).url
    cloud.inject(payloads={"*": "not_json"})
    assert httpx.get(url).text.startswith("# Hello")


def test_bodies_can_stop_half_way_for_a_while(cloud: Harness, documents: Path) -> None:
    (documents / "long.md").write_text("slow water " * 500)
    cloud.sync()
    url = _url(cloud, "long.md")
    whole = httpx.get(url).json()
    cloud.inject(slow_bodies={"long.md": 0.2})
    started = time.monotonic()
    assert httpx.get(url).json() == whole
    assert time.monotonic() - started >= 0.2
    cloud.inject(slow_bodies={"long.md": 30})
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, timeout=0.1)


def test_bodies_of_uploaded_files_can_stop_half_way_too(cloud: Harness) -> None:
    url = cloud.client.files.content(cloud.client.files.create(file=("up.txt", b"slow water"), purpose="user_data").id).url
    cloud.inject(slow_bodies={"up.txt": 0.01})
    assert httpx.get(url).content == b"slow water"
    cloud.inject(slow_bodies={"up.txt": 30})
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, timeout=0.1)


def test_pages_can_be_shorter_than_asked_for(many: Harness) -> None:
    many.inject(page_size_cap=3)
    directory = many.index().output_directory_id
    assert directory is not None
    page = many.client.beta.directories.files.list(directory, page_size=1000)
    assert len(page.items) == 3
    assert len(list(page)) == 10


def test_items_can_repeat_across_pages(many: Harness) -> None:
    names = _names(many, page_size=4)
    many.inject(repeat_items_across_pages=True)
    repeated = _names(many, page_size=4)
    assert repeated == [*names[:4], names[3], *names[4:8], names[7], *names[8:]]


def test_items_can_be_missing_from_listings(many: Harness) -> None:
    many.inject(hidden_files=["d03*", "d07*"])
    assert _names(many, page_size=4) == [f"d{number:02d}.txt" for number in range(10) if number not in (3, 7)]


def test_a_listing_can_break_off(many: Harness) -> None:
    many.inject(fail_listing_at_page=3)
    seen: list[str] = []
    directory = many.index().output_directory_id
    assert directory is not None
    with pytest.raises(llama_cloud.InternalServerError):
        seen.extend(file.display_name for file in many.client.beta.directories.files.list(directory, page_size=4))
    many.inject(fail_listing_at_page=1)
    with pytest.raises(llama_cloud.InternalServerError):
        many.client.beta.directories.files.list(directory)


def test_a_sync_can_fail_with_a_message_and_leave_the_listing(cloud: Harness, documents: Path) -> None:
    before = cloud.output()
    (documents / "new.md").write_text("new")
    cloud.inject(sync_error="the parser ran out of credits")
    failed = metadata(cloud.sync())
    assert (failed["status"], failed["error_message"]) == ("failed", "the parser ran out of credits")
    assert cloud.output() == before
    cloud.inject()
    ready = metadata(cloud.sync())
    assert ready["status"] == "ready"
    assert "error_message" not in ready
    assert "new.md" in cloud.output()


def test_the_accepted_id_can_be_switched_at_run_time(cloud: Harness) -> None:
    index = cloud.index()
    cloud.inject(id_mode="export_config_id")
    with pytest.raises(llama_cloud.NotFoundError):
        cloud.client.indexes.get(index.id)
    assert cloud.client.indexes.get(index.export_config_id).id == index.id


def test_faults_can_be_set_before_the_start_and_read_back(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir, faults=Faults(sync_error="from the start")) as cloud:
        assert metadata(cloud.index())["error_message"] == "from the start"
        answer = httpx.get(f"{cloud.server.base_url}/_admin/faults", headers=bearer(cloud.server.api_key))
        assert Faults.model_validate(answer.json()) == Faults(sync_error="from the start")


def test_the_admin_endpoint_exists_only_where_it_is_allowed(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir, allow_fault_injection=False) as cloud:
        answer = httpx.put(f"{cloud.server.base_url}/_admin/faults", json={}, headers=bearer(cloud.server.api_key))
        assert answer.status_code == 404


def test_unknown_faults_are_refused(cloud: Harness) -> None:
    with pytest.raises(ValidationError):
        Faults.model_validate({"rate_limitd_requests": 1})
    answer = httpx.put(
        f"{cloud.server.base_url}/_admin/faults", json={"payloads": {"*": "funny"}}, headers=bearer(cloud.server.api_key)
    )
    assert answer.status_code == 422
