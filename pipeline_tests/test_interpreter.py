"""A process of ours does not look through everything it has imported when it ends."""

from __future__ import annotations

import subprocess
import sys

# What is registered first is called last.
_TOLD_LAST = "import atexit, gc; atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 5_000)); "


def _told(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", _TOLD_LAST + code], check=True, capture_output=True, text=True).stdout.split()


def test_a_plain_interpreter_looks_often_and_through_everything() -> None:
    threshold, freezes = _told("pass")
    assert int(threshold) < 50_000
    assert freezes == "False"


def test_a_command_looks_seldom_and_leaves_all_to_the_end_of_the_process() -> None:
    told = _told("import sys; sys.argv = ['indexport', '--help']; from pipeline.cli import main; main()")
    assert told[-2:] == ["50000", "True"]


def test_so_does_a_process_that_loads_the_code_location() -> None:
    assert _told("import pipeline.definitions") == ["50000", "True"]
