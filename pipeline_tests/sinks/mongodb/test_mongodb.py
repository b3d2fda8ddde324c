"""Replacing, reading and failing: what readers see on the way, and what is left after a crash."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymongo.errors import OperationFailure

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks import mongodb, mongodb_replace
from pipeline.sinks.base import SearchRequest, SinkContext
from pipeline.sinks.generations import PENDING_PREFIX
from pipeline.sinks.mongodb import MongoDBExporter, MongoDBSettings
from pipeline.sinks.mongodb_store import MongoStore
from pipeline.sinks.records import FileRecords
from pipeline.sinks.registry import exporter_class
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, unit_vectors
from pipeline_tests.conformance.mongodb_harness import PASSWORD, Collection, MongoDBUnderTest

if TYPE_CHECKING:
    from pipeline_tests.emulators.mongodb import MongoServer

URI_ENV = "A_MONGODB_URI"
UNAUTHORIZED, WRITE_CONFLICT = 13, 112


@pytest.fixture
def server(mongo: MongoDBUnderTest) -> MongoServer:
    assert mongo.server
    mongo.server.sent.clear()
    mongo.server.statements.clear()
    return mongo.server


def test_it_is_registered() -> None:
    assert exporter_class("mongodb") is MongoDBExporter


async def test_readers_see_one_version_of_a_file_or_the_other(bench: Bench, raw: Collection) -> None:
    versions = [bench.file("dfl-1", 40 + 7 * n, version=f"v{n}") for n in range(6)]
    counts = {file.record_set_hash: file.table.num_rows for file in versions}
    await bench.replace(versions[0])
    writing = asyncio.create_task(_replace_all(bench, versions))
    seen = set()
    while not writing.done():
        found = [document["record_set_hash"] async for document in raw.find({}, {"record_set_hash": 1}, batch_size=1000)]
        assert len(set(found)) == 1
        assert len(found) == counts[found[0]]
        seen.add(found[0])
    await writing
    assert len(seen) > 1
    await bench.assert_holds(versions[-1])


async def _replace_all(bench: Bench, versions: list[FileRecords]) -> None:
    for file in versions:
        await bench.replace(file)


async def test_overlapping_runs_end_in_one_version(bench: Bench) -> None:
    handles = [bench.exporter, bench.open(), bench.open()]
    for round_ in range(4):
        versions = [bench.file(f"dfl-{round_}", 3 + n, version=f"v{n}") for n in range(len(handles))]
        await asyncio.gather(*(handle.replace_files([file]) for handle, file in zip(handles, versions, strict=True)))
        held = (await bench.held())[f"dfl-{round_}"]
        (winner,) = (file for file in versions if file.record_set_hash == held["record_set_hash"][0].as_py())
        assert held.num_rows == winner.table.num_rows
        snapshots = await bench.snapshots()
        assert snapshots[f"dfl-{round_}"].record_set_hash == winner.record_set_hash


@pytest.fixture
def small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongodb_replace, "TRANSACTION_RECORDS", 20)


@pytest.mark.usefixtures("small_transactions")
async def test_small_files_share_a_transaction_and_a_large_one_has_none(
    bench: Bench, server: MongoServer, raw: Collection
) -> None:
    await bench.replace(*(bench.file(f"dfl-{n}", 7) for n in range(4)))
    assert server.sent.count("commitTransaction") == 2
    server.sent.clear()
    large = bench.file("dfl-large", 21)
    await bench.replace(large)
    assert "commitTransaction" not in server.sent
    assert await raw.count_documents({"generation": large.record_set_hash}) == 21
    assert await raw.count_documents({"pending": {"$exists": True}}) == 0


@pytest.mark.usefixtures("small_transactions")
async def test_a_file_may_go_either_way_from_one_version_to_the_next(bench: Bench) -> None:
    neighbour = bench.file("dfl-2")
    await bench.replace(neighbour)
    for number, size in enumerate([3, 30, 40, 2, 21, 0]):
        file = bench.file("dfl-1", size, version=f"v{number}")
        await bench.replace(file)
        await bench.assert_holds(neighbour, file)


@pytest.mark.parametrize("after", [5, 2, 0])
async def test_a_crash_at_any_step_never_looks_finished_and_is_made_good(
    standalone_bench: Bench, standalone: MongoDBUnderTest, after: int
) -> None:
    bench, server = standalone_bench, standalone.server
    assert server
    old, new = bench.file("dfl-1", 4), bench.file("dfl-1", after, version="v2")
    for steps in range(20):
        await bench.replace(old)
        server.fail("update", "delete", code=UNAUTHORIZED, skip=steps, times=1_000)
        crashed = await _fails(lambda: bench.exporter.replace_files([new]))
        server.fail("none", times=0)
        if not crashed:
            assert steps > 2
            break
        snapshot = (await bench.snapshots()).get("dfl-1")
        if steps:
            assert snapshot is not None
            assert snapshot.record_set_hash.startswith(PENDING_PREFIX)
            held = (await bench.held())["dfl-1"]
            assert {0} <= set(held["chunk_index"].to_pylist())
        else:
            await bench.assert_holds(old)
        await bench.replace(new)
        await bench.assert_holds(new)
    else:
        pytest.fail("it always crashed")


async def _fails(attempt: Callable[[], Awaitable[object]]) -> bool:
    try:
        await attempt()
    except SinkUnavailable:
        return True
    return False


async def test_a_crash_in_a_transaction_leaves_the_old_version(bench: Bench, server: MongoServer) -> None:
    old = bench.file("dfl-1", 4)
    await bench.replace(old)
    for command in ("delete", "insert", "commitTransaction"):
        server.fail(command, code=UNAUTHORIZED)
        with pytest.raises(SinkUnavailable, match="Unauthorized"):
            await bench.replace(bench.file("dfl-1", 2, version="v2"))
        await bench.assert_holds(old)


@pytest.mark.parametrize("command", ["delete", "insert", "commitTransaction"])
async def test_what_passes_is_tried_again(bench: Bench, server: MongoServer, command: str) -> None:
    await bench.replace(bench.file("dfl-1", 4))
    server.fail(command, code=WRITE_CONFLICT, labels=["TransientTransactionError"], times=2)
    new = bench.file("dfl-1", 2, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)


@pytest.mark.parametrize("command", ["delete", "insert", "commitTransaction"])
async def test_a_lost_answer_in_a_transaction_does_no_harm(bench: Bench, server: MongoServer, command: str) -> None:
    await bench.replace(bench.file("dfl-1", 4))
    server.lose_reply(command)
    new = bench.file("dfl-1", 2, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)


@pytest.mark.parametrize("command", ["update", "delete", "aggregate", "find"])
async def test_a_lost_answer_outside_of_transactions_does_no_harm(
    standalone_bench: Bench, standalone: MongoDBUnderTest, command: str
) -> None:
    bench = standalone_bench
    assert standalone.server
    await bench.replace(bench.file("dfl-1", 4))
    standalone.server.lose_reply(command)
    new = bench.file("dfl-1", 2, version="v2")
    await bench.replace(new)
    await bench.assert_holds(new)
    standalone.server.lose_reply("delete")
    await bench.delete("dfl-1")
    await bench.assert_holds()


async def test_of_a_batch_that_failed_in_part_only_that_part_is_sent_again(
    standalone_bench: Bench, standalone: MongoDBUnderTest
) -> None:
    bench, server = standalone_bench, standalone.server
    assert server
    file = bench.file("dfl-1", 30)
    server.statements.clear()
    server.fail_write(0, WRITE_CONFLICT)
    await bench.replace(file)
    assert server.statements[:3] == [1, 1, 30], "the head, the head again, all records"
    server.statements.clear()
    changed = bench.file("dfl-1", 30, version="v2")
    await bench.exporter.replace_files([bench.file("dfl-2", 1)])
    server.fail_write(0, UNAUTHORIZED)
    with pytest.raises(SinkUnavailable, match=r"1 writes failed, first .*13"):
        await bench.exporter.replace_files([changed])
    await bench.replace(changed)
    await bench.assert_holds(changed, bench.file("dfl-2", 1))


async def test_trying_again_ends(bench: Bench, server: MongoServer) -> None:
    server.fail("delete", code=WRITE_CONFLICT, times=1_000)
    with pytest.raises(SinkUnavailable, match="cannot delete"):
        await bench.delete("dfl-1")
    assert server.sent.count("delete") <= 20
    server.fail("none", times=0)
    server.fail("find", code=WRITE_CONFLICT, times=1_000)
    with pytest.raises(SinkUnavailable, match="cannot list files: WriteConflict"):
        await bench.snapshots()
    assert server.sent.count("find") <= 20
    server.fail("none", times=0)


async def test_reads_survive_a_lost_connection(bench: Bench, server: MongoServer) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    server.fail("find", hang_up=True)
    await bench.assert_holds(file)


async def test_files_are_listed_in_a_number_of_requests_that_depends_on_the_batch_size_alone(
    bench: Bench, server: MongoServer, raw: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongodb, "_HEADS_PER_BATCH", 1_000)
    await bench.replace(bench.file("dfl-0", 1))
    (head,) = await raw.find().to_list()
    await raw.insert_many([{**head, "_id": str(n), "parsed_directory_file_id": f"dfl-{n}"} for n in range(1, 2_500)])
    server.sent.clear()
    assert len(await bench.snapshots()) == 2_500
    assert server.sent.count("find") == 1
    assert server.sent.count("getMore") == 2


async def test_records_are_read_in_tables_of_bounded_size_cut_between_files(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongodb, "_BYTES_PER_FETCH", 40_000)
    monkeypatch.setattr(mongodb, "_RECORDS_PER_BATCH", 7)
    files = [bench.file(f"dfl-{n:02}", 5 + n % 9) for n in range(30)]
    await bench.replace(*files)
    sizes = [table.num_rows async for table in bench.exporter.fetch_records(export_config_id=bench.config)]
    assert sum(sizes) == sum(file.table.num_rows for file in files)
    assert len(sizes) > 4
    assert max(sizes) < 60
    await bench.assert_holds(*files)


async def test_records_too_large_are_refused_and_the_others_written(bench: Bench) -> None:
    old = bench.file("dfl-large")
    await bench.replace(old)
    good = bench.file("dfl-1")
    report = await bench.replace(bench.file("dfl-large", ["x" * 16_800_000], version="v2"), good)
    (refused,) = report.refused
    assert refused.file_id == "dfl-large"
    assert "16,777,216" in refused.reason
    await bench.assert_holds(old, good)


async def test_records_of_others_in_the_collection_are_left_alone(bench: Bench, raw: Collection) -> None:
    await raw.insert_one({"_id": "theirs", "text": "a node LlamaIndex has added", "embedding": [0.0], "metadata": {}})
    file = bench.file("dfl-1")
    await bench.replace(file)
    await bench.assert_holds(file)
    assert await bench.exporter.list_scopes() == frozenset({(bench.tenant, bench.config)})
    await bench.delete("dfl-1")
    assert [document["_id"] async for document in raw.find()] == ["theirs"]


async def test_a_collection_that_is_not_ours_is_left_alone(bench: Bench, mongo: MongoDBUnderTest, raw: Collection) -> None:
    await raw.drop()
    await raw.insert_one({"theirs": True})
    for attempt in (bench.open().provision, lambda: bench.open().list_snapshots(export_config_id="cfg")):
        with pytest.raises(SinkConflict, match="collection_prefix"):
            await attempt()


async def test_a_collection_that_is_not_ours_is_not_dropped(bench: Bench, raw: Collection) -> None:
    await bench.exporter.drop_collection()
    await bench.exporter.drop_collection()
    await raw.insert_one({"_id": "theirs"})
    with pytest.raises(SinkConflict, match="was not made by"):
        await bench.exporter.drop_collection()
    assert await raw.count_documents({}) == 1


async def test_a_missing_collection_is_not_made_by_writing(bench: Bench, raw: Collection) -> None:
    await raw.drop()
    with pytest.raises(SinkUnavailable, match="provision"):
        await bench.open().replace_files([bench.file("dfl-1")])
    assert raw.name not in await raw.database.list_collection_names()


async def test_another_index_of_the_same_name_is_a_conflict(bench: Bench, raw: Collection) -> None:
    await raw.drop_index("records")
    await raw.create_index("text", name="records")
    with pytest.raises(SinkConflict, match="records"):
        await bench.open().provision()


SECURITY = Path(__file__).parents[3] / "docs" / "security.md"


@pytest.fixture
def documented_role(server: MongoServer) -> Iterator[set[str]]:
    """From now on everybody may do what docs/security.md says that running needs, and nothing else."""
    (row,) = (line for line in SECURITY.read_text(encoding="utf-8").splitlines() if line.startswith("| `mongodb` |"))
    server.permitted = set(re.findall(r"`(\w+)`", row.split("|")[2]))
    yield server.permitted
    server.permitted = None


@pytest.mark.usefixtures("small_transactions")
async def test_the_documented_role_does_all_that_running_needs(bench: Bench, documented_role: set[str]) -> None:
    await bench.replace(bench.file("dfl-0"))
    limited = bench.open()
    await limited.provision()
    await limited.replace_files([bench.file("dfl-1"), bench.file("dfl-2", 30)])
    await limited.replace_files([bench.file("dfl-2", 25, version="v2")])
    await bench.assert_holds(bench.file("dfl-0"), bench.file("dfl-1"), bench.file("dfl-2", 25, version="v2"), exporter=limited)
    assert len(await limited.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=9))) == 9
    assert await limited.list_scopes() == frozenset({(bench.tenant, bench.config)})
    await limited.delete_files(parsed_directory_file_ids=["dfl-1"], export_config_id=bench.config)
    await limited.optimize()
    await limited.purge_history()
    with pytest.raises(SinkUnavailable, match="Unauthorized"):
        await limited.drop_collection()


@pytest.mark.usefixtures("small_transactions")
@pytest.mark.parametrize("action", ["find", "insert", "update", "remove", "listIndexes", "listSearchIndexes", "listCollections"])
async def test_the_documented_role_has_nothing_that_is_not_needed(
    bench: Bench, server: MongoServer, documented_role: set[str], action: str
) -> None:
    assert action in documented_role
    server.permitted = documented_role - {action}
    limited = bench.open()

    async def run() -> None:
        await limited.provision()
        await limited.replace_files([bench.file("dfl-1"), bench.file("dfl-2", 30)])

    with pytest.raises(SinkUnavailable, match="Unauthorized"):
        await run()


async def test_a_missing_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INDEXPORT_MONGODB_URI", raising=False)
    with pytest.raises(ConfigError, match="INDEXPORT_MONGODB_URI"):
        await MongoDBExporter(MongoDBSettings(), SinkContext("prj", MODEL)).provision()


@pytest.mark.parametrize("address", ["mongodb://u:{}@[bad", "http://u:{}@host/", "mongodb://u:p@x:{}@host:99999/"])
async def test_an_address_nobody_understands_is_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI_ENV, address.format(PASSWORD))
    exporter = MongoDBExporter(MongoDBSettings(uri_env=URI_ENV, timeout_seconds=0.1), SinkContext("prj", MODEL))
    with pytest.raises((ConfigError, SinkUnavailable), match=URI_ENV) as caught:
        await exporter.provision()
    assert PASSWORD not in f"{caught.value!r}{caught.value.__cause__!r}"
    await exporter.close()


@pytest.mark.parametrize("file", ["missing.pem", __file__])
async def test_certificates_that_cannot_be_read_are_named(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI_ENV, f"mongodb://writer:{PASSWORD}@host/?tls=true&tlsCAFile={file}")
    exporter = MongoDBExporter(MongoDBSettings(uri_env=URI_ENV), SinkContext("prj", MODEL))
    with pytest.raises(ConfigError, match=f"{URI_ENV} names a tlsCAFile"):
        await exporter.provision()
    await exporter.close()


async def test_a_password_a_server_repeats_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI_ENV, f"mongodb://writer:{PASSWORD}@host/")

    async def attempt() -> None:
        details: dict[str, Any] = {"errmsg": f"no {PASSWORD} nor s3cret-p@ss", "codeName": "AuthenticationFailed", "code": 18}
        raise OperationFailure(details["errmsg"], 18, details)

    store = MongoStore(URI_ENV, "database", "collection", MODEL, 1)
    with pytest.raises(SinkUnavailable, match=r"AuthenticationFailed 18: no \*\*\* nor \*\*\*"):
        await store.call("write", attempt)


async def test_metadata_with_reserved_names_reaches_no_query(bench: Bench) -> None:
    metadata = {"$where": "sleep(1)", "a.b": 1, "_id": "x", "tenant_id": "other", "": "empty", "\0": "nul", "year": 2024}
    file = bench.file("dfl-1", metadata=metadata)
    await bench.replace(file)
    await bench.assert_holds(file)
    assert FIELDS.keys() & metadata.keys() == {"year"}
