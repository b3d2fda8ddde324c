"""Who asked for what the history tells: a person on a machine where it was a command; of a run Dagster knows who launched it."""

from __future__ import annotations

import getpass
import os
import re
import socket

COMMAND = re.compile(r"[a-z]+-([0-9a-f]{32})")
"""What a command is named where a run has its id, whose digits have dashes between them."""


def asker() -> str:
    """The user and the host of this process, as ``user@host``."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container may run as a number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def asked_by(run_id: str | None) -> dict[str, str]:
    """What the history's details say of who asked for the work of this run or command, which is of this process."""
    return {"by": asker()} if run_id and COMMAND.fullmatch(run_id) else {}
