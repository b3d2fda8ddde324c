"""Making and validating Pinecone indexes, throttling, lost answers, readers that lag behind, keys."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pinecone
import pytest

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, RecordRefused, SinkConflict, SinkUnavailable
from pipeline.sinks.base import Exporter, SearchRequest, SinkContext
from pipeline.sinks.pinecone import PineconeExporter, PineconeSettings
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, unit_vectors
from pipeline_tests.emulators.http import ApiError
from pipeline_tests.emulators.pinecone import NEW_API, OLD_API, OTHER_POSITION_HEADERS, PineconeEmulator, Request

CONTEXT = SinkContext("prj-1", MODEL, FIELDS)


@pytest.fixture
async def exporter(emulator: PineconeEmulator) -> AsyncIterator[PineconeExporter]:
    made = PineconeExporter(PineconeSettings(controller_host=emulator.url, region="eu-west-1", ready_seconds=10), CONTEXT)
    yield made
    await made.close()


def another(emulator: PineconeEmulator, context: SinkContext = CONTEXT, **settings: Any) -> PineconeExporter:
    return PineconeExporter(PineconeSettings(controller_host=emulator.url, **settings), context)


async def test_a_new_index_is_a_serverless_one_for_this_model(exporter: PineconeExporter, emulator: PineconeEmulator) -> None:
    await exporter.provision()
    (index,) = emulator.indexes.values()
    assert index.name == exporter.index_name == f"indexport-{MODEL.slug}"
    assert (index.dimension, index.metric, index.cloud, index.region) == (16, "cosine", "aws", "eu-west-1")
    assert index.deletion_protection == "disabled"
    assert set(index.tags or {}) == {"indexport-format", "indexport-model"}
    (request,) = (request for request in emulator.requests if request.operation == "create_index")
    assert request.api_version == (OLD_API if pinecone.__version__.startswith("9.") else NEW_API)


async def test_provisioning_waits_until_the_index_is_ready(exporter: PineconeExporter, emulator: PineconeEmulator) -> None:
    emulator.describes_until_ready = 2
    await exporter.provision()
    assert next(iter(emulator.indexes.values())).state == "Ready"


async def test_an_index_that_does_not_become_ready_is_given_up(emulator: PineconeEmulator) -> None:
    emulator.describes_until_ready = 1_000
    impatient = another(emulator, ready_seconds=0.1)
    with pytest.raises(SinkUnavailable, match="does not become ready"):  # making it may take all of that time
        await impatient.provision()
    with pytest.raises(SinkUnavailable, match="is Initializing and does not become ready"):
        await impatient.provision()
    await impatient.close()


async def test_an_index_that_failed_is_named_at_once(exporter: PineconeExporter, emulator: PineconeEmulator) -> None:
    await exporter.provision()
    emulator.indexes[exporter.index_name].state = "InitializationFailed"
    with pytest.raises(SinkUnavailable, match="InitializationFailed"):
        await exporter.provision()


async def test_a_declared_field_named_like_the_marker_is_refused_before_any_request(emulator: PineconeEmulator) -> None:
    sink = another(emulator, SinkContext("prj-1", MODEL, {"year": "integer", "pending": "boolean"}))
    with pytest.raises(ConfigError, match=r"metadata field 'pending'.*rename it"):
        await sink.provision()
    assert emulator.requests == []
    await sink.close()


async def test_an_index_that_is_neither_found_nor_made_is_given_up(emulator: PineconeEmulator) -> None:
    def elsewhere(request: Request) -> None:
        raise ApiError(409, "Resource already exists") if request.operation == "create_index" else ApiError(404, "not found")

    emulator.before = elsewhere
    impatient = another(emulator, ready_seconds=0.5)
    with pytest.raises(SinkUnavailable, match="is missing and does not become ready"):
        await asyncio.wait_for(impatient.provision(), 20)
    assert emulator.count("create_index") < 10
    await impatient.close()


@pytest.mark.parametrize(("status", "kind"), [(400, SinkConflict), (403, SinkUnavailable), (404, SinkConflict)])
async def test_an_index_that_cannot_be_made_where_it_should_be_says_where(
    emulator: PineconeEmulator, status: int, kind: type[Exception]
) -> None:
    emulator.fail("create_index", status, message="Resource cloud: aws region: us-east-9 not found")
    lost = another(emulator, region="us-east-9")
    with pytest.raises(kind, match=r"create index .* in region 'us-east-9' of cloud 'aws'.*us-east-9 not found") as caught:
        await lost.provision()
    assert "provision the sink first" not in str(caught.value)
    await lost.close()


async def test_two_processes_that_create_the_index_at_once_share_it(emulator: PineconeEmulator) -> None:
    exporters = [another(emulator) for _ in range(4)]
    await asyncio.gather(*(exporter.provision() for exporter in exporters))
    assert len(emulator.indexes) == 1
    await asyncio.gather(*(exporter.close() for exporter in exporters))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "dotproduct"}, "metric dotproduct"),
        ({"dimension": 32}, "dimension 32"),
        ({"tags": None}, "indexport-model="),
        ({"tags": {"indexport-format": "1", "indexport-model": "0" * 64}}, "another model"),
        ({"tags": {"indexport-format": "2"}}, "indexport-format=1"),
    ],
)
async def test_an_index_that_is_not_ours_or_does_not_fit_is_refused(
    exporter: PineconeExporter, emulator: PineconeEmulator, change: dict[str, Any], told: str
) -> None:
    await exporter.provision()
    emulator.indexes[exporter.index_name] = dataclasses.replace(emulator.indexes[exporter.index_name], **change)
    other = another(emulator)
    for attempt in (other.provision, lambda: other.list_snapshots(export_config_id="cfg")):
        with pytest.raises(SinkConflict, match=told):
            await attempt()
    await other.close()


async def test_tags_of_others_and_deletion_protection_are_left_alone(
    exporter: PineconeExporter, emulator: PineconeEmulator
) -> None:
    await exporter.provision()
    index = emulator.indexes[exporter.index_name]
    index.tags = {**(index.tags or {}), "owner": "search"}
    index.deletion_protection = "enabled"
    await another(emulator).provision()
    assert (index.tags["owner"], index.deletion_protection) == ("search", "enabled")
    assert emulator.count("configure_index") == 0


async def test_a_missing_index_says_that_it_has_to_be_provisioned(exporter: PineconeExporter) -> None:
    with pytest.raises(SinkUnavailable, match="provision the sink first"):
        await exporter.list_snapshots(export_config_id="cfg")


async def test_an_index_deleted_meanwhile_is_not_mistaken_for_an_empty_one(bench: Bench, emulator: PineconeEmulator) -> None:
    await bench.replace(bench.file("dfl-1"))
    emulator.indexes.clear()
    for attempt in (bench.snapshots(), bench.delete("dfl-1"), bench.held(), bench.replace(bench.file("dfl-1"))):
        with pytest.raises(SinkUnavailable, match="no index"):
            await attempt


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_index_is_asked_again_for_what_failed_only(bench: Bench, emulator: PineconeEmulator, status: int) -> None:
    file = bench.file("dfl-1")
    for operation in ("fetch_by_metadata", "upsert", "update", "query"):
        emulator.fail(operation, status, retry_after="0.001")
    await bench.replace(file)
    assert (emulator.count("upsert"), emulator.count("update")) == (2 + 1, 1 + 1 + 1)  # the last dates the sweep
    await bench.assert_holds(file)


async def test_throttling_that_does_not_end_makes_the_sink_unavailable(bench: Bench, emulator: PineconeEmulator) -> None:
    emulator.fail("upsert", 429, times=1_000, retry_after="0.001", message="Request rate limit exceeded")
    with pytest.raises(SinkUnavailable, match=r"write records.*429, Request rate limit exceeded"):
        await bench.replace(bench.file("dfl-1"))
    assert emulator.count("upsert") == 10


async def test_the_sdk_adds_no_requests_and_no_waits_of_its_own(bench: Bench, emulator: PineconeEmulator) -> None:
    """It would wait a minute or more three times within each of our tries, where an index asks for as much."""
    emulator.fail("describe_index", 429, times=10, retry_after="0.001")
    with pytest.raises(SinkUnavailable, match="describe the index"):
        await bench.snapshots()
    assert emulator.count("describe_index") == 10
    await bench.replace(bench.file("dfl-1"))
    emulator.requests.clear()
    emulator.fail("query", 429, times=10, retry_after="0.001")
    with pytest.raises(SinkUnavailable, match="search"):
        await bench.exporter.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0]))
    emulator.lose_answer("fetch_by_metadata", times=3)
    with pytest.raises(SinkUnavailable, match="cannot be reached to read records"):
        await bench.snapshots()
    assert (emulator.count("query"), emulator.count("fetch_by_metadata")) == (10, 3)


async def test_the_wait_a_store_asks_for_is_kept(bench: Bench, emulator: PineconeEmulator) -> None:
    emulator.fail("upsert", 429, retry_after="0.4")
    started = time.monotonic()
    await bench.replace(bench.file("dfl-1"))
    assert time.monotonic() - started >= 0.4


async def test_an_upsert_that_took_effect_in_part_is_made_whole(bench: Bench, emulator: PineconeEmulator) -> None:
    files = [bench.file(f"dfl-{n}", 5) for n in range(4)]
    emulator.fail("upsert", 503, times=2, retry_after="0.001", takes_effect="half")
    await bench.replace(*files)
    await bench.assert_holds(*files)


@pytest.mark.parametrize("operation", ["upsert", "update", "delete", "query", "fetch_by_metadata"])
async def test_an_answer_that_is_lost_is_asked_for_again(bench: Bench, emulator: PineconeEmulator, operation: str) -> None:
    await bench.replace(bench.file("dfl-1", 5))
    emulator.lose_answer(operation)
    changed = bench.file("dfl-1", 2, version="v2")
    await bench.replace(changed)
    await bench.assert_holds(changed)


async def test_a_write_that_took_effect_after_it_was_given_up_is_made_good(emulator: PineconeEmulator, bench: Bench) -> None:
    hasty = another(emulator, SinkContext(bench.tenant, MODEL, FIELDS), request_seconds=0.15)
    await hasty.list_snapshots(export_config_id=bench.config)
    emulator.lose_answer("upsert", times=100, stall_seconds=0.3)
    with pytest.raises(SinkUnavailable, match="did not answer in time"):
        await hasty.replace_files([bench.file("dfl-1", 4)])
    await hasty.close()
    assert (await bench.snapshots())["dfl-1"].record_set_hash.startswith("pending:")
    emulator.heal()
    changed = bench.file("dfl-1", 2, version="v2")
    await bench.replace(changed)
    await bench.assert_holds(changed)


async def test_a_file_pinecone_will_not_hold_is_refused_and_its_batch_goes_on(bench: Bench, emulator: PineconeEmulator) -> None:
    old = bench.file("dfl-2")
    await bench.replace(old)
    files = [bench.file(f"dfl-{n}", version="v2") for n in range(5)]
    poison = files[2].record_set_hash

    def refuse(request: Request) -> None:
        if request.operation == "upsert" and any(v["metadata"]["record_set_hash"] == poison for v in request.body["vectors"]):
            raise ApiError(400, "Metadata size is larger than we like")

    emulator.before = refuse
    report = await bench.replace(*files)
    (refused,) = report.refused
    assert isinstance(refused, RecordRefused)
    assert refused.file_id == "dfl-2"
    assert "larger than we like" in refused.reason
    await bench.assert_holds(old, *(file for file in files if file.file_id != "dfl-2"))


def refuse_a_body_chunk(emulator: PineconeEmulator) -> None:
    """Refuse every request with the fourth chunk of a file, whose head then stands already."""

    def refuse(request: Request) -> None:
        if request.operation == "upsert" and any(v["metadata"]["chunk_index"] == 3 for v in request.body["vectors"]):
            raise ApiError(400, "Metadata size is larger than we like")

    emulator.before = refuse


async def test_a_file_refused_while_its_body_is_written_leaves_nothing_of_its_new_version(
    bench: Bench, emulator: PineconeEmulator
) -> None:
    old, other = bench.file("dfl-1", 5), bench.file("dfl-2", 2, version="v2")
    await bench.replace(old)
    refuse_a_body_chunk(emulator)
    for _ in range(2):
        report = await bench.replace(bench.file("dfl-1", 5, version="v2"), other, bench.file("dfl-new", 1_500))
        assert sorted(refused.file_id for refused in report.refused) == ["dfl-1", "dfl-new"]
        await bench.assert_holds(old, other)


async def test_a_file_refused_while_its_version_is_written_again_keeps_what_it_has(
    bench: Bench, emulator: PineconeEmulator
) -> None:
    file = bench.file("dfl-1", 5)
    await bench.replace(file)
    refuse_a_body_chunk(emulator)
    for _ in range(2):
        assert (await bench.replace(file)).refused
        assert len((await bench.held())["dfl-1"]) == 5
    emulator.before = None
    await bench.replace(file)
    await bench.assert_holds(file)


@pytest.mark.parametrize("headers", [None, OTHER_POSITION_HEADERS], ids=["documented names", "other names"])
async def test_a_reader_never_answers_from_before_its_own_writes(
    bench: Bench, emulator: PineconeEmulator, headers: tuple[str, str] | None
) -> None:
    emulator.headers = headers or emulator.headers
    emulator.lag.reads = 2
    exporter, files = bench.exporter, [bench.file("dfl-1", 6), bench.file("dfl-2")]
    await exporter.replace_files(files)
    await bench.assert_holds(*files)
    await exporter.replace_files([shorter := bench.file("dfl-1", 2, version="v2")])
    await bench.assert_holds(shorter, files[1])
    await exporter.delete_files(parsed_directory_file_ids=["dfl-1"], export_config_id=bench.config)
    await bench.assert_holds(files[1])
    await exporter.replace_files([bench.file("dfl-2", 0)])
    await bench.assert_holds()


async def test_searches_find_what_was_written_once_a_run_has_ended(bench: Bench, emulator: PineconeEmulator) -> None:
    emulator.lag.reads = 3
    await bench.exporter.replace_files([bench.file("dfl-1", 1)])
    await bench.exporter.optimize()
    hits = await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0]))
    assert [hit.record.parsed_directory_file_id for hit in hits] == ["dfl-1"]


async def test_a_reader_that_stays_behind_makes_the_sink_unavailable(bench: Bench, emulator: PineconeEmulator) -> None:
    impatient = another(emulator, SinkContext(bench.tenant, MODEL, FIELDS), freshness_seconds=0.2)
    await impatient.replace_files([bench.file("dfl-1")])
    emulator.lag.frozen = True
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: impatient.replace_files([bench.file("dfl-1", version="v2")]),
        lambda: impatient.list_snapshots(export_config_id=bench.config),
        lambda: _all_records(impatient, bench.config),
    ]
    for attempt in attempts:
        with pytest.raises(SinkUnavailable, match=r"own writes readable for 0\.2 s"):
            await attempt()
    emulator.lag.frozen = False
    changed = bench.file("dfl-1", version="v2")
    await impatient.replace_files([changed])
    await bench.assert_holds(changed)
    await impatient.close()


async def _all_records(exporter: Exporter, config: str) -> int:
    return sum([table.num_rows async for table in exporter.fetch_records(export_config_id=config)])


async def test_a_service_that_tells_no_positions_is_believed(bench: Bench, emulator: PineconeEmulator) -> None:
    emulator.headers = None
    await bench.replace(file := bench.file("dfl-1"))
    await bench.assert_holds(file)


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_key_that_is_refused_is_told_without_the_key(bench: Bench, emulator: PineconeEmulator, status: int) -> None:
    emulator.fail("fetch_by_metadata", status, message=f"the key {emulator.api_key} is not welcome")
    with pytest.raises(SinkUnavailable, match=r"the key \*\*\* is not welcome.*PINECONE_API_KEY") as caught:
        await bench.snapshots()
    assert emulator.api_key not in f"{caught.value!r}{caught.value.__cause__!r}"


async def test_a_wrong_key_is_told_without_the_key(
    exporter: PineconeExporter, monkeypatch: pytest.MonkeyPatch, emulator: PineconeEmulator
) -> None:
    monkeypatch.setenv("PINECONE_API_KEY", "wrong-key-0815")
    with pytest.raises(SinkUnavailable, match="Invalid API Key") as caught:
        await exporter.provision()
    assert "wrong-key-0815" not in repr(caught.value)
    assert "wrong-key-0815" not in repr(exporter.settings)


@pytest.mark.parametrize("key", [None, "", "  "])
async def test_a_missing_key_is_a_setting_to_correct(
    exporter: PineconeExporter, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("PINECONE_API_KEY") if key is None else monkeypatch.setenv("PINECONE_API_KEY", key)
    with pytest.raises(ConfigError, match="PINECONE_API_KEY"):
        await exporter.provision()


@pytest.mark.parametrize("host", ["http://127.0.0.1:114343", "secret@host:port", "https://[::1"])
async def test_an_address_that_is_none_is_a_setting_to_correct(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", host)
    monkeypatch.setenv("PINECONE_API_KEY", "a-key")
    exporter = PineconeExporter(PineconeSettings(), CONTEXT)
    for _ in range(2):
        with pytest.raises(ConfigError, match="controller_host, or PINECONE_CONTROLLER_HOST") as caught:
            await exporter.provision()
        assert "secret" not in str(caught.value)
    await exporter.close()


async def test_an_address_where_something_else_answers_is_unavailable(emulator: PineconeEmulator) -> None:
    lost = PineconeExporter(PineconeSettings(controller_host=f"{emulator.url}/elsewhere"), CONTEXT)
    with pytest.raises(SinkUnavailable):
        await lost.list_snapshots(export_config_id="cfg")
    await lost.close()


async def test_the_control_plane_can_be_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, emulator: PineconeEmulator
) -> None:
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.url)
    exporter = PineconeExporter(PineconeSettings(), SinkContext("prj-1", ModelIdentity("other", "other/1", 8)))
    await exporter.provision()
    assert exporter.index_name in emulator.indexes
    await exporter.close()
