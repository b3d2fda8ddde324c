"""What survives a restart, clean or not."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pipeline.errors import SourceUnavailable
from pipeline.local_cloud import parsing
from pipeline.local_cloud.cloud import open_cloud
from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.parsed import ParsedDocument
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline.local_cloud.state import State
from pipeline_tests.local_cloud.harness import Harness, metadata, running


def _snapshot(cloud: Harness) -> tuple[object, ...]:
    index = cloud.index()
    return index.id, index.export_config_id, index.output_directory_id, cloud.output(), cloud.source(), cloud.texts()


def test_listings_ids_payloads_and_urls_survive_a_restart(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir) as cloud:
        before = _snapshot(cloud)
        upload = cloud.client.files.create(file=("a.txt", b"kept"), purpose="user_data")
        path = cloud.client.files.content(upload.id).url.removeprefix(cloud.server.base_url)
    with running(documents, state_dir, auto_sync_on_start=False) as cloud:
        assert _snapshot(cloud) == before
        assert httpx.get(cloud.server.base_url + path).content == b"kept"


def test_a_new_state_directory_gives_the_same_ids(documents: Path, tmp_path: Path) -> None:
    ids = []
    for name in ("one", "two"):
        with running(documents, tmp_path / name) as cloud:
            index = cloud.index()
            files = sorted((file.display_name, file.id, file.file_id) for file in cloud.output().values())
            ids.append((index.id, index.export_config_id, index.output_directory_id, files))
    assert ids[0] == ids[1]


def test_starting_syncs_what_changed_meanwhile(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir):
        pass
    (documents / "later.md").write_text("written while the server was off")
    with running(documents, state_dir) as cloud:
        assert cloud.texts()["later.md"] == ["written while the server was off"]


def test_a_state_that_can_be_written_no_more_is_told_and_is_not_a_wrong_setting(
    documents: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(documents, state_dir):
        pass
    real = State._connect

    def read_only(self: State) -> sqlite3.Connection:
        connection = real(self)
        connection.execute("PRAGMA query_only = ON")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(State, "_connect", read_only)
        with pytest.raises(SourceUnavailable, match=r"cannot keep its state in .*readonly"):
            open_cloud(LocalCloudSettings(documents=str(documents), state_dir=state_dir))
    with running(documents, state_dir):
        pass


def test_a_deleted_first_index_does_not_come_back(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir) as cloud:
        cloud.client.indexes.delete(cloud.index().id)
    with running(documents, state_dir) as cloud:
        assert list(cloud.client.indexes.list()) == []


def test_nothing_is_parsed_twice(documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dir = tmp_path / "state"
    with running(documents, state_dir):
        pass

    def refuse(content: bytes) -> ParsedDocument:
        raise AssertionError(f"parsed again: {content!r}")

    monkeypatch.setattr(parsing, "_PARSERS", {suffix: (revision, refuse) for suffix, (revision, _) in parsing._PARSERS.items()})
    (documents / "copy.md").write_bytes((documents / "hello.md").read_bytes())
    with running(documents, state_dir) as cloud:
        cloud.client.indexes.create(source_directory_id=cloud.index().source_directory_id)
        assert cloud.texts()["copy.md"] == ["# Hello\n\nA first page."]


def test_a_sync_cut_by_a_stop_leaves_the_old_listing(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir) as cloud:
        before = _snapshot(cloud)
        (documents / "new.md").write_text("new")
        cloud.inject(hold_syncs=True)
        cloud.client.indexes.sync(cloud.index().id)
    with running(documents, state_dir, auto_sync_on_start=False) as cloud:
        assert cloud.index().sync_in_progress is False
        assert _snapshot(cloud) == before
        cloud.sync()
        assert "new.md" in cloud.output()


_KILLED_SERVER = """
import os, sys
from pathlib import Path
from pipeline.local_cloud import sync
from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline.local_cloud.state import State
from pipeline_tests.local_cloud.harness import until

def die(*_arguments):
    os._exit(7)

setattr(sync.IndexSync, sys.argv[3], die)
with RunningLocalCloud(LocalCloudSettings(documents=sys.argv[1], state_dir=Path(sys.argv[2]))):
    until(lambda: False)
"""


@pytest.mark.parametrize("step", ["_build", "_finish"])
def test_a_killed_sync_leaves_the_old_listing(documents: Path, state_dir: Path, step: str) -> None:
    with running(documents, state_dir) as cloud:
        before = _snapshot(cloud)
    (documents / "new.md").write_text("new")
    (documents / "guides" / "boats.txt").write_text("changed")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _KILLED_SERVER, str(documents), str(state_dir), step]
    assert subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False).returncode == 7
    (documents / "guides" / "boats.txt").write_text("Boats float.\fOars push.")
    with running(documents, state_dir, auto_sync_on_start=False) as cloud:
        index = cloud.index()
        assert index.sync_in_progress is False
        assert metadata(index)["status"] == "ready"
        assert _snapshot(cloud) == before
        cloud.sync()
        assert set(cloud.output()) == {"hello.md", "guides/boats.txt", "new.md"}


def test_a_first_sync_that_was_interrupted_says_so(documents: Path, state_dir: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _KILLED_SERVER, str(documents), str(state_dir), "_build"]
    assert subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False).returncode == 7
    with running(documents, state_dir, auto_sync_on_start=False) as cloud:
        interrupted = metadata(cloud.index())
        assert interrupted["status"] == "failed"
        assert "interrupted" in interrupted["error_message"]
        assert metadata(cloud.sync())["status"] == "ready"


def test_a_state_directory_serves_one_server(documents: Path, state_dir: Path) -> None:
    settings = LocalCloudSettings(documents=str(documents), state_dir=state_dir)
    with running(documents, state_dir), pytest.raises(SourceUnavailable, match="in use by another command"):
        open_cloud(settings)
    open_cloud(settings).state.close()


def test_a_held_first_sync_can_be_released(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir, faults=Faults(hold_syncs=True)) as cloud:
        assert cloud.output() == {}
        cloud.inject()
        cloud.settled()
        assert set(cloud.output()) == {"hello.md", "guides/boats.txt"}
