from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.legacy_storage import CompositeStorage, LegacyEventLogStorage
from dagster._core.test_utils import create_run_for_test
from hypothesis import given
from hypothesis import strategies as st

from pipeline.orchestration import partitions
from pipeline.orchestration.liveness import run_is_live
from pipeline.orchestration.partitions import (
    EXPORT_TAG,
    PARTITION,
    RANGE_START,
    add_keys,
    contiguous_ranges,
    delete_keys,
    is_quiet,
    key_order,
)
from pipeline_tests.orchestration.another_process import inserts_first
from pipeline_tests.postgres import fresh_database, postgres, sqlalchemy_url

STOCK = {"module": "dagster._core.storage.sqlite_storage", "class": "DagsterSqliteStorage"}
OURS = {"module": "pipeline.orchestration.sqlite_storage", "class": "BatchingSqliteStorage"}
OURS_ON_POSTGRES = {"module": "pipeline.orchestration.postgres_storage", "class": "BatchingPostgresStorage"}


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 7))
def test_ranges_cover_exactly_the_wanted_keys_in_store_order(flags: list[bool], size: int) -> None:
    order = [f"k{n}" for n in range(len(flags))]
    wanted = [key for key, flag in zip(order, flags, strict=True) if flag]
    ranges = list(contiguous_ranges(order, wanted, size))
    assert [key for keys in ranges for key in keys] == wanted
    for keys in ranges:
        assert 0 < len(keys) <= size
        start = order.index(keys[0])
        assert order[start : start + len(keys)] == keys


def test_keys_are_appended_once_and_keep_their_order() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        add_keys(instance, "default", ["b", "a"])
        add_keys(instance, "default", ["a", "c"])
        assert key_order(instance, "default") == ["b", "a", "c"]
        delete_keys(instance, "default", ["b"])
        add_keys(instance, "default", ["b"])
        assert key_order(instance, "default") == ["a", "c", "b"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["in memory", "sqlite", "postgres", "no SQL"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on any storage; the last is one of which no more is known than Dagster's interface."""
    if request.param == "in memory":
        with dg.DagsterInstance.ephemeral() as instance:
            yield instance
        return
    storage: dict[str, Any] = {**OURS, "config": {"base_dir": str(tmp_path)}}
    if request.param == "postgres":
        url = sqlalchemy_url(fresh_database(request.getfixturevalue("server")))
        storage = {**OURS_ON_POSTGRES, "config": {"postgres_url": url}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"storage": {"custom": storage}}) as instance:
        if request.param == "no SQL":
            schedules = instance.schedule_storage
            assert schedules
            storage_of_all = CompositeStorage(instance.run_storage, instance.event_log_storage, schedules)
            instance._event_storage = LegacyEventLogStorage(storage_of_all)
        yield instance


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_AT_ONCE", 3)


@pytest.mark.usefixtures("few_at_once")
def test_keys_are_moved_on_any_storage_known_or_not_and_those_of_another_export_stay(anywhere: dg.DagsterInstance) -> None:
    keys = [f"k{n}" for n in range(10)]
    for export in ("default", "other"):
        add_keys(anywhere, export, keys)
    delete_keys(anywhere, "default", [*keys[:7], "unknown"])
    assert key_order(anywhere, "default") == keys[7:]
    delete_keys(anywhere, "default", {*keys})
    delete_keys(anywhere, "default", [])
    assert key_order(anywhere, "default") == []
    add_keys(anywhere, "default", keys[::-1])
    add_keys(anywhere, "default", [*keys, "new"])
    assert key_order(anywhere, "default") == [*keys[::-1], "new"]
    assert key_order(anywhere, "other") == keys


@pytest.mark.usefixtures("few_at_once")
def test_many_keys_are_deleted_in_few_statements(tmp_path: Path) -> None:
    deletes = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        deletes.extend([statement] if statement.startswith("DELETE FROM dynamic_partitions") else [])

    keys = [f"k{n}" for n in range(10)]
    storage = {"custom": {**OURS, "config": {"base_dir": str(tmp_path)}}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"storage": storage}) as instance:
        add_keys(instance, "default", keys)
        with listening("before_cursor_execute", note):
            delete_keys(instance, "default", keys)
        assert key_order(instance, "default") == []
    assert len(deletes) == 4


def test_tens_of_thousands_of_keys_are_moved_also_where_sqlite_takes_no_more_variables_than_by_default(tmp_path: Path) -> None:
    def limit(connection: sqlite3.Connection, _record: Any) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)

    keys = [f"k{n}" for n in range(33_000)]
    storage = {"custom": {**OURS, "config": {"base_dir": str(tmp_path)}}}
    with (
        listening("connect", limit),
        dg.instance_for_test(temp_dir=str(tmp_path), overrides={"storage": storage}) as instance,
    ):
        add_keys(instance, "default", keys)
        delete_keys(instance, "default", keys[1:])
        add_keys(instance, "default", keys[1:])
        assert key_order(instance, "default") == keys


@contextmanager
def listening(to: str, listener: Callable[..., None]) -> Iterator[None]:
    """``listener`` hears this event of every engine meanwhile."""
    sa.event.listen(sa.Engine, to, listener)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, to, listener)


@pytest.mark.parametrize("storage", [STOCK, OURS], ids=["stock", "ours"])
def test_keys_that_another_process_adds_at_the_same_moment_are_no_error(tmp_path: Path, storage: dict[str, str]) -> None:
    rows = [{"partitions_def_name": "default_files", "partition": key} for key in ("b", "c")]
    settings = {"storage": {"custom": {**storage, "config": {"base_dir": str(tmp_path)}}}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=settings) as instance:
        with inserts_first(tmp_path / "history" / "runs" / "index.db", "dynamic_partitions", rows):
            add_keys(instance, "default", ["a", "b", "c", "d"])
        assert key_order(instance, "default") == ["b", "c", "a", "d"]


def test_a_moment_is_quiet_unless_an_unfinished_run_carries_a_partition() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        add_keys(instance, "default", ["a"])
        assert is_quiet(instance, "default")
        create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
        create_run_for_test(instance, status=dg.DagsterRunStatus.SUCCESS, tags={PARTITION: "a"})
        assert is_quiet(instance, "default")
        started = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={RANGE_START: "a"})
        assert not is_quiet(instance, "default")
        assert run_is_live(instance, started.run_id)
        instance.delete_run(started.run_id)
        assert is_quiet(instance, "default")
        assert not run_is_live(instance, started.run_id)


@pytest.mark.parametrize("owner", [{"tags": {EXPORT_TAG: "busy"}}, {"asset_selection": {dg.AssetKey(["busy", "chunks"])}}])
def test_a_run_of_another_export_disturbs_nobody_else(owner: dict[str, Any]) -> None:
    run = {**owner, "tags": {RANGE_START: "a", **owner.get("tags", {})}}
    with dg.DagsterInstance.ephemeral() as instance:
        create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, **run)
        assert is_quiet(instance, "default")
        assert not is_quiet(instance, "busy")


@pytest.mark.parametrize("tag", [PARTITION, RANGE_START])
@pytest.mark.parametrize(
    ("job", "key", "quiet"), [("nightly", "2026-01-02", True), ("of_all", "a", False), ("x_ingest", "b", False)]
)
def test_a_run_of_a_job_of_others_disturbs_where_it_carries_our_files_alone(tag: str, job: str, key: str, quiet: bool) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        add_keys(instance, "x", ["a"])
        create_run_for_test(instance, job_name=job, status=dg.DagsterRunStatus.STARTED, tags={tag: key})
        assert is_quiet(instance, "x") is quiet


def backfill(assets: list[dg.AssetKey] | None, keys: list[str] | None) -> PartitionBackfill:
    return PartitionBackfill(
        backfill_id="abcdefgh",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=0.0,
        asset_selection=assets,
        partition_names=keys,
    )


def test_a_backfill_disturbs_the_exports_whose_assets_it_names() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_backfill(backfill([dg.AssetKey(["busy", "chunks"])], ["a"]))
        assert is_quiet(instance, "default")
        assert not is_quiet(instance, "busy")


@pytest.mark.parametrize(("keys", "quiet"), [(["2026-01-02"], True), (["2026-01-02", "a"], False), (None, False)])
def test_a_backfill_of_a_job_disturbs_where_it_carries_our_files(keys: list[str] | None, quiet: bool) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        add_keys(instance, "default", ["a"])
        instance.add_backfill(backfill(None, keys))
        assert is_quiet(instance, "default") is quiet
