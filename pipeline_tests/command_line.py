"""``indexport`` as tests run it, in a process of its own or in this one, and what must be true of the home it leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
from typer.testing import CliRunner

import pipeline
from pipeline.cli import app
from pipeline.orchestration.launcher import open_instance
from pipeline.orchestration.partitions import UNFINISHED
from pipeline.stages.settings import ExportSettings, load_exports
from pipeline_tests.world import World, home_of

INDEXPORT = [sys.executable, "-m", "pipeline.cli"]
SYNC = ["sync", "--refresh", "--json", "--allow-deletes", "100"]
"""One shot whose deletes no fuse stops."""


def invoke(*arguments: str, code: int = 0) -> str:
    """The standard output of a command run in this process; fails when it ends with another code."""
    outcome = CliRunner().invoke(app, list(arguments))
    assert outcome.exit_code == code, (arguments, outcome.output, outcome.exception)
    return outcome.stdout


def assert_in_place(served: World, exports: Callable[[Path], dict[str, ExportSettings]] = load_exports) -> None:
    """The invariant in every sink, and nothing stuck: no file, no lease, no run, no partition."""
    settings = exports(Path(pipeline.__file__).parent / "defs")["default"]
    with open_instance(home_of(served.root)) as instance:
        world = World(served.root, served.cloud, instance, settings)
        for sink in settings.sinks:
            world.assert_settled(sink)
        rows = world.export.ledger.files()
        assert {row.status for row in rows.values()} == {"done"}
        assert not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        assert not [holder for holder in world.export.ledger.holders(list(rows)) if world.export.run_is_live(holder)]
        world.assert_no_partition_is_behind()
