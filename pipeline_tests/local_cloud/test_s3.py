"""Documents in an S3 bucket, behind moto's server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from pipeline.local_cloud.documents import DocumentFolder, DocumentsUnavailable
from pipeline_tests.local_cloud.harness import metadata, running


class Bucket:
    """One bucket of a local S3, and how fsspec reaches it."""

    def __init__(self, endpoint: str) -> None:
        credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.s3 = boto3.client("s3", endpoint_url=endpoint, **credentials)
        self.s3.create_bucket(Bucket="library")
        self.options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}

    def put(self, key: str, body: bytes) -> None:
        self.s3.put_object(Bucket="library", Key=key, Body=body)

    def delete(self, key: str) -> None:
        self.s3.delete_object(Bucket="library", Key=key)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    yield Bucket(endpoint)
    httpx.post(f"{endpoint}/moto-api/reset")
    server.stop()


def test_documents_in_a_bucket_are_served_changed_and_removed(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(3):
        bucket.put(f"docs/{number}.md", f"# Number {number}".encode())
    bucket.put("docs/sub/page.html", b"<h1>Page</h1>")
    bucket.put("docs/0.md.meta.json", b'{"team": "sea"}')
    bucket.put("docs/.hidden.md", b"hidden")
    bucket.put("other/out.md", b"outside the prefix")
    with running("s3://library/docs", tmp_path, storage_options=bucket.options) as cloud:
        before = cloud.output()
        assert cloud.texts() == {
            "0.md": ["# Number 0"],
            "1.md": ["# Number 1"],
            "2.md": ["# Number 2"],
            "sub/page.html": ["# Page"],
        }
        assert before["0.md"].metadata == {"team": "sea"}
        bucket.put("docs/1.md", b"# Changed!")
        bucket.delete("docs/2.md")
        cloud.sync()
        after = cloud.output()
        assert set(after) == {"0.md", "1.md", "sub/page.html"}
        assert after["0.md"] == before["0.md"]
        assert after["1.md"].id == before["1.md"].id
        assert cloud.texts()["1.md"] == ["# Changed!"]


def test_a_folder_made_in_a_stores_console_is_no_document(bucket: Bucket, tmp_path: Path) -> None:
    for key, content in (("docs/a.md", b"# A"), ("docs/", b""), ("docs/sub/", b"")):
        bucket.put(key, content)
    with running("s3://library/docs", tmp_path, storage_options=bucket.options) as cloud:
        assert cloud.texts() == {"a.md": ["# A"]}
        assert metadata(cloud.index())["status"] == "ready"
        assert not metadata(cloud.index()).get("failed_files")


def test_names_with_pattern_characters_are_plain_names(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("a[1].md", "b*.md", "what?.md"):
        bucket.put(f"docs/{name}", name.encode())
        bucket.put(f"docs/{name}.meta.json", b'{"ok": true}')
    with running("s3://library/docs", tmp_path, storage_options=bucket.options) as cloud:
        assert cloud.texts() == {name: [name] for name in ("a[1].md", "b*.md", "what?.md")}
        assert all(file.metadata == {"ok": True} for file in cloud.output().values())


def test_unchanged_objects_are_not_read_again(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("docs/a.md", b"a")
    with running("s3://library/docs", tmp_path, storage_options=bucket.options) as cloud:
        monkeypatch.setattr(DocumentFolder, "read", lambda _self, path: pytest.fail(f"{path} was read again"))
        assert metadata(cloud.sync())["status"] == "ready"


def test_a_bucket_that_is_gone_fails_the_sync_and_removes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("docs/a.md", b"a")
    with running("s3://library/docs", tmp_path, storage_options=bucket.options) as cloud:
        bucket.delete("docs/a.md")
        bucket.s3.delete_bucket(Bucket="library")
        assert metadata(cloud.sync())["status"] == "failed"
        assert set(cloud.output()) == {"a.md"}


def test_a_store_that_does_not_answer_fails_the_sync(bucket: Bucket, tmp_path: Path) -> None:
    unreachable = {**bucket.options, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"}}
    unreachable["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    with running("s3://library/docs", tmp_path, storage_options=unreachable) as cloud:
        assert metadata(cloud.index())["status"] == "failed"


def test_a_prefix_without_objects_is_not_taken_for_an_empty_folder(bucket: Bucket) -> None:
    with pytest.raises(DocumentsUnavailable, match="does not exist"):
        DocumentFolder("s3://library/nothing", bucket.options).scan()
