"""``indexport`` as tests run it, in a process of its own or in this one, and what must be true of the home it leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import dagster as dg
from typer.testing import CliRunner

import pipeline
from pipeline.cli import app, main
from pipeline.orchestration.instance import open_instance
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


def run(*arguments: str, encoding: str = "utf-8", **environment: str) -> CompletedProcess[str]:
    """A command from its ``main()`` on, in this process: its exit code, and what it has written to an output of this encoding.
    Where a process of its own would end with a traceback, the error is raised."""
    stdout, stderr = (TextIOWrapper(BytesIO(), name, write_through=True) for name in (encoding, "utf-8"))
    command = patch.object(sys, "argv", ["indexport", *arguments])
    with command, patch.dict(os.environ, environment), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main()
            code: int | str | None = 0
        except SystemExit as ended:
            code = ended.code or 0
    assert isinstance(code, int), code
    written = (stream.buffer.getvalue().decode(stream.encoding) for stream in (stdout, stderr))
    return CompletedProcess(arguments, code, *written)


def assert_in_place(served: World, exports: Callable[[Path], dict[str, ExportSettings]] = load_exports) -> None:
    """The invariant in every sink, and nothing stuck: no file, no lease, no run, no partition."""
    settings = exports(Path(pipeline.__file__).parent / "defs")["default"]
    with open_instance(home_of(served.root)) as instance:
        world = World(served.root, served.cloud, instance, settings)
        rows = world.export.ledger.files()
        assert {row.status for row in rows.values()} == {"done"}
        assert not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        for sink in settings.sinks:
            world.assert_settled(sink)
        assert not [holder for holder in world.export.ledger.holders(list(rows)) if world.export.run_is_live(holder)]
        world.assert_no_partition_is_behind()
