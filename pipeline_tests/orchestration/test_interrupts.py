"""Ctrl-C and SIGTERM end a whole sync, not only the run it is in."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

import pipeline.orchestration.assets
from pipeline.embedding.base import Vectors, keeping
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.orchestration.interrupts import run_work
from pipeline.orchestration.jobs import repair_job
from pipeline.orchestration.launcher import sync
from pipeline.orchestration.partitions import UNFINISHED
from pipeline.orchestration.resources import EXPORTS
from pipeline.stages.export import Export
from pipeline.stages.report import StageReport
from pipeline_tests.world import World, open_world


async def interrupted_by(number: signal.Signals, cleaned_up: list[bool] | None = None) -> StageReport:
    """``cleaned_up`` gets an entry if the stage is cancelled, and not only left as it stands."""
    try:
        await asyncio.to_thread(os.kill, os.getpid(), number)
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        if cleaned_up is not None:
            cleaned_up.append(True)
        raise
    raise AssertionError("it was not interrupted")


def assert_ended_and_made_good(world: World, runs: int) -> None:
    """It ended with the run that was interrupted, which holds nothing any more."""
    with pytest.raises(KeyboardInterrupt):
        sync(world.settings, world.instance)
    assert len(world.runs()) == runs
    assert not world.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    ledger = world.export.ledger
    assert not [run_id for run_id in ledger.holders(list(ledger.files())) if world.export.run_is_live(run_id)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sync_of_several_runs_and_the_next_one_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    async def chunk(export: Export, keys: list[str], *, run_id: str) -> StageReport:
        return await interrupted_by(number)

    with open_world(tmp_path, detection={"files_per_run": 1}) as world:
        for n in range(3):
            world.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        world.refresh()
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.orchestration.assets, "chunk", chunk)
            assert_ended_and_made_good(world, runs=1)
        assert sync(world.settings, world.instance).ok
        world.assert_settled()


class Interrupted(ConstantEmbedder):
    """Is interrupted before the last of the texts."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        vectors = await super().embed(texts, token_counts)
        vectors[-1] = np.nan
        with keeping(vectors):
            await asyncio.to_thread(os.kill, os.getpid(), self.number)
            await asyncio.sleep(60)
        raise AssertionError("it was not interrupted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_embedded_before_a_signal_is_not_embedded_again(tmp_path: Path, number: signal.Signals) -> None:
    with open_world(tmp_path) as world:
        for n in range(3):
            world.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        world.refresh()
        usual, world.export.embedder = world.export.embedder, Interrupted(number)
        assert_ended_and_made_good(world, runs=1)
        world.export.embedder = usual
        assert sync(world.settings, world.instance).ok
        assert world.numbers("embeddings")["computed"] == 1
        world.assert_settled()


def test_a_signal_ends_a_sync_that_removes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned_up: list[bool] = []

    async def remove(export: Export, file_ids: list[str], *, run_id: str) -> StageReport:
        return await interrupted_by(signal.SIGINT, cleaned_up)

    with open_world(tmp_path) as world:
        for n in range(3):
            world.write(f"doc-{n}.md", f"# Document {n}\n\nText {n}.\n")
        assert world.sync().ok
        world.remove("doc-0.md")
        world.refresh()
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.orchestration.jobs.remove", remove)
            assert_ended_and_made_good(world, runs=2)
        assert cleaned_up
        assert sync(world.settings, world.instance).ok
        world.assert_settled()


def test_a_signal_that_ends_a_repair_lets_it_give_back_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned_up: list[bool] = []

    async def repair(export: Export, sink: str, **_asked: object) -> StageReport:
        return await interrupted_by(signal.SIGTERM, cleaned_up)

    with open_world(tmp_path) as world, monkeypatch.context() as patched:
        patched.setattr("pipeline.orchestration.jobs.repair", repair)
        repairing = repair_job(world.settings)
        result = repairing.execute_in_process(instance=world.instance, resources={"indexport": EXPORTS}, raise_on_error=False)
        assert not result.success
        assert cleaned_up


async def _interrupted_in_a_callback(cleaned_up: list[bool]) -> None:
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        cleaned_up.append(True)


async def _interrupted_in_code_that_does_not_wait(cleaned_up: list[bool]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    cleaned_up.append(True)


@pytest.mark.parametrize("work", [_interrupted_in_a_callback, _interrupted_in_code_that_does_not_wait])
def test_a_signal_is_heard_wherever_it_finds_the_work_which_cleans_up_first(
    work: Callable[[list[bool]], Coroutine[None, None, None]],
) -> None:
    cleaned_up: list[bool] = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(dg.DagsterExecutionInterruptedError):
        run_work(work(cleaned_up))
    assert cleaned_up
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_work_that_is_cancelled_by_nobody_s_signal_says_so() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_work(cancelled())
