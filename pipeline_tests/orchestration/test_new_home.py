"""Several processes that open a home nobody has opened before: commands side by side, a webserver and its daemon."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.home import Home
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.sqlite_storage import BatchingSqliteStorage

AT_ONCE = 4
ROUNDS = 6

_together: Any = None


def _meet(together: Any) -> None:
    global _together
    _together = together


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Forked off one that has imported everything, so that they come to the files at the same moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    meeting = (context.Barrier(AT_ONCE, timeout=20),)
    with ProcessPoolExecutor(AT_ONCE, context, initializer=_meet, initargs=meeting) as pool:
        yield pool


def _open(home: Path) -> tuple[str, int]:
    os.environ["DAGSTER_HOME"] = str(home)
    _together.wait()
    with open_instance(Home.from_environment()) as instance:
        return type(instance.event_log_storage).__name__, instance.get_runs_count()


def _read_new_runs(base_dir: Path) -> list[int]:
    events = BatchingSqliteStorage(str(base_dir)).event_log_storage
    counts = []
    for run in range(ROUNDS):
        _together.wait()
        counts.append(len(events.get_logs_for_run(f"run-{run}")))
    return counts


def test_all_of_them_open_it_with_its_own_settings(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    for round_ in range(ROUNDS):
        opened = processes.map(_open, [tmp_path / str(round_)] * AT_ONCE)
        assert list(opened) == [("BatchingSqliteEventLogStorage", 0)] * AT_ONCE


def test_all_of_them_may_be_the_first_to_ask_for_the_events_of_a_run(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    read = processes.map(_read_new_runs, [tmp_path] * AT_ONCE)
    assert list(read) == [[0] * ROUNDS] * AT_ONCE


@pytest.mark.parametrize("lost", ["history", "schedules"])
def test_a_home_that_goes_while_a_process_lives_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    for _ in range(2):
        with open_instance(Home(tmp_path)) as instance:
            assert instance.get_runs_count() == 0
            assert instance.all_instigator_state() == []
        shutil.rmtree(tmp_path / "dagster" / lost)


@pytest.mark.parametrize(("ledger", "warnings"), [("postgresql+psycopg2://host/db", 1), ("sqlite:///ledger.sqlite", 0)])
def test_a_ledger_that_is_shared_beside_a_dagster_that_is_not_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ledger: str, warnings: int
) -> None:
    monkeypatch.setenv("INDEXPORT_LEDGER_URL", ledger)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    with open_instance(Home(tmp_path)):
        pass
    told = [record.getMessage() for record in caplog.records if "share that storage too" in record.getMessage()]
    assert len(told) == warnings
    assert all(str(tmp_path / "dagster" / "dagster.yaml") in line for line in told)
