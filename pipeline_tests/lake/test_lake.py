from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from pipeline.errors import ConfigError, LakeError
from pipeline.lake import Lake, recent
from pipeline.lake.lake import _object_name
from pipeline_tests.buckets import deletes_forbidden
from pipeline_tests.ports import free_port

TABLE = pa.table({"page_number": pa.array([1, 2], pa.int32()), "text": ["one", "two"]})


@pytest.fixture(params=["local", "local, nothing remembered", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    if request.param == "local, nothing remembered":
        monkeypatch.setattr(recent, "_MOST_BYTES", 0)
    uri = str(tmp_path / "lake") if request.param.startswith("local") else f"memory://{tmp_path.name}"
    return Lake(uri, "default")


def test_a_partition_comes_back_as_written_with_its_metadata(lake: Lake) -> None:
    size = lake.write("chunks", "dfl-1", TABLE, {"chunks_key": "k"})
    read = lake.read("chunks", "dfl-1")
    assert size > 0
    assert read is not None
    assert read.equals(TABLE)
    assert lake.metadata("chunks", "dfl-1") == {"chunks_key": "k"}


def test_a_second_write_replaces_the_first(lake: Lake) -> None:
    lake.write("chunks", "dfl-1", TABLE, {"chunks_key": "old"})
    lake.write("chunks", "dfl-1", TABLE.slice(0, 1), {"chunks_key": "new"})
    read = lake.read("chunks", "dfl-1")
    assert read is not None
    assert read.num_rows == 1
    assert lake.metadata("chunks", "dfl-1") == {"chunks_key": "new"}


def test_missing_partitions_are_absent_and_deleting_them_is_no_error(lake: Lake) -> None:
    assert lake.read("chunks", "dfl-none") is None
    assert lake.partitions("chunks") == []
    lake.delete("dfl-none")


def test_deleting_a_partition_empties_every_dataset(lake: Lake) -> None:
    lake.write("chunks", "dfl-1", TABLE, {})
    lake.write("parsed_payloads", "dfl-1", TABLE, {})
    lake.write("chunks", "dfl-2", TABLE, {})
    lake.delete("dfl-1")
    assert lake.partitions("parsed_payloads") == []
    assert lake.partitions("chunks") == ["dfl-2"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client of another process, of the bucket ``lake``."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    other = boto3.client("s3", endpoint_url=endpoint)
    other.create_bucket(Bucket="lake")
    S3FileSystem.clear_instance_cache()
    yield other
    server.stop()


def test_what_another_process_has_deleted_from_a_bucket_is_not_listed(bucket: Any) -> None:
    lake = Lake("s3://lake/files", "default")
    lake.write("tombstones", "a", TABLE, {})
    assert lake.partitions("tombstones") == ["a"]
    bucket.delete_object(Bucket="lake", Key="files/default/tombstones/a.parquet")
    assert lake.partitions("tombstones") == []


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_refuses_deletes_is_told_and_the_lake_not_claimed_to_be_gone() -> None:
    lake = Lake("s3://lake/files", "default")
    lake.write("chunks", "a", TABLE, {})
    told = r"the lake at s3://lake/files cannot delete chunks.*: PermissionError; check"
    for removing in (lake.drop, lambda: lake.delete("a", ["chunks"])):
        with deletes_forbidden("lake"), pytest.raises(LakeError, match=told):
            removing()
    assert lake.partitions("chunks") == ["a"]


def test_read_many_answers_what_is_there(lake: Lake) -> None:
    lake.write("chunks", "a", TABLE, {})
    lake.write("chunks", "b", TABLE, {})
    assert set(lake.read_many("chunks", ["a", "b", "c"], ["text"])) == {"a", "b"}


def test_a_damaged_object_reads_as_missing_so_that_it_is_made_again(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "default")
    lake.write("chunks", "a", TABLE, {})
    path = tmp_path / "default" / "chunks" / "a.parquet"
    path.write_bytes(path.read_bytes()[:40])
    assert lake.read("chunks", "a") is None


VECTORS = pa.FixedSizeListArray.from_arrays(pa.array(range(60_000), pa.float32()), 300)
LARGE = pa.table({"content": ["a long text " * 20] * 200, "embedding": VECTORS})


def test_long_texts_are_compressed_and_short_ones_and_vectors_are_not(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "default")
    texts = pa.table({"long": ["x" * 2_048], "short": ["x" * 2_000], "vector": VECTORS.slice(0, 1)})
    lake.write("embeddings", "a", texts, {})
    [path] = tmp_path.rglob("*.parquet")
    columns = [pq.read_metadata(path).row_group(0).column(n) for n in range(3)]
    codecs = {column.path_in_schema.split(".")[0]: column.compression for column in columns}
    assert codecs == {"long": "ZSTD", "short": "UNCOMPRESSED", "vector": "UNCOMPRESSED"}
    assert columns[0].total_compressed_size < 200


@pytest.mark.parametrize("table", [TABLE, LARGE, pa.table({})], ids=["small", "large", "empty"])
def test_a_flipped_bit_anywhere_in_an_object_is_noticed_or_alters_nothing(tmp_path: Path, table: pa.Table) -> None:
    Lake(str(tmp_path), "default").write("embeddings", "a", table, {"model": "m@1"})
    lake = Lake(str(tmp_path), "default")
    written = lake.read("embeddings", "a")
    [path] = tmp_path.rglob("*.parquet")
    whole = path.read_bytes()
    unnoticed = 0
    for at in range(0, len(whole), 1 + len(whole) // 2_000 * 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        read = lake.read("embeddings", "a")
        if read is not None:
            unnoticed += 1
            assert read.equals(written, check_metadata=True), at
    assert unnoticed <= 4  # the four bytes that say that there is a checksum


def test_an_object_of_a_version_without_checksums_is_read(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "default")
    path = tmp_path / "default" / "chunks" / "a.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(TABLE, path)
    read = lake.read("chunks", "a")
    assert read is not None
    assert read.equals(TABLE)


def test_an_object_is_a_parquet_file_for_any_reader(tmp_path: Path) -> None:
    Lake(str(tmp_path), "default").write("chunks", "a", TABLE, {"chunks_key": "k"})
    [path] = tmp_path.rglob("*.parquet")
    assert pq.read_table(path).equals(TABLE)


def test_a_write_that_fails_leaves_the_old_object_and_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path), "default")
    lake.write("chunks", "a", TABLE, {"v": "1"})

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(LakeError, match="No space left on device"):
            lake.write("chunks", "a", TABLE, {"v": "2"})
    assert lake.metadata("chunks", "a") == {"v": "1"}
    assert [p.name for p in (tmp_path / "default" / "chunks").iterdir()] == ["a.parquet"]


@pytest.fixture(params=["no credentials", "no server"])
def unreachable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lake:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    if request.param == "no server":
        environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "the-secret"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    return Lake("s3://bucket/prefix", "default")


@pytest.mark.parametrize(
    ("action", "call"),
    [
        ("write chunks of dfl-1", lambda lake: lake.write("chunks", "dfl-1", TABLE, {})),
        ("read chunks of dfl-1", lambda lake: lake.read("chunks", "dfl-1")),
        ("list chunks", lambda lake: lake.partitions("chunks")),
        ("delete chunks of dfl-1", lambda lake: lake.delete("dfl-1", ["chunks"])),
    ],
)
def test_a_bucket_that_cannot_be_reached_is_named_with_a_remedy_and_no_secret(
    unreachable: Lake, action: str, call: Callable[[Lake], Any]
) -> None:
    with pytest.raises(
        LakeError, match=rf"the lake at s3://bucket/prefix cannot {action}: \w+Error; check INDEXPORT_LAKE_URI"
    ) as caught:
        call(unreachable)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("uri", ["foo://user:canary@place/lake", "dropbox://lake"])
def test_an_address_without_a_driver_is_a_wrong_setting(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"INDEXPORT_LAKE_URI: .* cannot be opened: .*indexport\[s3\]") as caught:
        Lake(uri, "default")
    assert "canary" not in str(caught.value)


def test_a_server_that_does_not_answer_when_its_driver_connects_is_named_without_its_secrets() -> None:
    address = f"ftp://user:canary@127.0.0.1:{free_port()}/lake"
    with pytest.raises(
        LakeError, match=r"the lake at ftp://127\.0\.0\.1:\d+/lake cannot be opened: ConnectionRefusedError"
    ) as caught:
        Lake(address, "default")
    assert "canary" not in str(caught.value)


def test_an_address_is_named_without_its_secrets() -> None:
    lake = Lake("s3://the-key:the-secret@bucket/prefix", "default")
    with pytest.raises(LakeError, match="the lake at s3://bucket/prefix cannot read"):
        lake.read("chunks", "a")


def killed_writer(lake: Lake, partition: str, table: pa.Table = TABLE) -> None:
    """One that dies between the last byte of its temporary file and the rename."""

    def die(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            lake.write("chunks", partition, table, {})


def test_what_a_killed_writer_left_is_known_by_its_partition_and_swept(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "default")
    killed_writer(lake, "a.b/c")
    killed_writer(lake, "long " * 100)
    killed_writer(lake, "other")
    assert lake.partitions("chunks") == []
    assert [lake.unfinished([partition]) for partition in ("a.b/c", "long " * 100, "other", "a")] == [1, 1, 1, 0]
    lake.sweep(["a.b/c"], older_than=60)
    assert [lake.unfinished([partition]) for partition in ("a.b/c", "other")] == [0, 1]
    [old] = tmp_path.rglob(".other*")
    os.utime(old, (0, time.time() - 61))
    lake.sweep(older_than=60)
    assert [lake.unfinished([partition]) for partition in ("long " * 100, "other")] == [1, 0]


def test_two_exports_do_not_see_each_other(tmp_path: Path) -> None:
    Lake(str(tmp_path), "one").write("chunks", "a", TABLE, {})
    assert Lake(str(tmp_path), "two").partitions("chunks") == []


@given(st.text(min_size=1, max_size=300))
def test_no_partition_name_leaves_its_folder(name: str) -> None:
    escaped = _object_name(name)
    assert "/" not in escaped
    assert "\\" not in escaped
    assert escaped not in (".", "..")
    assert 0 < len(escaped.encode()) <= 200


@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=2, unique=True))
def test_different_names_get_different_objects(names: list[str]) -> None:
    assert _object_name(names[0]) != _object_name(names[1])
