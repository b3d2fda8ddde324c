"""Runs that failed, were killed or were canceled after they had done a part of their work.

Dagster counts all partitions of such a run's unfinished assets as failed, while the ledger knows which of its files stand.
No other run would bring those up again, because nothing is left to do for them: so it is noted that they are materialized.
"""

from __future__ import annotations

import dagster as dg

from pipeline.orchestration.partitions import NOTED_TAG, WAVE_TAG, is_of_export, told_by
from pipeline.orchestration.standing import report_standing
from pipeline.stages.export import Export

_BROKEN = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_MAX_RUNS = 200
"""The newest ones looked through; no more than a fraction of it can break between two looks."""


def note_what_stands(instance: dg.DagsterInstance, export: Export, scope: tuple[str, str]) -> None:
    """After runs of this export broke: files that stand all the same are done, and Dagster is told in which assets they stand."""
    runs = _broken_runs(instance, export.name)
    if not runs:
        return
    waves = {told_by(run, WAVE_TAG) for run in runs}
    rows = {file_id: row for file_id, row in export.ledger.files().items() if None in waves or row.wave in waves}
    export.settle([file_id for file_id, row in rows.items() if row.status == "requested"], scope)
    if report_standing(instance, export, rows, scope, made_by="a run that broke later"):
        for run in runs:
            instance.add_run_tags(run.run_id, {f"{NOTED_TAG}.{export.name}": run.run_id})


def _broken_runs(instance: dg.DagsterInstance, export: str) -> list[dg.DagsterRun]:
    """Those nothing has been noted of. A run that is executed again inherits the tags of the first, so they name the run."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_BROKEN), limit=_MAX_RUNS, order_by="update_timestamp")
    runs = [record.dagster_run for record in records]
    return [run for run in runs if told_by(run, f"{NOTED_TAG}.{export}") != run.run_id and is_of_export(run, export)]
