"""The storage_context sink: generations, the pointer that moves last, limits, altered files, S3."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from fsspec.implementations.memory import MemoryFileSystem
from moto.s3.exceptions import S3ClientError
from moto.server import ThreadedMotoServer

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks.base import SinkContext
from pipeline.sinks.storage_context import StorageContextExporter, StorageContextSettings
from pipeline.sinks.storage_context_files import FolderStore
from pipeline.sinks.storage_context_index import ConfigIndex
from pipeline_tests.buckets import deletes_forbidden
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, provisioned_bench
from pipeline_tests.conformance.storage_context_harness import StorageContextUnderTest
from pipeline_tests.ports import free_port
from pipeline_tests.sinks.storage_context_folder import config_folder, current_generation, fail_when


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with provisioned_bench(StorageContextUnderTest(str(tmp_path))) as made:
        yield made


def open_limited(bench: Bench, tmp_path: Path, **settings: Any) -> StorageContextExporter:
    context = SinkContext(tenant_id=bench.tenant, model=MODEL, metadata_fields=FIELDS)
    exporter = StorageContextExporter(StorageContextSettings(uri=str(tmp_path), **settings), context)
    bench.opened.append(exporter)
    return exporter


async def test_a_generation_is_complete_json_that_names_every_record(bench: Bench, tmp_path: Path) -> None:
    files = [bench.file("dfl-1", 3, metadata={"quote'\"": 'a "b" \\ c\n', "tags": ["x"]}), bench.file('dfl-"2"', 2)]
    await bench.replace(*files)
    contents = {path.name: json.loads(path.read_bytes()) for path in current_generation(tmp_path).glob("*.json")}
    ids = {name for file in files for name in file.table["id"].to_pylist()}
    assert set(contents["docstore.json"]["docstore/data"]) == ids
    assert set(contents["default__vector_store.json"]["embedding_dict"]) == ids
    (struct,) = contents["index_store.json"]["index_store/data"].values()
    assert set(json.loads(struct["__data__"])["nodes_dict"]) == ids
    assert contents["docstore.json"]["docstore/ref_doc_info"][f'{bench.config}:dfl-"2"']["node_ids"] == (
        files[1].table["id"].to_pylist()
    )
    embedding = contents["default__vector_store.json"]["embedding_dict"][files[0].table["id"][0].as_py()]
    assert embedding == pytest.approx(files[0].table["embedding"][0].as_py(), rel=1e-6)


async def test_a_crash_before_the_pointer_moves_changes_nothing_and_is_made_good(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bench.file("dfl-1", 3), bench.file("dfl-1", 5, version="v2")
    await bench.replace(old)
    with monkeypatch.context() as patch:
        fail_when(patch, "put", lambda relative: relative.endswith("CURRENT"))
        with pytest.raises(SinkUnavailable):
            await bench.replace(new)
    assert len(list((config_folder(tmp_path) / "generations").iterdir())) == 2
    await bench.assert_holds(old)
    await bench.replace(new)
    await bench.assert_holds(new)


async def test_only_the_latest_generations_are_kept_and_purging_keeps_one(bench: Bench, tmp_path: Path) -> None:
    exporter = open_limited(bench, tmp_path, keep_generations=2)
    for number in range(5):
        await exporter.replace_files([bench.file("dfl-1", 2, version=f"v{number}")])
    generations = config_folder(tmp_path) / "generations"
    assert len(list(generations.iterdir())) == 2
    assert len(list((config_folder(tmp_path) / "leases").iterdir())) == 1
    await exporter.purge_history()
    assert [path.name for path in generations.iterdir()] == [current_generation(tmp_path).name]
    await bench.assert_holds(bench.file("dfl-1", 2, version="v4"))


async def test_a_file_beyond_the_limit_is_refused_by_name_and_one_that_shrinks_makes_room(bench: Bench, tmp_path: Path) -> None:
    exporter = open_limited(bench, tmp_path, max_records=10)
    first, second = bench.file("dfl-1", 6), bench.file("dfl-2", 4)
    assert (await exporter.replace_files([first, second])).refused == ()
    report = await exporter.replace_files([bench.file("dfl-3", 5), bench.file("dfl-4", 0)])
    assert [refused.file_id for refused in report.refused] == ["dfl-3"]
    assert "max_records" in report.refused[0].reason
    assert report.records_written == 0
    await bench.assert_holds(first, second)
    smaller, grown = bench.file("dfl-1", 2, version="v2"), bench.file("dfl-2", 8, version="v2")
    assert (await exporter.replace_files([grown, smaller])).refused == ()
    await bench.assert_holds(smaller, grown)


async def test_bytes_are_limited_too(bench: Bench, tmp_path: Path) -> None:
    exporter = open_limited(bench, tmp_path, max_bytes=5000)
    report = await exporter.replace_files([bench.file("dfl-1", ["x" * 6000]), bench.file("dfl-2", 1)])
    assert [refused.file_id for refused in report.refused] == ["dfl-1"]
    await bench.assert_holds(bench.file("dfl-2", 1))


async def test_files_somebody_else_has_changed_match_nothing_until_they_are_written_again(bench: Bench, tmp_path: Path) -> None:
    files = [bench.file("dfl-1"), bench.file("dfl-2")]
    await bench.replace(*files)
    docstore = current_generation(tmp_path) / "docstore.json"
    docstore.write_text(docstore.read_text() + " ")
    snapshots = await bench.snapshots()
    assert all(snapshots[file.file_id].record_set_hash == f"pending:{file.record_set_hash}" for file in files)
    await bench.replace(files[0])
    await bench.assert_holds(*files)


async def test_what_the_pointer_names_must_be_there(bench: Bench, tmp_path: Path) -> None:
    await bench.replace(bench.file("dfl-1"))
    (config_folder(tmp_path) / "CURRENT").write_text("generations/7\n")
    with pytest.raises(SinkUnavailable, match="CURRENT"):
        await bench.snapshots()


async def test_a_reader_goes_on_with_the_generation_it_began(bench: Bench) -> None:
    old = bench.file("dfl-1", ["x" * 9_000_000, "y" * 9_000_000])
    await bench.replace(old, bench.file("dfl-2", ["z" * 17_000_000]))
    reading = bench.exporter.fetch_records(export_config_id=bench.config)
    first = await anext(reading)
    await bench.replace(bench.file("dfl-1", 0), bench.file("dfl-2", 0))
    rest = [table async for table in reading]
    assert first.num_rows + sum(table.num_rows for table in rest) == 3


async def test_a_reader_that_is_cancelled_within_a_read_ends_as_cancelled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.replace(bench.file("dfl-1"))
    tables, under_way = ConfigIndex.tables, threading.Event()

    def slow(self: ConfigIndex) -> Generator[pa.Table, None, None]:
        for table in tables(self):
            under_way.set()
            time.sleep(0.2)
            yield table

    monkeypatch.setattr(ConfigIndex, "tables", slow)
    reading = asyncio.create_task(bench.held())
    await asyncio.to_thread(under_way.wait, 5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("delay", [0, 0.001, 0.004, 0.01, 0.02])
async def test_a_cancelled_replace_ends_whole_and_gives_the_lease_back(bench: Bench, delay: float) -> None:
    old, new = bench.file("dfl-1", 3), bench.file("dfl-1", 2, version="v2")
    await bench.replace(old)
    running = asyncio.create_task(bench.exporter.replace_files([new]))
    await asyncio.sleep(delay)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    held = (await bench.snapshots())["dfl-1"].record_set_hash
    assert held in (old.record_set_hash, new.record_set_hash)
    await bench.replace(new)
    await bench.assert_holds(new)


async def test_a_folder_of_somebody_else_is_a_conflict(bench: Bench, tmp_path: Path) -> None:
    FolderStore(str(tmp_path)).put(f"indexport-{MODEL.slug}/indexport.json", b'{"format":"9"}')
    with pytest.raises(SinkConflict, match="prefix"):
        await bench.open().provision()


async def test_an_index_is_never_answered_empty_before_it_is_provisioned(tmp_path: Path) -> None:
    bench = Bench(StorageContextUnderTest(str(tmp_path)))
    with pytest.raises(SinkUnavailable, match="provision"):
        await bench.open().list_snapshots(export_config_id="cfg")


async def test_an_address_nobody_can_open_is_a_wrong_setting(tmp_path: Path) -> None:
    bench = Bench(StorageContextUnderTest("nosuch://user:secret-word@host/folder"))
    with pytest.raises(ConfigError, match="nosuch://host/folder") as caught:
        await bench.open().provision()
    assert "secret-word" not in str(caught.value)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="records")
    yield "s3://records/indexes"
    server.stop()


async def test_files_are_replaced_in_a_bucket_by_writers_that_take_turns(bucket: str) -> None:
    bench = Bench(StorageContextUnderTest(bucket))
    await bench.open().provision()
    files = [bench.file(f"dfl-{number}", 3) for number in range(3)]
    await bench.replace(files[0], bench.file("dfl-1", 5, version="v0"))
    await asyncio.gather(*(bench.open().replace_files([file]) for file in files[1:]))
    await bench.delete("dfl-0")
    await bench.assert_holds(*files[1:], exporter=bench.open())
    await bench.exporter.purge_history()
    await bench.assert_holds(*files[1:])


async def test_a_bucket_that_refuses_deletes_is_told_and_nothing_is_claimed_to_be_gone(bucket: str) -> None:
    bench = Bench(StorageContextUnderTest(bucket))
    await bench.open().provision()
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    told = r"cannot remove .*; check the store, its credentials and what they may do"
    for erasing in (bench.exporter.purge_history, bench.exporter.drop_collection):
        with deletes_forbidden("records"), pytest.raises(SinkUnavailable, match=told):
            await erasing()
    await bench.assert_holds(bench.file("dfl-1"), bench.file("dfl-2"))


@pytest.mark.parametrize("code", ["PreconditionFailed", "ConditionalRequestConflict"])
async def test_a_second_provision_finds_the_first_in_a_store_that_does_not_say_which_condition_failed(
    bucket: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """MinIO and Versity answer 412 without a condition; AWS answers 409 while another conditional write is under way."""

    class Bare(S3ClientError):
        def __init__(self, failed_condition: str) -> None:
            super().__init__("the condition does not hold")

    Bare.code = code
    await Bench(StorageContextUnderTest(bucket)).open().provision()
    monkeypatch.setattr("moto.s3.responses.PreconditionFailed", Bare)
    await Bench(StorageContextUnderTest(bucket)).open().provision()


def test_an_address_without_a_driver_is_a_wrong_setting_that_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"cannot use uri 'dropbox://x': .*dropbox.*indexport\[s3\]"):
        FolderStore("dropbox://x").create("a", b"")


async def test_a_conflict_between_conditional_writes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([conditional_conflict(), conditional_conflict(), None])

    def pipe_file(self: MemoryFileSystem, path: str, data: bytes, **options: Any) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    assert FolderStore("memory://records").create("a", b"")


def conditional_conflict() -> OSError:
    """As s3fs raises what botocore says of AWS's answer 409."""
    error = OSError("The conditional request cannot succeed due to a conflicting operation against this resource.")
    error.__cause__ = ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")
    return error


async def test_a_bucket_that_is_not_there_is_unavailable(bucket: str) -> None:
    bench = Bench(StorageContextUnderTest("s3://no-such-bucket/indexes"))
    with pytest.raises(SinkUnavailable, match="s3://no-such-bucket/indexes") as caught:
        await bench.open().provision()
    assert "the-secret" not in str(caught.value)


async def test_what_the_driver_of_google_cloud_storage_raises_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither class is an OSError; gcsfs is not installed here."""

    class HttpError(Exception):
        """As ``gcsfs.retry.HttpError``."""

    class GoogleAuthError(Exception):
        """As ``google.auth.exceptions.GoogleAuthError``."""

    for module, kind in (("gcsfs.retry", HttpError), ("google.auth.exceptions", GoogleAuthError)):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        monkeypatch.setattr(sys.modules[module], kind.__name__, kind, raising=False)

        def refuse(*_: Any, kind: type[Exception] = kind, **__: Any) -> None:
            raise kind("Anonymous caller does not have storage.objects.create access")

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
        with pytest.raises(SinkUnavailable, match="Anonymous caller"):
            await Bench(StorageContextUnderTest("memory://records")).open().provision()


async def test_an_object_store_that_does_not_answer_is_unavailable(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SinkUnavailable, match="s3://records/indexes") as caught:
        await Bench(StorageContextUnderTest(bucket)).open().list_snapshots(export_config_id="cfg")
    assert "the-secret" not in str(caught.value)


async def test_a_server_that_does_not_answer_when_its_driver_connects_is_unavailable() -> None:
    """Drivers of file servers connect as soon as they are made, those of object stores with their first request."""
    address = f"ftp://user:secret-word@127.0.0.1:{free_port()}/indexes"
    with pytest.raises(SinkUnavailable, match=r"storage_context at ftp://127\.0\.0\.1:\d+/indexes cannot be opened") as caught:
        await Bench(StorageContextUnderTest(address)).open().provision()
    assert "secret-word" not in str(caught.value)
