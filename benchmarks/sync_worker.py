"""``python -m benchmarks.sync_worker JSON``: syncs in a warm process, timed without imports, told as one line of JSON.

The constant embedder stands in for the model, so that what is left is the pipeline: listing, payloads, chunks, ledger,
lake, LanceDB and Dagster.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dagster as dg
import lancedb  # noqa: F401 - warm: the sink imports it on first use

from pipeline.components.index_export import export_definitions
from pipeline.embedding.settings import EmbeddingSettings
from pipeline.home import Home
from pipeline.interpreter import look_for_garbage_less
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.launcher import SyncReport, sync
from pipeline.orchestration.resources import Exports
from pipeline.stages.detect import refresh
from pipeline.stages.settings import ExportSettings, RemovalSettings


def settings_of(**values: Any) -> ExportSettings:
    """The export that is measured: constant vectors into LanceDB, removals without a grace period."""
    return ExportSettings(
        name="bench",
        embedding=EmbeddingSettings(provider="constant"),
        sinks={"lancedb": {}},
        removal=RemovalSettings(grace_period_seconds=0),
        **values,
    )


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, processor seconds of this process, answer)."""
    started, used = time.perf_counter(), time.process_time()
    answer = work()
    return time.perf_counter() - started, time.process_time() - used, answer


def tick(
    settings: ExportSettings, instance: dg.DagsterInstance, cursor: str | None
) -> tuple[dg.SensorResult | dg.SkipReason, str | None]:
    """Evaluate the export's own sensor once, as the daemon does: with the cursor of the tick before."""
    [sensor] = export_definitions(settings).sensors or []
    context = dg.build_sensor_context(instance=instance, resources={"indexport": Exports()}, cursor=cursor)
    result = sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result, context.cursor


def main() -> None:
    arguments = json.loads(sys.argv[1])
    look_for_garbage_less()  # as the command line does
    settings = settings_of(**arguments.get("settings", {}))
    with open_instance(Home.from_environment()) as instance:
        export = Exports().open(settings, instance)
        _ = export.embedder.tokens
        asyncio.run(refresh(export))
        seconds, cpu_seconds, report = timed(lambda: sync(settings, instance))
        told = {"seconds": seconds, "cpu_seconds": cpu_seconds, **_counted(export, report)}
        told["ticks"] = _unchanged_ticks(settings, instance, int(arguments.get("ticks", 0)))
    print(json.dumps(told))


def _counted(export: Any, report: SyncReport) -> dict[str, Any]:
    if not report.ok:
        raise SystemExit(f"the sync left work behind: {report.needs}")
    rows = export.ledger.files().values()
    return {"files": len(rows), "chunks": sum(row.chunk_count or 0 for row in rows), "runs": report.runs}


def _unchanged_ticks(settings: ExportSettings, instance: dg.DagsterInstance, count: int) -> list[float]:
    """Seconds of looks at a directory nothing has happened to. The first, not counted, asks for the proof of the sync; the
    daemon runs a run key once, so a look that repeats it launches nothing."""
    if not count:
        return []
    first, cursor = tick(settings, instance, None)
    known = _run_keys(first)
    seconds = []
    for _ in range(count):
        spent, _, (result, cursor) = timed(partial(tick, settings, instance, cursor))
        if new := _run_keys(result) - known:
            raise SystemExit(f"nothing has changed, and yet the sensor asks for {new}")
        seconds.append(spent)
    return seconds


def _run_keys(result: dg.SensorResult | dg.SkipReason) -> set[str | None]:
    requests = result.run_requests or [] if isinstance(result, dg.SensorResult) else []
    return {request.run_key for request in requests}


if __name__ == "__main__":
    main()
