"""Runs of other machines are over when they are not heard of any more, and not before."""

import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pipeline.orchestration import heartbeats
from pipeline.orchestration.heartbeats import kept_heard_of
from pipeline.orchestration.liveness import end_dead_runs, marking_executor, process_mark
from pipeline.orchestration.partitions import HEARD_TAG, is_quiet
from pipeline.stages.export import LEASE_SECONDS
from pipeline_tests.orchestration.test_liveness import started
from pipeline_tests.world import open_world

ELSEWHERE = "0" * 32
"""The mark of a process that is not of this machine."""


@dg.op
def nothing() -> None:
    pass


@dg.job(executor_def=marking_executor)
def launched() -> None:
    nothing()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def heard_of(instance: dg.DagsterInstance, ago: float | None, mark: str = ELSEWHERE) -> str:
    """A run that is carried out, so many seconds after it was heard of."""
    tags = {} if ago is None else {HEARD_TAG: f"{time.time() - ago:.0f}"}
    return started(instance, mark, dg.DagsterRunStatus.STARTED, **tags)


def unfinished(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs() if not run.is_finished}


@pytest.mark.parametrize("tag", [".dagster/indexport/heard_of", "indexport/heard_of"])
def test_one_that_an_earlier_version_carries_out_is_heard_of_too(instance: dg.DagsterInstance, tag: str) -> None:
    for ago in (LEASE_SECONDS + 5, LEASE_SECONDS - 60):
        kept = started(instance, ELSEWHERE, dg.DagsterRunStatus.STARTED, **{tag: f"{time.time() - ago:.0f}"})
    end_dead_runs(instance, "default")
    assert unfinished(instance) == {kept}


def test_a_run_of_another_machine_is_failed_when_it_was_not_heard_of_for_as_long_as_a_lease(
    instance: dg.DagsterInstance,
) -> None:
    silent = heard_of(instance, LEASE_SECONDS + 5)
    kept = {
        heard_of(instance, LEASE_SECONDS - 60),
        heard_of(instance, -600.0),  # its clock is ahead
        heard_of(instance, None),  # of a version that told nothing
        overwritten := heard_of(instance, LEASE_SECONDS + 5),
    }
    instance.add_run_tags(overwritten, {HEARD_TAG: "by hand"})
    end_dead_runs(instance, "default")
    assert unfinished(instance) == kept
    (told,) = [e for e in instance.all_logs(silent) if e.dagster_event and e.dagster_event.is_job_failure]
    assert "nothing was heard of this run for 15 minutes" in told.user_message + str(told.dagster_event)


def test_of_a_process_of_this_machine_its_mark_tells(instance: dg.DagsterInstance) -> None:
    """A laptop that was asleep."""
    with process_mark() as mark:
        asleep = heard_of(instance, 10 * LEASE_SECONDS, mark)
        end_dead_runs(instance, "default")
        assert unfinished(instance) == {asleep}


def test_a_run_executed_again_is_not_over_for_when_the_first_was_heard_of(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = heard_of(instance, 10 * LEASE_SECONDS)
    [record] = instance.get_run_records()
    monkeypatch.setattr(instance, "get_run_records", lambda *_args, **_given: [record._replace(start_time=time.time())])
    assert heartbeats.silent_runs(instance) == []
    monkeypatch.setattr(instance, "get_run_records", lambda *_args, **_given: [record._replace(start_time=1.0)])
    assert [run.run_id for run in heartbeats.silent_runs(instance)] == [again]


def test_it_is_told_again_and_again_as_long_as_the_run_takes(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "_EVERY_SECONDS", 0.01)
    run_id = heard_of(instance, 10 * LEASE_SECONDS)

    def heard() -> float:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        return time.time() - float(run.tags[HEARD_TAG])

    with kept_heard_of(instance, run_id):
        deadline = time.monotonic() + 30
        while heard() > 60 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert heard() < 60
    with kept_heard_of(instance, "no such run"):
        pass


def test_runs_of_a_sync_and_runs_that_are_launched_say_that_they_are_carried_out(tmp_path: Path) -> None:
    with open_world(tmp_path, removal={"grace_period_seconds": 0, "max_delete_fraction": 1.0}) as world:
        for name in ("a.md", "b.md"):
            world.write(name, f"# {name}\n\nText.\n")
        assert world.sync().ok
        world.remove("a.md")
        assert world.sync().ok
        with dg.instance_for_test() as instance:
            assert dg.execute_job(dg.reconstructable(launched), instance=instance).success
            runs = [*world.runs(), *instance.get_runs()]
        assert len(runs) == 3
        assert all(abs(time.time() - float(run.tags[HEARD_TAG])) < 120 for run in runs)


def test_a_wave_of_a_machine_that_is_gone_is_worked_on_by_another(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.write("a.md", "# A\n\nText.\n")
        world.refresh()
        assert world.sync().ok
        world.instance.add_run_tags(heard_of(world.instance, LEASE_SECONDS + 5), {"dagster/partition": world.file_id("a.md")})
        assert not is_quiet(world.instance, "default")
        world.write("a.md", "# A\n\nEdited.\n")
        assert world.sync().ok
        assert is_quiet(world.instance, "default")
