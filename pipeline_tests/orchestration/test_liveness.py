"""Runs whose process is gone are over; those of a living process are not."""

import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.utils import make_new_run_id

from pipeline.cli_common import opened_with_instance
from pipeline.components.index_export import export_definitions
from pipeline.errors import LedgerUnavailable
from pipeline.home import Home
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.launcher import sync
from pipeline.orchestration.liveness import (
    _is_alive,
    _mark_for_life,
    command_run,
    end_dead_runs,
    marking_executor,
    process_mark,
    run_is_live,
)
from pipeline.orchestration.partitions import EXPORT_TAG, HEARD_TAG, LAUNCHER_TAG, PROCESS_TAG, is_quiet
from pipeline_tests.soak.crash import Killed, dies_at_write
from pipeline_tests.world import open_world

HOLDER = """
import os, signal
from pipeline.orchestration.liveness import command_run, process_mark
with {} as mark:
    print(mark, flush=True)
    signal.pause()
"""


@contextmanager
def holder(block: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that stays in the block until it is killed, and its mark."""
    with subprocess.Popen([sys.executable, "-c", HOLDER.format(block)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    _mark_for_life.cache_clear()


def started(
    instance: dg.DagsterInstance, mark: str, state: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED, **tags: str
) -> str:
    run = dg.DagsterRun(job_name="any", status=state, tags={PROCESS_TAG: mark, EXPORT_TAG: "default", **tags})
    instance.add_run(run)
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_the_run_of_a_killed_process_is_failed_and_that_of_a_living_one_is_left() -> None:
    with dg.DagsterInstance.ephemeral() as instance, process_mark() as own:
        with holder("process_mark()") as (process, mark):
            theirs, ours = started(instance, mark), started(instance, own)
            created = started(instance, mark, dg.DagsterRunStatus.NOT_STARTED)
            end_dead_runs(instance, "default")
            assert status(instance, theirs) is dg.DagsterRunStatus.STARTED
            process.kill()
        end_dead_runs(instance, "default")
        assert status(instance, theirs) is status(instance, created) is dg.DagsterRunStatus.FAILURE
        assert status(instance, ours) is dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize("tag", [PROCESS_TAG, ".dagster/indexport/process", "indexport/process"])
def test_the_run_of_a_killed_process_is_failed_also_where_an_earlier_version_has_marked_it(tag: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance, process_mark() as own:
        run = dg.DagsterRun(job_name="any", status=dg.DagsterRunStatus.STARTED, tags={tag: dead_mark(), EXPORT_TAG: "default"})
        again = run.with_tags({**run.tags, PROCESS_TAG: own})._replace(
            run_id=make_new_run_id(), parent_run_id=run.run_id, root_run_id=run.run_id
        )
        instance.add_run(run)
        instance.add_run(again)
        end_dead_runs(instance, "default")
        assert status(instance, run.run_id) is dg.DagsterRunStatus.FAILURE
        assert status(instance, again.run_id) is dg.DagsterRunStatus.STARTED, "it was executed again and says so itself"


def test_a_run_launched_by_a_killed_process_is_over_unless_its_own_process_may_be_about_to_speak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        mark = dead_mark()
        launched = started(instance, mark, dg.DagsterRunStatus.STARTING, **{LAUNCHER_TAG: mark})
        begun = started(instance, mark, dg.DagsterRunStatus.STARTED, **{LAUNCHER_TAG: mark})
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.orchestration.liveness._SPEECHLESS_SECONDS", float("inf"))
            end_dead_runs(instance, "default")
        assert status(instance, launched) is dg.DagsterRunStatus.FAILURE
        assert status(instance, begun) is dg.DagsterRunStatus.STARTED
        end_dead_runs(instance, "default")
        assert status(instance, begun) is dg.DagsterRunStatus.FAILURE


def test_a_run_whose_launcher_died_before_it_marked_it_is_over_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_instance(Home(tmp_path / "home")) as instance:
        unmarked = dg.DagsterRun(job_name="default_ingest", status=dg.DagsterRunStatus.STARTING)
        instance.add_run(unmarked)
        end_dead_runs(instance, "default")
        assert status(instance, unmarked.run_id) is dg.DagsterRunStatus.STARTING, "its launcher may be about to mark it"
        monkeypatch.setattr("pipeline.orchestration.liveness._SPEECHLESS_SECONDS", -1.0)
        end_dead_runs(instance, "default")
        assert status(instance, unmarked.run_id) is dg.DagsterRunStatus.FAILURE


def test_a_run_that_was_created_and_never_started_is_over_after_a_while_unless_a_live_process_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created, first = dg.DagsterRunStatus.NOT_STARTED, make_new_run_id()
    with dg.DagsterInstance.ephemeral() as instance, process_mark() as own:
        runs = {
            "unmarked": dg.DagsterRun(job_name="default_ingest", status=created),
            "ours": dg.DagsterRun(job_name="default_ingest", status=created, tags={PROCESS_TAG: own}),
            "again": dg.DagsterRun(
                "default_ingest", status=created, tags={PROCESS_TAG: own}, parent_run_id=first, root_run_id=first
            ),
        }
        before = {name: instance.add_run(run).status for name, run in runs.items()}
        end_dead_runs(instance, "default")
        assert {name: status(instance, run.run_id) for name, run in runs.items()} == before
        monkeypatch.setattr("pipeline.orchestration.liveness._UNBEGUN_SECONDS", -1.0)
        end_dead_runs(instance, "default")
        failed = dict.fromkeys(("unmarked", "again"), dg.DagsterRunStatus.FAILURE)
        assert {name: status(instance, run.run_id) for name, run in runs.items()} == {**before, **failed}


def test_executing_a_range_again_whose_last_file_has_gone_holds_up_no_quiet_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path) as world:
        for name in ("a.md", "b.md"):
            world.write(name, f"# {name}\n\nText.\n")
        world.sync()
        parent = world.runs()[0]
        world.remove("b.md")
        world.sync()
        job = export_definitions(world.settings).resolve_job_def("default_ingest")
        with pytest.raises(dg.DagsterInvalidInvocationError):  # what Dagster does when someone asks for it
            world.instance.create_run_for_job(
                job,
                tags=parent.tags,
                parent_run_id=parent.run_id,
                root_run_id=parent.run_id,
                status=dg.DagsterRunStatus.NOT_STARTED,
            )
        assert not is_quiet(world.instance, "default")
        monkeypatch.setattr("pipeline.orchestration.liveness._UNBEGUN_SECONDS", -1.0)
        assert world.sync().ok
        assert is_quiet(world.instance, "default")


def test_runs_of_others_on_the_instance_are_left_whatever_becomes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("_UNBEGUN_SECONDS", "_SPEECHLESS_SECONDS"):
        monkeypatch.setattr(f"pipeline.orchestration.liveness.{patience}", -1.0)
    launched = dict.fromkeys((LAUNCHER_TAG, PROCESS_TAG), dead_mark())
    created, starting, running = dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED
    stages: list[tuple[dg.DagsterRunStatus, dict[str, str]]] = [(starting, launched), (running, launched)]
    stages += [(each, {}) for each in (created, starting, running)]
    with open_instance(Home(tmp_path / "home")) as instance:
        theirs, ours = (
            [instance.add_run(dg.DagsterRun(job_name=job, status=stage, tags=tags)) for stage, tags in stages]
            for job in ("nightly", "default_ingest")
        )
        end_dead_runs(instance, "default")
        assert [status(instance, run.run_id) for run in theirs] == [run.status for run in theirs]
        left = [run.status for run in ours if status(instance, run.run_id) is run.status]
        assert left == [running] * 2, "an executor that makes no marks may be carrying them out"


def test_a_run_whose_plan_is_still_being_written_down_is_not_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.add_run(dg.DagsterRun(job_name="default_ingest", status=dg.DagsterRunStatus.NOT_STARTED))
        [record] = instance.get_run_records()
        long_ago = record._replace(create_timestamp=record.create_timestamp - timedelta(hours=1))
        monkeypatch.setattr(instance, "get_run_records", lambda given: [long_ago] if run.status in given.statuses else [])
        instance.report_engine_event("planned for one more file", run)
        end_dead_runs(instance, "default")
        assert status(instance, run.run_id) is dg.DagsterRunStatus.NOT_STARTED
        monkeypatch.setattr("pipeline.orchestration.liveness._UNBEGUN_SECONDS", -1.0)
        end_dead_runs(instance, "default")
        assert status(instance, run.run_id) is dg.DagsterRunStatus.FAILURE


def test_what_a_run_that_is_executed_again_inherits_says_nothing_of_it() -> None:
    """Neither the mark nor when the first was heard of: its own executor may make none."""
    with dg.DagsterInstance.ephemeral() as instance:
        tags = {PROCESS_TAG: dead_mark(), HEARD_TAG: "1", EXPORT_TAG: "default"}
        first = instance.add_run(dg.DagsterRun(job_name="any", status=dg.DagsterRunStatus.FAILURE, tags=tags))
        second = dg.DagsterRun(
            job_name="any", status=dg.DagsterRunStatus.STARTED, tags=tags, parent_run_id=first.run_id, root_run_id=first.run_id
        )
        again = instance.add_run(second)
        for _ in range(2):
            end_dead_runs(instance, "default")
            assert status(instance, again.run_id) is dg.DagsterRunStatus.STARTED
        instance.add_run_tags(again.run_id, {PROCESS_TAG: "0" * 32, HEARD_TAG: "2"})
        end_dead_runs(instance, "default")
        assert status(instance, again.run_id) is dg.DagsterRunStatus.FAILURE


def test_a_run_without_a_mark_is_left_to_a_launcher_that_makes_none() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.DagsterRun(job_name="default_ingest", status=dg.DagsterRunStatus.STARTING)
        instance.add_run(run)
        end_dead_runs(instance, "default")
        assert status(instance, run.run_id) is dg.DagsterRunStatus.STARTING


@dg.op
def find_own_tag(context: dg.OpExecutionContext) -> None:
    run = context.instance.get_run_by_id(context.run_id)
    assert run is not None
    assert run.tags[PROCESS_TAG] != "its launcher"


@dg.job(executor_def=marking_executor)
def one_step() -> None:
    find_own_tag()


def test_a_run_bears_the_mark_of_its_own_process_before_its_first_step(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.reconstructable(one_step)
        with dg.execute_job(job, instance=instance, tags={PROCESS_TAG: "its launcher"}) as result:
            assert result.success
            mark = status_tag(instance, result.run_id)
    assert (tmp_path / f"home/dagster/processes/{mark}.lock").exists()


def status_tag(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.tags[PROCESS_TAG]


def test_a_dead_run_gives_its_places_in_the_pools_back(tmp_path: Path) -> None:
    with open_instance(Home(tmp_path / "home")) as instance:
        dead, pools = started(instance, dead_mark()), instance.event_log_storage
        for step in ("one", "two"):
            assert pools.initialize_concurrency_limit_to_default("embedding")
            assert pools.claim_concurrency_slot("embedding", dead, step).is_claimed
        assert not pools.claim_concurrency_slot("embedding", "another run", "step").is_claimed
        end_dead_runs(instance, "default")
        assert pools.get_concurrency_info("embedding").active_slot_count == 0
        assert pools.claim_concurrency_slot("embedding", "another run", "step").is_claimed


def dead_mark() -> str:
    """Of a process that was killed."""
    with holder("process_mark()") as (process, mark):
        process.kill()
    return mark


def test_a_mark_of_another_machine_says_nothing() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_id = started(instance, "0" * 32)
        end_dead_runs(instance, "default")
        assert status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_nothing_is_left_of_a_process_that_ends_in_order(tmp_path: Path) -> None:
    with process_mark():
        assert len(list((tmp_path / "home/dagster/processes").iterdir())) == 1
    assert list((tmp_path / "home/dagster/processes").iterdir()) == []


def test_a_command_does_not_wait_for_a_run_whose_process_was_killed() -> None:
    with holder("process_mark()") as (process, mark):
        with open_instance(Home.from_environment()) as instance:
            run_id = started(instance, mark)
        process.kill()
        process.wait()
        with opened_with_instance("default") as (opened, _):
            assert not opened.run_is_live(run_id)


@pytest.mark.parametrize("after", [20, 34])
def test_a_killed_sync_holds_up_neither_its_files_nor_its_partitions_nor_the_quiet_moment(tmp_path: Path, after: int) -> None:
    with open_world(tmp_path) as world:
        world.write("a.md", "# A\n\nText.\n")
        world.refresh()
        with dies_at_write(after), pytest.raises(Killed):
            sync(world.settings, world.instance)
        assert [run.status for run in world.runs()] == [dg.DagsterRunStatus.STARTED]
        assert world.sync().ok
        assert {row.status for row in world.export.ledger.files().values()} == {"done"}
        for asset in ("parsed_payloads", "chunks", "embeddings", "lancedb"):
            assert world.instance.get_materialized_partitions(dg.AssetKey(["default", asset])) == {world.file_id("a.md")}
        assert is_quiet(world.instance, "default")
        world.assert_settled()


def test_a_command_that_holds_files_is_live_until_its_process_ends_and_dead_for_ever_when_it_was_killed() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        with command_run("repair") as own:
            assert run_is_live(instance, own)
        with holder("command_run('erase')") as (process, theirs):
            assert run_is_live(instance, theirs)
            process.kill()
        for _ in range(2):
            assert not run_is_live(instance, theirs)
            end_dead_runs(instance, "default")


def test_a_command_that_ends_by_an_error_is_dead_for_it_may_not_have_given_back_what_it_holds() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises(LedgerUnavailable), command_run("repair") as own:
            raise LedgerUnavailable("the ledger cannot be reached")
        assert not run_is_live(instance, own)
        with command_run("repair") as own:
            pass
        assert run_is_live(instance, own)


def test_a_run_is_failed_whose_process_ended_in_order_without_a_way_to_say_so_and_its_mark_goes() -> None:
    script = "from pipeline.orchestration.liveness import _mark_of_this_process; print(_mark_of_this_process())"
    mark = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    with dg.DagsterInstance.ephemeral() as instance:
        run_id = started(instance, mark)
        end_dead_runs(instance, "default")
        assert status(instance, run_id) is dg.DagsterRunStatus.FAILURE
    assert not list((Home.from_environment().dagster_home / "processes").glob(f"{mark}*"))


def test_a_command_of_another_machine_is_left_to_its_leases() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_is_live(instance, "erase-" + "0" * 32)
        assert not run_is_live(instance, "11111111-2222-3333-4444-555555555555")


def test_where_a_disk_has_no_locks_a_mark_names_its_file_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    folder = Home.from_environment().dagster_home / "processes"
    with process_mark() as mark:
        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(OSError, match=f"No locks available: '{folder}/{mark}.lock'"):
            _is_alive(folder / f"{mark}.lock")
    with pytest.raises(OSError, match=f"No locks available: '{folder}/"), process_mark():
        pass
    with command_run("repair") as command:
        assert command.startswith("repair-")
    assert [path for path in folder.rglob("*") if path.is_file()] == []
