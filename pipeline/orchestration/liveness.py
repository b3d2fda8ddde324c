"""Which runs are over because their process is.

A process that is killed cannot say so, and Dagster would count its runs as started for ever: their files would wait with
them, and no moment would be quiet again. So every run is tagged with a mark that names a file which its process holds
locked; the kernel lets go of the lock however the process ends. Marks of other machines are unknown here and left to the
run launcher's own monitoring.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import dagster as dg

from pipeline.home import Home
from pipeline.orchestration.partitions import EXPORT_TAG, PROCESS_TAG, UNFINISHED, WAVE_TAG

_SUFFIX = ".lock"


@contextmanager
def process_mark() -> Iterator[str]:
    """A mark that is alive during the block. Of a block that ends by an exception, as of a killed process, the file stays:
    it is what the next look finds."""
    folder = _folder()
    mark, descriptor = _lock(folder)
    try:
        yield mark
        _path(folder, mark).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def mark_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Tag a run that a daemon or a webserver has launched with the mark of this process, which lives as long as it does."""
    if PROCESS_TAG in run.tags:
        return
    try:
        mark = _mark_for_life(_folder())
    except OSError:  # a read-only home, as in a container: its launcher watches it
        return
    instance.add_run_tags(run.run_id, {PROCESS_TAG: mark})


def end_dead_runs(instance: dg.DagsterInstance, export: str) -> set[str]:
    """Report as failed the unfinished runs of this export whose process was of this machine and has ended; answers their waves.

    A mark whose process worked for other exports too stays until theirs have been looked at.
    """
    waves: set[str] = set()
    for path in sorted(_folder().glob(f"*{_SUFFIX}")):
        if _is_alive(path):
            continue
        runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags={PROCESS_TAG: path.name.removesuffix(_SUFFIX)}))
        mine = [run for run in runs if run.tags.get(EXPORT_TAG) == export]
        for run in mine:
            instance.report_run_failed(run, "the process of this run ended without a word: it was killed, or its machine stopped")
        waves |= {run.tags[WAVE_TAG] for run in mine if WAVE_TAG in run.tags}
        if len(mine) == len(runs):
            path.unlink(missing_ok=True)
    return waves


def _folder() -> Path:
    return Home.from_environment().dagster_home / "processes"


def _path(folder: Path, mark: str) -> Path:
    return folder / f"{mark}{_SUFFIX}"


def _lock(folder: Path) -> tuple[str, int]:
    """A new mark and the descriptor that keeps it alive. The file gets its name when it is locked, so that nobody finds it
    unlocked before."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    unnamed = folder / f".{mark}"
    descriptor = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unnamed.rename(_path(folder, mark))
    return mark, descriptor


@lru_cache(maxsize=1)
def _mark_for_life(folder: Path) -> str:
    mark, _ = _lock(folder)
    atexit.register(_path(folder, mark).unlink, missing_ok=True)
    return mark


def _is_alive(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # it ended in order meanwhile
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
