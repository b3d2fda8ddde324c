"""``python -m benchmarks.runs_worker JSON``: the runs of one look at the directory, each in a warm process of its own, all at
once, as the queue of a deployment starts them; timed from the look to the end of the last run, told as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import dagster as dg
import lancedb  # noqa: F401 - warm: the sink imports it on first use
import llama_cloud.resources  # noqa: F401 - warm: the SDK imports it with its first request

from benchmarks.sync_worker import settings_of, timed
from pipeline.home import Home
from pipeline.interpreter import look_for_garbage_less
from pipeline.orchestration.assets import asset_key
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.launcher import execute, failures, jobs_of_a_sync
from pipeline.orchestration.liveness import process_mark
from pipeline.orchestration.resources import EXPORTS
from pipeline.orchestration.waves import dispatch
from pipeline.stages.detect import detect, refresh
from pipeline.stages.export import Export
from pipeline.stages.settings import ExportSettings


def carry_out(settings: ExportSettings, orders: Connection) -> None:
    """A run process: says that it is warm, executes the one run it is told of, says what that took and what failed."""
    look_for_garbage_less()  # as the code location that a run's process loads
    with open_instance(Home.from_environment()) as instance, process_mark() as mark:
        _ = EXPORTS.open(settings, instance).embedder.tokens
        ingest, _ = jobs_of_a_sync(settings)
        orders.send("warm")
        _, cpu_seconds, result = timed(partial(execute, ingest, orders.recv(), settings, instance, mark))
        orders.send((cpu_seconds, failures(result)))


def main() -> None:
    arguments = json.loads(sys.argv[1])
    settings = settings_of(**arguments["settings"])
    with open_instance(Home.from_environment()) as instance:
        export = EXPORTS.open(settings, instance)
        asyncio.run(refresh(export))
        started = [_start(settings) for _ in range(arguments["runs"])]
        seconds, cpu_seconds, told = timed(partial(_look_and_run, instance, export, [orders for _, orders in started]))
        for process, _ in started:
            process.join()
        rows = export.ledger.files().values()
        observed = instance.fetch_observations(asset_key(settings, "embeddings"), limit=len(told)).records
    if {row.status for row in rows} != {"done"}:
        raise SystemExit(f"the runs left work behind: {[line for _, failed in told for line in failed]}")
    figures = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds + sum(of_run for of_run, _ in told),
        "files": len(rows),
        "chunks": sum(row.chunk_count or 0 for row in rows),
        "embedded": sum(_computed(record) for record in observed),
        "runs": len(told),
    }
    print(json.dumps(figures))


def _look_and_run(instance: dg.DagsterInstance, export: Export, processes: Sequence[Connection]) -> list[tuple[float, list[str]]]:
    """One look, and a run of it in each process; answers what they say of it."""
    index = asyncio.run(detect(export, complete=True)).index
    specs = dispatch(instance, export, (index.project_id, index.export_config_id)).runs
    for orders, spec in zip(processes, specs, strict=True):
        orders.send(spec)
    return [orders.recv() for orders in processes]


def _computed(record: dg.EventLogRecord) -> int:
    """How many texts the model was run on, as a run's observation says."""
    assert record.asset_observation
    found = record.asset_observation.metadata["computed"].value
    assert isinstance(found, int)
    return found


def _start(settings: ExportSettings) -> tuple[Any, Connection]:
    """A run process that has said it is warm, and the line to it."""
    spawning = multiprocessing.get_context("spawn")
    ours, its = spawning.Pipe()
    process = spawning.Process(target=carry_out, args=(settings, its))
    process.start()
    its.close()
    ours.recv()
    return process, ours


if __name__ == "__main__":
    main()
