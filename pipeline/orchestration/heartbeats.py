"""Runs that are not heard of any more.

A mark (``liveness``) tells of the processes of one machine. So who carries out a run also says in a tag of it, every few minutes,
that it still does. A run that was heard of once and is not, for as long as a lease lasts, is over: its machine has stopped, or is
there no more. Clocks of machines that share an instance must agree within minutes, as they must for leases.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import dagster as dg

from pipeline.orchestration.instance import errors_of_storages
from pipeline.orchestration.partitions import HEARD_TAG, told_by
from pipeline.stages.export import LEASE_SECONDS

_EVERY_SECONDS = LEASE_SECONDS / 3
_CARRIED_OUT = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@contextmanager
def kept_heard_of(instance: dg.DagsterInstance, run_id: str) -> Iterator[Mapping[str, str]]:
    """Say of a run, as long as the block takes, that it is carried out; gives the tag it is to begin with."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_EVERY_SECONDS):
            with suppress(dg.DagsterRunNotFoundError, *errors_of_storages()):  # the next may be heard again
                instance.add_run_tags(run_id, _now())

    telling = threading.Thread(target=tell, name=f"heartbeat of {run_id}", daemon=True)
    telling.start()
    try:
        yield _now()
    finally:
        ended.set()
        telling.join()


def silent_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Unfinished runs that were heard of, and not lately. A run that is executed again inherits when the first was heard of,
    and its start counts too."""
    now = time.time()
    silent = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_CARRIED_OUT)):
        heard = told_by(record.dagster_run, HEARD_TAG) or ""
        silent_for = now - max(int(heard), record.start_time or 0.0) if heard.isdecimal() else 0.0
        if silent_for >= LEASE_SECONDS and not inherits(instance, record.dagster_run, HEARD_TAG):
            silent.append(record.dagster_run)
    return silent


def inherits(instance: dg.DagsterInstance, run: dg.DagsterRun, tag: str) -> bool:
    """Whether what this tag tells is of the run that was executed before, because nobody has told it of this one."""
    first = run.parent_run_id and instance.get_run_by_id(run.parent_run_id)
    return bool(first and told_by(first, tag) == told_by(run, tag))


def _now() -> dict[str, str]:
    return {HEARD_TAG: f"{time.time():.0f}"}
