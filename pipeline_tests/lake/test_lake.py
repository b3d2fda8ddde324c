from __future__ import annotations

from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from pipeline.errors import LakeError
from pipeline.lake import Lake, recent
from pipeline.lake.lake import _object_name

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


def test_what_another_process_has_deleted_from_a_bucket_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    other = boto3.client("s3", endpoint_url=endpoint)
    other.create_bucket(Bucket="lake")
    lake = Lake("s3://lake/files", "default")
    lake.write("tombstones", "a", TABLE, {})
    assert lake.partitions("tombstones") == ["a"]
    other.delete_object(Bucket="lake", Key="files/default/tombstones/a.parquet")
    assert lake.partitions("tombstones") == []
    server.stop()


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
