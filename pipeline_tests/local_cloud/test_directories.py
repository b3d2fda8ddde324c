"""Directories and directory files, through the SDK."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import llama_cloud
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local_cloud.wire import Cursor, read_cursor
from pipeline_tests.local_cloud.harness import Harness, bearer


def test_directories_are_created_listed_read_renamed_and_deleted(cloud: Harness) -> None:
    api = cloud.client.beta.directories
    made = api.create(name="contracts", description="signed ones", system_metadata={"owner": "legal"})
    assert made.id.startswith("dir-")
    assert (made.name, made.type, made.description) == ("contracts", "user", "signed ones")
    assert api.get(made.id).system_metadata == {"owner": "legal"}
    assert [directory.id for directory in api.list(name="contracts")] == [made.id]
    assert api.update(made.id, name="agreements").name == "agreements"
    api.delete(made.id)
    with pytest.raises(llama_cloud.NotFoundError):
        api.get(made.id)


def test_directories_are_filtered_by_type(cloud: Harness) -> None:
    api = cloud.client.beta.directories
    index = cloud.index()
    assert [directory.id for directory in api.list(type="index")] == [index.output_directory_id]
    assert [directory.id for directory in api.list(types=["user", "ephemeral"])] == [index.source_directory_id]


def test_a_connector_subscription_feeds_one_directory(cloud: Harness) -> None:
    first = cloud.client.beta.directories.create(name="a", connector_subscription_id="sub-1")
    with pytest.raises(llama_cloud.ConflictError) as refused:
        cloud.client.beta.directories.create(name="b", connector_subscription_id="sub-1")
    body = refused.value.body
    assert isinstance(body, dict)
    assert body["detail"]["directory_id"] == first.id


def test_a_directory_of_an_index_cannot_be_deleted(cloud: Harness) -> None:
    with pytest.raises(llama_cloud.ConflictError, match="delete the index first"):
        cloud.client.beta.directories.delete(cloud.index().source_directory_id)


def test_listings_are_paged_in_a_stable_order_without_gaps(cloud: Harness) -> None:
    directory = cloud.client.beta.directories.create(name="many")
    names = [f"file-{number:02d}.txt" for number in range(23)]
    for name in names:
        cloud.client.beta.directories.files.upload(directory.id, upload_file=(name, b"text"))
    page = cloud.client.beta.directories.files.list(directory.id, page_size=5)
    assert [file.display_name for file in page.items] == names[:5]
    assert page.model_extra == {"total_size": 23}
    assert [file.display_name for file in page] == names


def test_files_are_filtered_as_the_vendor_documents(cloud: Harness) -> None:
    api = cloud.client.beta.directories.files
    directory = cloud.client.beta.directories.create(name="filters")
    report = api.upload(directory.id, upload_file=("Report.txt", b"a"), unique_id="r-1")
    api.upload(directory.id, upload_file=("letter.txt", b"b"), unique_id="l-1")

    def found(**filters: Any) -> list[str]:
        return [file.display_name for file in api.list(directory.id, **filters)]

    assert found(display_name="Report.txt") == ["Report.txt"]
    assert found(display_name_contains="REP") == ["Report.txt"]
    assert found(unique_id="l-1") == ["letter.txt"]
    assert found(file_id=report.file_id) == ["Report.txt"]
    assert report.updated_at is not None
    assert found(updated_at_on_or_after=report.updated_at) == ["Report.txt", "letter.txt"]
    assert found(updated_at_on_or_after=report.updated_at + timedelta(days=1)) == []
    assert found(updated_at_on_or_before=report.updated_at) == ["Report.txt"]


def test_a_deleted_file_is_listed_only_when_asked_for(cloud: Harness) -> None:
    api = cloud.client.beta.directories.files
    directory = cloud.client.beta.directories.create(name="deleted")
    file = api.upload(directory.id, upload_file=("a.txt", b"a"))
    api.delete(file.id, directory_id=directory.id)
    assert cloud.files(directory.id) == {}
    assert cloud.files(directory.id, include_deleted=True)["a.txt"].deleted_at is not None
    assert api.upload(directory.id, upload_file=("a.txt", b"b")).id != file.id


def test_a_unique_id_is_taken_once_in_a_directory(cloud: Harness) -> None:
    api = cloud.client.beta.directories.files
    directory = cloud.client.beta.directories.create(name="unique")
    api.upload(directory.id, upload_file=("a.txt", b"a"))
    other = api.upload(directory.id, upload_file=("b.txt", b"b"))
    with pytest.raises(llama_cloud.ConflictError, match="taken"):
        api.upload(directory.id, upload_file=("a.txt", b"c"))
    with pytest.raises(llama_cloud.ConflictError, match="taken"):
        api.update(other.id, directory_id=directory.id, unique_id="a.txt")


def test_uploads_carry_flat_metadata_and_refuse_nested(cloud: Harness) -> None:
    api = cloud.client.beta.directories.files
    directory = cloud.client.beta.directories.create(name="metadata")
    metadata = '{"team": "fin", "year": 2026, "final": true, "note": null, "tags": ["a", "b"]}'
    file = api.upload(directory.id, upload_file=("a.txt", b"a"), metadata=metadata, external_file_id="ext-1")
    assert file.metadata == {"team": "fin", "year": 2026, "final": True, "note": None, "tags": ["a", "b"]}
    assert file.unique_id == "ext-1"
    with pytest.raises(llama_cloud.UnprocessableEntityError, match="owner"):
        api.upload(directory.id, upload_file=("b.txt", b"b"), metadata='{"owner": {"name": "x"}}')
    with pytest.raises(llama_cloud.UnprocessableEntityError, match="not JSON"):
        api.upload(directory.id, upload_file=("b.txt", b"b"), metadata="{")
    updated = api.update(file.id, directory_id=directory.id, metadata={"team": "law"}, display_name="A.txt")
    assert (updated.metadata, updated.display_name) == ({"team": "law"}, "A.txt")


@pytest.mark.parametrize("broken", [r'{"a": "\ud800"}', r'{"\ud800": {}}', '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_metadata_that_no_answer_can_hold_is_refused(cloud: Harness, broken: str) -> None:
    directory = cloud.client.beta.directories.create(name="metadata")
    file = cloud.client.beta.directories.files.upload(directory.id, upload_file=("a.txt", b"a"))
    files = f"{cloud.server.base_url}/api/v1/beta/directories/{directory.id}/files"
    with httpx.Client(headers=bearer(cloud.server.api_key)) as client:
        uploaded = client.post(f"{files}/upload", files={"upload_file": ("b.txt", b"b")}, data={"metadata": broken})
        updated = client.patch(f"{files}/{file.id}", content=f'{{"metadata": {broken}}}')
    assert uploaded.status_code == 422
    assert updated.status_code in (400, 422)
    assert [listed.metadata for listed in cloud.files(directory.id).values()] == [{}]


def test_a_stored_file_is_added_and_moved_between_directories(cloud: Harness) -> None:
    api = cloud.client.beta.directories.files
    one, two = (cloud.client.beta.directories.create(name=name) for name in ("one", "two"))
    stored = cloud.client.files.create(file=("plan.md", b"# Plan"), purpose="user_data")
    added = api.add(one.id, file_id=stored.id, metadata={"v": 1})
    assert (added.display_name, added.unique_id, added.metadata) == ("plan.md", "plan.md", {"v": 1})
    moved = api.update(added.id, directory_id=one.id, target_directory_id=two.id)
    assert moved.directory_id == two.id
    assert api.get(added.id, directory_id=two.id).file_id == stored.id
    with pytest.raises(llama_cloud.NotFoundError):
        api.get(added.id, directory_id=one.id)
    with pytest.raises(llama_cloud.NotFoundError):
        api.add(one.id, file_id="no-such-file")


def test_a_document_of_the_folder_cannot_be_moved(cloud: Harness) -> None:
    other = cloud.client.beta.directories.create(name="other")
    file = cloud.source()["hello.md"]
    with pytest.raises(llama_cloud.ConflictError, match="follows the folder"):
        cloud.client.beta.directories.files.update(
            file.id, directory_id=cloud.index().source_directory_id, target_directory_id=other.id
        )


def test_unknown_directories_and_foreign_page_tokens_are_refused(cloud: Harness) -> None:
    with pytest.raises(llama_cloud.NotFoundError):
        cloud.client.beta.directories.files.list("dir-unknown")
    with pytest.raises(llama_cloud.UnprocessableEntityError, match="page_token"):
        cloud.client.beta.directories.list(page_token="!?")


@given(page=st.integers(1, 10**9), after=st.integers(0, 2**62))
def test_a_cursor_comes_back_from_its_token(page: int, after: int) -> None:
    assert read_cursor(Cursor(page, after).token()) == Cursor(page, after)
