from __future__ import annotations

import getpass
import os
import socket
import uuid
from pathlib import Path

import pytest

from pipeline.ledger.asker import asked_by, asker
from pipeline.orchestration.liveness import command_run


def test_a_command_was_asked_for_by_a_user_on_a_host_and_a_run_by_nobody_known_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path))
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    with command_run("erase") as run_id:
        assert asked_by(run_id) == {"by": f"ann@{socket.gethostname()}"}
    assert asked_by(str(uuid.uuid4())) == asked_by(None) == {}


@pytest.mark.parametrize("error", [KeyError, OSError, ImportError])
def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def nameless() -> str:
        raise error("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert asker() == f"{os.getuid()}@{socket.gethostname()}"
