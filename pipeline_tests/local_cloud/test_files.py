"""Stored files, presigned URLs and attachments, through the SDK."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from pathlib import Path

import httpx
import llama_cloud
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local_cloud.blobs import InvalidToken, TokenSigner
from pipeline_tests.local_cloud.conftest import SAMPLES
from pipeline_tests.local_cloud.harness import Harness, MovableClock, bearer, running


def test_files_are_created_listed_downloaded_and_deleted(cloud: Harness) -> None:
    api = cloud.client.files
    made = api.create(file=("notes.txt", b"remember"), purpose="user_data", external_file_id="n-1")
    assert (made.name, made.purpose, made.external_file_id) == ("notes.txt", "user_data", "n-1")
    assert [file.id for file in api.list(external_file_id="n-1")] == [made.id]
    assert [file.id for file in api.list(file_ids=[made.id])] == [made.id]
    assert [file.id for file in api.list(file_name="notes.txt")] == [made.id]
    expanded = api.retrieve(made.id, expand=["download_url"])
    assert expanded.download_url is not None
    assert httpx.get(expanded.download_url.url).content == b"remember"
    assert httpx.get(api.content(made.id).url).content == b"remember"
    api.delete(made.id)
    with pytest.raises(llama_cloud.NotFoundError):
        api.content(made.id)


def test_files_are_paged(cloud: Harness) -> None:
    for number in range(7):
        cloud.client.files.create(file=(f"{number}.txt", b"x"), purpose="user_data")
    page = cloud.client.files.list(page_size=3)
    assert len(page.items) == 3
    uploaded = [file.name for file in page if file.purpose == "user_data"]
    assert uploaded == [f"{number}.txt" for number in range(7)]


def test_files_are_listed_in_the_order_asked_for_over_all_pages(cloud: Harness) -> None:
    for name in ("b.txt", "c.txt", "a.txt", "b.txt"):
        cloud.client.files.create(file=(name, b"x"), purpose="user_data")
    made = list(cloud.client.files.list())

    def ordered(by: str) -> list[str]:
        return [file.id for file in cloud.client.files.list(order_by=by, page_size=2)]

    assert ordered("name") == [file.id for file in sorted(made, key=lambda file: file.name)]
    assert ordered("id") == sorted(file.id for file in made)
    assert ordered("created_at") == [file.id for file in reversed(made)]
    assert [file.name for file in cloud.client.files.list(order_by="created_at", file_name="b.txt")] == ["b.txt", "b.txt"]
    for wrong in ("name desc", "name,id", "size"):
        with pytest.raises(llama_cloud.UnprocessableEntityError):
            cloud.client.files.list(order_by=wrong)


def test_a_file_of_a_directory_is_not_deleted_behind_its_back(cloud: Harness) -> None:
    parsed = cloud.output()["hello.md"]
    assert parsed.file_id is not None
    with pytest.raises(llama_cloud.ConflictError, match="belongs to a directory"):
        cloud.client.files.delete(parsed.file_id)


def test_deleting_an_upload_leaves_directory_entries_without_a_file(cloud: Harness) -> None:
    directory = cloud.client.beta.directories.create(name="loose")
    file = cloud.client.files.create(file=("a.txt", b"a"), purpose="user_data")
    cloud.client.beta.directories.files.add(directory.id, file_id=file.id)
    cloud.client.files.delete(file.id)
    assert cloud.files(directory.id)["a.txt"].file_id is None


def test_the_source_file_resolves_to_the_document_itself(cloud: Harness, documents: Path) -> None:
    source = cloud.source()["hello.md"]
    assert source.file_id is not None
    assert httpx.get(cloud.client.files.content(source.file_id).url).content == (documents / "hello.md").read_bytes()


def test_a_presigned_url_needs_no_key_and_expires(cloud: Harness, clock: MovableClock) -> None:
    file_id = cloud.output()["hello.md"].file_id
    assert file_id is not None
    link = cloud.client.files.content(file_id, expires_at_seconds=10)
    assert httpx.get(link.url).status_code == 200
    assert abs((link.expires_at - clock()).total_seconds() - 10) < 5
    clock.offset = timedelta(seconds=11)
    expired = httpx.get(link.url)
    assert (expired.status_code, expired.json()) == (403, {"detail": "the URL has expired"})


def test_a_tampered_url_is_refused(cloud: Harness) -> None:
    file_id = cloud.output()["hello.md"].file_id
    assert file_id is not None
    url = cloud.client.files.content(file_id).url
    forged = url[:-3] + ("AAA" if not url.endswith("AAA") else "BBB")
    assert httpx.get(forged).status_code == 403
    assert httpx.get(f"{cloud.server.base_url}/_blob/short").status_code == 403


def test_payloads_are_compressed_only_for_clients_that_ask(documents: Path, cloud: Harness) -> None:
    (documents / "long.md").write_text("The tide rises. " * 500)
    cloud.sync()
    file_id = cloud.output()["long.md"].file_id
    assert file_id is not None
    url = cloud.client.files.content(file_id).url
    with httpx.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    plain = httpx.get(url, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 10


def test_listings_expand_download_urls(cloud: Harness) -> None:
    for file in cloud.output(expand=["download_url"]).values():
        assert file.download_url is not None
        assert "parse" in httpx.get(file.download_url.url).json()
    single = cloud.output()["hello.md"]
    assert single.download_url is None
    one = cloud.client.beta.directories.files.get(single.id, directory_id=single.directory_id, expand=["download_url"])
    assert one.download_url is not None


def test_attachments_are_listed_and_downloaded_by_either_id(tmp_path: Path) -> None:
    with running(SAMPLES / "manuals", tmp_path, store_attachments=("items", "screenshots")) as cloud:
        file = cloud.output()["ts-400-field-manual.pdf"]
        names = {attachment.name: attachment.size for attachment in cloud.client.beta.attachments.list(source_id=file.id)}
        assert set(names) == {f"{kind}" for n in (1, 2, 3) for kind in (f"items/page_{n}.json", f"screenshots/page_{n}.png")}
        listed = cloud.payload(file)["parse"]["attachments"]
        assert {entry["attachment_name"] for entry in listed} == set(names)
        assert {entry["type"] for entry in listed} == {"items", "screenshot"}
        assert {entry["source_id"] for entry in listed} == {file.id}
        for source_id in (file.id, file.file_id):
            assert source_id is not None
            link = cloud.client.beta.attachments.get("items/page_2.json", source_id=source_id)
            page = json.loads(httpx.get(link.url).content)
            assert page["page_number"] == 2
            assert all(item["bbox"][0]["w"] > 0 for item in page["items"])
        image = cloud.client.beta.attachments.get("screenshots/page_1.png", source_id=file.id)
        assert httpx.get(image.url).content.startswith(b"\x89PNG")
        paged = cloud.client.beta.attachments.list(source_id=file.id, page_size=4)
        assert len(paged.items) == 4
        assert len(list(paged)) == 6
        with pytest.raises(llama_cloud.NotFoundError):
            cloud.client.beta.attachments.get("items/page_9.json", source_id=file.id)
        with pytest.raises(llama_cloud.NotFoundError):
            cloud.client.beta.attachments.list(source_id="dfl-unknown")


def test_everything_but_blobs_needs_the_key(cloud: Harness) -> None:
    for headers in ({}, bearer("wrong"), {"Authorization": "Basic local"}):
        answer = httpx.get(f"{cloud.server.base_url}/api/v1/indexes", headers=headers)
        assert answer.status_code == 401
        assert answer.json() == {"detail": "Invalid or missing API key"}
        assert httpx.put(f"{cloud.server.base_url}/_admin/faults", json={}, headers=headers).status_code == 401


_SIGNER = TokenSigner(b"key")


@given(blob=st.uuids(), expires=st.floats(0, 1e11))
def test_a_token_comes_back_as_it_was_issued(blob: object, expires: float) -> None:
    grant = _SIGNER.check(_SIGNER.issue(str(blob), expires))
    assert grant == (str(blob), expires)


@given(blob=st.uuids(), position=st.integers(0, 52), letter=st.sampled_from("ABCxyz019-_"))
def test_a_changed_token_is_never_accepted(blob: object, position: int, letter: str) -> None:
    token = _SIGNER.issue(str(blob), 1e9)
    changed = token[:position] + letter + token[position + 1 :]
    if changed != token:
        with pytest.raises(InvalidToken):
            _SIGNER.check(changed)


@given(text=st.text())
def test_no_text_is_taken_for_a_token(text: str) -> None:
    with pytest.raises(InvalidToken):
        _SIGNER.check(text)
