"""The fuse: how many files go without a person's word, and how long that word counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest

from pipeline.components.index_export import export_definitions
from pipeline.orchestration.assets import DIRECTORY_FILES, asset_key
from pipeline.orchestration.launcher import failures
from pipeline.stages.detect import detect
from pipeline.stages.erase import erase
from pipeline.stages.needs import Needs, needs_of
from pipeline.stages.remove import pending_removals
from pipeline_tests.trust.test_verify import check
from pipeline_tests.world import World, open_world

Open = Callable[..., World]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """A synced world of ten files whose fuse lets a part of them through, after a grace period in seconds."""
    with ExitStack() as stack:

        def open_with(fraction: float, grace: float = 0) -> World:
            removal = {"grace_period_seconds": grace, "max_delete_fraction": fraction}
            world = stack.enter_context(open_world(tmp_path, removal=removal))
            for n in range(10):
                world.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
            assert world.sync().ok
            return world

        yield open_with


def remove(world: World, *numbers: int) -> None:
    for n in numbers:
        world.remove(f"doc-{n}.md")


def waiting(world: World) -> int:
    return sum(removal.waits_for == "approval" for removal in pending_removals(world.export))


def test_a_fraction_of_nothing_lets_nothing_through(opened: Open) -> None:
    world = opened(0.0)
    remove(world, 0)
    assert world.sync().removed == []
    assert waiting(world) == 1


def test_the_smallest_fraction_lets_one_file_through(opened: Open) -> None:
    world = opened(0.01)
    remove(world, 0)
    assert len(world.sync().removed) == 1


def test_the_checks_of_the_sinks_warn_while_files_wait_for_approval(opened: Open) -> None:
    world = opened(0.2)
    assert check(world).passed
    remove(world, 0, 1, 2)
    world.sync()
    evaluation = check(world)
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert evaluation.metadata["awaiting_approval"].value == 3
    world.export.ledger.update_state(allowed_deletes=3)
    world.sync()
    evaluation = check(world)
    assert evaluation.passed
    assert "awaiting_approval" not in evaluation.metadata


def test_approving_what_is_shown_is_enough_whatever_went_shortly_before(opened: Open) -> None:
    world = opened(0.3)
    remove(world, 0, 1, 2)
    assert len(world.sync().removed) == 3
    remove(world, 3, 4)
    assert world.sync().removed == []
    assert waiting(world) == 2
    world.export.ledger.update_state(allowed_deletes=2)
    assert len(world.sync().removed) == 2


def test_erasures_leave_the_fuse_as_it_is(opened: Open) -> None:
    world = opened(0.2)
    erased = [world.file_id(f"doc-{n}.md") for n in range(2)]
    assert asyncio.run(erase(world.export, erased, run_id="erase")).proved
    remove(world, 0, 1, 2)
    report = world.sync()
    assert (report.ok, len(report.removed)) == (True, 1)


def test_an_approval_counts_for_what_is_missing_and_not_for_what_goes_later(opened: Open) -> None:
    world = opened(0.2)
    world.export.ledger.update_state(allowed_deletes=100)
    assert world.sync().ok
    assert world.export.ledger.state().allowed_deletes == 0
    remove(world, *range(8))
    assert world.sync().removed == []
    assert waiting(world) == 8


def test_an_approval_waits_for_the_grace_period_of_what_it_is_for(opened: Open) -> None:
    world = opened(0.2, grace=600)
    ledger, gone = world.export.ledger, [world.file_id(f"doc-{n}.md") for n in range(3)]
    remove(world, 0, 1, 2)
    ledger.update_state(allowed_deletes=3)
    assert world.sync().removed == []
    assert ledger.state().allowed_deletes == 3
    since = [row.missing_since or 0.0 for row in ledger.files(gone).values()]
    ledger.update_files([{"file_id": file_id, "missing_since": min(since) - 600} for file_id in gone])
    assert sorted(world.sync().removed) == sorted(gone)
    assert ledger.state().allowed_deletes == 0


def found_needs(world: World) -> Needs:
    world.refresh()
    return needs_of(world.export, asyncio.run(detect(world.export, complete=True)).index.scope)


def test_what_is_being_removed_makes_the_directory_no_larger(opened: Open) -> None:
    world = opened(0.5)
    remove(world, *range(7))
    assert len(found_needs(world).awaiting_approval) == 7
    world.export.ledger.mark_removing([world.file_id(f"doc-{n}.md") for n in range(5)])
    needs = found_needs(world)
    assert (len(needs.removing), len(needs.removable), len(needs.awaiting_approval)) == (5, 0, 2)


def test_the_fuse_counts_what_went_within_a_grace_period_longer_than_an_hour(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = opened(0.2, grace=86_400)
    ledger, gone = world.export.ledger, world.file_id("doc-0.md")
    remove(world, 0)
    world.refresh()
    asyncio.run(detect(world.export, complete=True))
    ledger.update_files([{"file_id": gone, "missing_since": time.time() - 90_000}])
    assert found_needs(world).removable == [gone]
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_clock", lambda: time.time() - 7_200)
        ledger.log([("dfl-gone", "removed", {}), ("dfl-gone-too", "removed", {})], run_id=None)
    assert found_needs(world).awaiting_approval == [gone]


def listed_in(record: dg.EventLogRecord) -> Sequence[dg.TableRecord]:
    files = record.asset_observation and record.asset_observation.metadata["files"]
    assert isinstance(files, dg.TableMetadataValue)
    return files.records


def approve(world: World, count: int) -> dg.ExecuteInProcessResult:
    job = export_definitions(world.settings).resolve_job_def("default_approve_removals")
    config = {"ops": {"default_approve": {"config": {"count": count}}}}
    return job.execute_in_process(instance=world.instance, run_config=config, raise_on_error=False)


def test_an_approval_in_the_ui_that_lets_none_through_fails_and_says_how_many_wait(opened: Open) -> None:
    world = opened(0.2)
    remove(world, 0, 1, 2, 3)
    assert world.sync().removed == []
    for given in (0, 4):  # also over an approval that would have been enough
        world.export.ledger.update_state(allowed_deletes=given)
        result = approve(world, 3)
        assert failures(result) == ["4 files wait for approval: approve 4; 3 lets none of them go"]
        [told] = world.instance.fetch_observations(asset_key(world.settings, DIRECTORY_FILES), limit=1).records
        assert (told.run_id, len(listed_in(told))) == (result.run_id, 4)
        assert world.export.ledger.state().allowed_deletes == 0
    assert approve(world, 0).success, "none is approved: it lists what waits"
    assert world.sync().removed == []
    assert approve(world, 4).success
    assert len(world.sync().removed) == 4
