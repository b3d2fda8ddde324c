"""``python -m pipeline_tests.soak.mortal_cli N ARGUMENTS``: the command line, killed by SIGKILL at its N-th write."""

from __future__ import annotations

import os
import signal
import sys

from pipeline.cli import main
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline_tests.soak.crash import dies_at_write


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    after = int(sys.argv.pop(1))
    with dies_at_write(after, LanceDBExporter, strike=_kill):
        main()
