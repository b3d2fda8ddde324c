"""A database that turns out to be damaged while the server runs: clients are told, with what to do."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import llama_cloud
import pytest

from pipeline.local_cloud.state import State
from pipeline.local_cloud.sync import IndexSync
from pipeline_tests.local_cloud.harness import metadata, running

DAMAGED = r"/state\.sqlite3 is damaged \(database disk image is malformed\): stop what uses it, move it"


def _malformed(*_given: Any) -> Any:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error


def test_a_sync_over_it_fails_with_the_remedy(documents: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IndexSync, "run", _malformed)
    with running(documents, state_dir, auto_sync_on_start=False) as cloud:
        failed = metadata(cloud.sync())
    assert failed["status"] == "failed"
    assert re.search(DAMAGED, failed["error_message"])


def test_a_request_that_reads_it_fails_with_the_remedy(documents: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(documents, state_dir) as cloud:
        index = cloud.index()
        monkeypatch.setattr(State, "query", _malformed)
        with pytest.raises(llama_cloud.InternalServerError, match=DAMAGED):
            cloud.client.with_options(max_retries=0).beta.directories.files.list(index.output_directory_id or "")
