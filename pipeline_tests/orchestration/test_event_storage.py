"""Runs of many partitions through the batching storages, read back through Dagster's own interface."""

import atexit
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dagster as dg
import pytest
from dagster._core.events import AssetMaterializationPlannedData, AssetObservationData, StepMaterializationData
from dagster._core.storage.event_log import SqlEventLogStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.sql.compiler import SQLCompiler

from pipeline.home import Home
from pipeline.orchestration.event_batches import event_rows
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.partitions import RANGE_END, RANGE_START
from pipeline.orchestration.sqlite_storage import BatchingSqliteEventLogStorage
from pipeline.orchestration.standing import report_materialized
from pipeline_tests.postgres import fresh_database, postgres, sqlalchemy_url

KEYS = [f"file-{number}" for number in range(7)]
FILES = dg.DynamicPartitionsDefinition(name="files")
POLICY = dg.BackfillPolicy.multi_run()


@dg.asset(partitions_def=FILES, backfill_policy=POLICY)
def payloads() -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(metadata={"pages": 3})


@dg.asset(partitions_def=FILES, backfill_policy=POLICY, deps=[payloads])
def chunks(context: dg.AssetExecutionContext) -> None:
    if "file-6" in context.partition_keys:
        raise dg.Failure("poison")


JOB = dg.Definitions(
    assets=[payloads, chunks], jobs=[dg.define_asset_job("job", [payloads, chunks], executor_def=dg.in_process_executor)]
).resolve_job_def("job")


@pytest.fixture(params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "4")
    pools = {"concurrency": {"pools": {"default_limit": 2}}}
    if request.param == "sqlite":
        storage = {"module": "pipeline.orchestration.sqlite_storage", "class": "BatchingSqliteStorage"}
        with dg.instance_for_test(
            temp_dir=str(tmp_path), overrides={"storage": {"custom": {**storage, "config": {"base_dir": str(tmp_path)}}}, **pools}
        ) as made:
            yield made
        return
    storage = {"module": "pipeline.orchestration.postgres_storage", "class": "BatchingPostgresStorage"}
    with postgres() as uri:
        config = {"postgres_url": sqlalchemy_url(fresh_database(uri))}
        with dg.instance_for_test(
            temp_dir=str(tmp_path), overrides={"storage": {"custom": {**storage, "config": config}}, **pools}
        ) as made:
            yield made


def test_opening_the_instance_again_leaves_nothing_to_the_end_of_the_process(instance: dg.DagsterInstance) -> None:
    before = atexit._ncallbacks()
    for _ in range(3):
        with dg.DagsterInstance.from_ref(instance.get_ref()) as again:
            assert again.get_runs_count() == 0
            assert again.all_instigator_state() == []
    assert atexit._ncallbacks() == before


def test_runs_that_begin_together_may_each_make_a_pool_known(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    for _ in range(2):
        assert storage.initialize_concurrency_limit_to_default("new")
    assert [(pool.name, pool.limit, pool.from_default) for pool in storage.get_pool_limits()] == [("new", 2, True)]
    claimed = [storage.claim_concurrency_slot("new", f"run-{number}", "step").is_claimed for number in range(3)]
    assert claimed == [True, True, False]


def test_of_runs_that_ask_for_the_last_place_at_once_one_gets_it(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    storage.set_concurrency_slots("one", 1)
    with ThreadPoolExecutor(4) as threads:
        for round_ in range(25):
            runs = [f"run-{round_}-{number}" for number in range(4)]
            claims = list(threads.map(lambda run_id: storage.claim_concurrency_slot("one", run_id, "step").is_claimed, runs))
            assert claims.count(True) == 1
            for run_id in runs:
                storage.free_concurrency_slots_for_run(run_id)


def test_a_pool_whose_limit_somebody_set_keeps_it_and_another_follows_the_default(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = instance.event_log_storage
    storage.set_concurrency_slots("ours", 1)
    storage.initialize_concurrency_limit_to_default("other")
    monkeypatch.setattr(dg.DagsterInstance, "global_op_concurrency_default_limit", 3)
    for pool in ("ours", "other"):
        assert storage.initialize_concurrency_limit_to_default(pool)
    assert {pool.name: pool.limit for pool in storage.get_pool_limits()} == {"ours": 1, "other": 3}
    assert [storage.get_concurrency_info(pool).slot_count for pool in ("ours", "other")] == [1, 3]


def run(instance: dg.DagsterInstance, first: str, last: str) -> dg.ExecuteInProcessResult:
    return JOB.execute_in_process(instance=instance, tags={RANGE_START: first, RANGE_END: last}, raise_on_error=False)


def test_what_one_run_has_asked_is_not_compiled_again_for_the_next(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.add_dynamic_partitions("files", KEYS)
    compiled: list[str] = []
    compile_one = SQLCompiler.__init__

    def noted(compiler: SQLCompiler, *given: Any, **told: Any) -> None:
        compile_one(compiler, *given, **told)
        compiled.append(str(compiler))

    monkeypatch.setattr(SQLCompiler, "__init__", noted)
    assert run(instance, KEYS[0], KEYS[1]).success
    of_first = {statement for statement in compiled if "FROM event_logs" in statement or "FROM runs" in statement}
    compiled.clear()
    assert run(instance, KEYS[2], KEYS[3]).success
    assert of_first
    assert of_first & set(compiled) == set()


def test_the_keys_of_a_directory_are_read_in_their_order_and_without_its_name_beside_each(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.add_dynamic_partitions("files", [*KEYS[3:], *KEYS[:3]])
    instance.add_dynamic_partitions("others", ["another"])
    asked: list[str] = []
    execute = Connection.execute

    def noted(connection: Connection, statement: Any, *given: Any, **told: Any) -> Any:
        asked.append(str(statement))
        return execute(connection, statement, *given, **told)

    monkeypatch.setattr(Connection, "execute", noted)
    assert instance.get_dynamic_partitions("files") == [*KEYS[3:], *KEYS[:3]]
    [statement] = [statement for statement in asked if "FROM dynamic_partitions" in statement]
    assert statement.split("FROM")[0].split() == ["SELECT", "dynamic_partitions.partition"]


def test_every_file_of_a_run_is_materialized_with_its_metadata_and_data_version(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("files", KEYS)
    assert run(instance, KEYS[0], KEYS[4]).success
    assert instance.get_materialized_partitions(payloads.key) == set(KEYS[:5])
    assert instance.get_materialized_partitions(chunks.key) == set(KEYS[:5])
    records = instance.fetch_materializations(payloads.key, limit=10).records
    assert sorted(record.partition_key or "" for record in records) == KEYS[:5]
    for record in records:
        materialization = record.asset_materialization
        assert materialization is not None
        assert materialization.metadata["pages"].value == 3
        assert "dagster/data_version" in (materialization.tags or {})
        assert materialization.partition == record.partition_key
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        payloads.key, dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
    )
    assert set(tags) == set(KEYS[:5])


def test_the_events_of_all_files_of_a_step_are_written_at_once_where_nobody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "")
    monkeypatch.delenv("DAGSTER_EVENT_BATCH_SIZE")
    batches: list[int] = []
    real = BatchingSqliteEventLogStorage.store_event_batch

    def noted(storage: BatchingSqliteEventLogStorage, events: Sequence[dg.EventLogEntry]) -> None:
        batches.append(sum(event.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION for event in events))
        real(storage, events)

    monkeypatch.setattr(BatchingSqliteEventLogStorage, "store_event_batch", noted)
    with open_instance(Home(tmp_path)) as instance:
        instance.add_dynamic_partitions("files", KEYS)
        assert run(instance, KEYS[0], KEYS[5]).success
    assert [size for size in batches if size] == [6, 6]


def test_an_asset_remembers_the_last_event_of_its_batch(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("files", KEYS)
    run(instance, KEYS[0], KEYS[4])
    newest = instance.fetch_materializations(payloads.key, limit=1).records[0]
    latest = instance.get_latest_materialization_event(payloads.key)
    assert latest is not None
    assert latest.dagster_event is not None
    assert latest.dagster_event.partition == newest.partition_key


def test_files_of_a_failed_run_show_as_failed_and_not_as_missing(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("files", KEYS)
    result = run(instance, KEYS[5], KEYS[6])
    assert not result.success
    planned = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(chunks.key)
    assert set(planned) == {KEYS[5], KEYS[6]}
    assert instance.get_materialized_partitions(chunks.key) == set()


def test_the_log_of_a_run_holds_every_event_once(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("files", KEYS)
    result = run(instance, KEYS[0], KEYS[4])
    stored = instance.get_records_for_run(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED).records
    assert len(stored) == 2 * 5
    assert len({(record.asset_key, record.partition_key) for record in stored}) == 2 * 5


def test_partitions_reported_outside_of_any_run_are_materialized(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("files", KEYS)
    report_materialized(instance, payloads.key, KEYS[:6], made_by="a test")
    assert instance.get_materialized_partitions(payloads.key) == set(KEYS[:6])
    records = instance.fetch_materializations(payloads.key, limit=10).records
    assert sorted(record.partition_key or "" for record in records) == KEYS[:6]
    assert {record.run_id for record in records} == {""}


names = st.sampled_from(["file-1", "file-2", '"partition": "file-1"', "ü\u2028\\", '", "timestamp": 1.5'])
keys = st.sampled_from([["e", "chunks"], ["e", "lancedb"]]).map(dg.AssetKey)
times = st.sampled_from([0.0, 1.5, 1795690692.7273216, 1e-7])
partitions = st.none() | names
planned = st.builds(lambda key, partition: AssetMaterializationPlannedData(key, partition), keys, partitions)
materialized = st.builds(
    lambda key, partition, metadata, tags: StepMaterializationData(
        dg.AssetMaterialization(key, partition=partition, metadata=metadata, tags=tags)
    ),
    keys,
    partitions,
    st.builds(
        lambda others, file: {**others, **file},
        st.dictionaries(names, names | st.integers(0, 3), max_size=1),
        st.dictionaries(st.just("file"), names | st.integers(0, 3), max_size=1),
    ),
    st.dictionaries(st.just("dagster/data_version"), st.sampled_from(["a", "b"]), max_size=1),
)
observed = st.builds(lambda key, partition: AssetObservationData(dg.AssetObservation(key, partition=partition)), keys, partitions)
TYPES: dict[type, dg.DagsterEventType] = {
    AssetMaterializationPlannedData: dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    StepMaterializationData: dg.DagsterEventType.ASSET_MATERIALIZATION,
    AssetObservationData: dg.DagsterEventType.ASSET_OBSERVATION,
}


def entry(data: Any, run_id: str, message: str, timestamp: float) -> dg.EventLogEntry:
    event = dg.DagsterEvent(TYPES[type(data)].value, "job", step_key="step", event_specific_data=data, message=message)
    return dg.EventLogEntry(None, 10, message, run_id, timestamp, "step", "job", event)  # type: ignore[no-untyped-call]  # Dagster leaves it without annotations


entries = st.builds(entry, planned | materialized | observed, st.sampled_from(["r1", "r2"]), names, times)


@pytest.fixture(scope="module")
def storage() -> Iterator[SqlEventLogStorage]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        assert isinstance(ephemeral.event_log_storage, SqlEventLogStorage)
        yield ephemeral.event_log_storage


@settings(deadline=None)
@given(events=st.lists(entries, max_size=12))
def test_the_rows_of_a_batch_are_those_of_its_events_one_by_one(
    storage: SqlEventLogStorage, events: list[dg.EventLogEntry]
) -> None:
    assert event_rows(storage, events) == [storage._event_to_row(event) for event in events]


def test_events_that_name_the_files_of_their_partitions_are_serialized_once(
    storage: SqlEventLogStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = dg.AssetKey(["e", "chunks"]), {"dagster/uri": "file:///lake"}
    made = [dg.AssetMaterialization(key, partition=f"f-{n}", metadata={**text, "file": f"{n} of ü.md"}) for n in range(5)]
    events = [entry(StepMaterializationData(each), "r1", "made", 1.5 + n) for n, each in enumerate(made)]
    one_by_one = [storage._event_to_row(event) for event in events]
    serializing = Mock(side_effect=storage._event_to_row)
    monkeypatch.setattr(storage, "_event_to_row", serializing)
    assert event_rows(storage, events) == one_by_one
    assert serializing.call_count == 1
