"""Databases and tables whose bytes are damaged: one line with what to do, and once that is done everything heals."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest

from pipeline.home import Home
from pipeline.local_cloud.environment import local_cloud_environment
from pipeline.orchestration import sqlite_storage
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.partitions import key_order
from pipeline.orchestration.resources import _open
from pipeline_tests.command_line import run

EXPORT = "type: pipeline.components.IndexExport\nattributes: {name: default, embedding: {provider: constant}}\n"
FILES = 3


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def overwritten(path: Path) -> None:
    """All but the first page."""
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"U" * len(whole[4096:]))


@pytest.fixture(scope="module")
def once_synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synced")
    for name in ("documents", "defs/default"):
        (root / name).mkdir(parents=True)
    (root / "defs" / "default" / "defs.yaml").write_text(EXPORT)
    for n in range(FILES):
        (root / "documents" / f"doc-{n}.md").write_text(f"# Document {n}\n\nThis is the body of document {n}.\n")
    environment = {"INDEXPORT_HOME": str(root / "home"), "INDEXPORT_DEFS": str(root / "defs")}
    assert run("sync", "--documents", str(root / "documents"), **environment).returncode == 0
    _open.cache_clear()
    (root / "home").rename(root / "as it was")
    return root


@pytest.fixture
def home(once_synced: Path) -> Iterator[Path]:
    """A home that has been synced, where it was then: elsewhere its sink would be another."""
    home = once_synced / "home"
    shutil.copytree(once_synced / "as it was", home)
    environment = {"INDEXPORT_HOME": str(home), "INDEXPORT_DEFS": str(once_synced / "defs")}
    with patch.dict(os.environ, environment):
        os.environ.pop("DAGSTER_HOME", None)
        yield home
    _open.cache_clear()
    shutil.rmtree(home)


@pytest.fixture
def documents(once_synced: Path) -> str:
    return str(once_synced / "documents")


def damage(path: Path, harm: Callable[[Path], None]) -> None:
    with closing(sqlite3.connect(path)) as connection:  # the last one moves the log into the file
        connection.execute("PRAGMA schema_version").fetchone()
    assert not Path(f"{path}-wal").exists()
    harm(path)


def told(*arguments: str) -> str:
    """The one line a command fails with."""
    outcome = run(*arguments)
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (1, 1), outcome.stderr
    return outcome.stderr


def move_away(path: Path) -> None:
    """With its log, when nothing uses it."""
    _open.cache_clear()
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        if name.exists():
            name.rename(f"{name}.damaged")


def assert_whole(documents: str, *, runs: int = 0) -> None:
    synced = run("sync", "--documents", documents, "--json")
    assert synced.returncode == 0, synced.stderr + synced.stdout
    assert json.loads(synced.stdout)["runs"] == runs, synced.stdout
    with open_instance(Home.from_environment()) as instance:
        assert len(key_order(instance, "default")) == FILES
    verified = run("verify", "--deep")
    assert verified.returncode == 0, verified.stdout
    assert len(run("records", "--json").stdout.splitlines()) == FILES


@pytest.mark.parametrize("harm", [garbage, overwritten])
def test_a_damaged_ledger_is_one_line_and_rebuilt_once_it_is_moved_away(
    home: Path, documents: str, embedded: list[str], harm: Callable[[Path], None]
) -> None:
    ledger = home / "ledger.sqlite"
    damage(ledger, harm)
    for command in (["status"], ["sync", "--documents", documents], ["rebuild", "ledger"]):
        line = told(*command)
        assert f"the ledger {ledger} is damaged (" in line
        assert "move it and its -wal and -shm away, then `indexport rebuild ledger`" in line
    move_away(ledger)
    with local_cloud_environment(documents, Home(home).local_cloud):
        assert run("rebuild", "ledger").returncode == 0
    assert_whole(documents)
    assert embedded == []


@pytest.mark.parametrize(
    ("name", "harm"), [("history/runs.db", garbage), ("history/runs/index.db", overwritten), ("schedules/schedules.db", garbage)]
)
def test_a_damaged_database_of_dagster_is_one_line_and_restored_once_it_is_moved_away(
    home: Path, documents: str, monkeypatch: pytest.MonkeyPatch, name: str, harm: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(sqlite_storage, "_FOUND_MADE", set[Path]())  # as in a process of its own
    database = home / "dagster" / name
    damage(database, harm)
    line = told("sync", "--documents", documents)
    assert f"error: {database} is damaged (" in line
    assert "move it and its -wal and -shm away, then sync again: what stands is shown again" in line
    move_away(database)
    assert_whole(documents)


@pytest.mark.parametrize(
    ("name", "harm", "remedy", "runs"),
    [
        ("state.sqlite3", overwritten, "it is made anew from the folder, with the same ids unless", 1),
        ("lock.sqlite3", garbage, "it holds nothing", 0),
    ],
)
def test_a_damaged_state_of_the_local_cloud_is_one_line_and_made_anew_once_it_is_moved_away(
    home: Path, documents: str, embedded: list[str], name: str, harm: Callable[[Path], None], remedy: str, runs: int
) -> None:
    [database] = (home / "local_cloud").glob(f"*/{name}")
    damage(database, harm)
    line = told("sync", "--documents", documents)
    assert f"error: {database} is damaged (" in line
    assert f"move it and its -wal and -shm away, then sync again: {remedy}" in line
    move_away(database)
    assert_whole(documents, runs=runs)
    assert embedded == []


@pytest.mark.parametrize(("files", "readable"), [("_versions/*", False), ("data/*", False), ("_indices/*/*", True)])
def test_a_damaged_table_of_lancedb_is_renewed_where_it_can_be_read_and_named_where_it_must_go(
    home: Path, documents: str, embedded: list[str], files: str, readable: bool
) -> None:
    [table] = (home / "lancedb").glob("*.lance")
    for path in table.glob(files):
        garbage(path)
    damaged = run("verify", "--deep")
    assert damaged.returncode == 1
    assert "its files are damaged: `indexport rebuild sink lancedb`" in damaged.stdout
    with local_cloud_environment(documents, Home(home).local_cloud):
        if not readable:
            assert f"remove {table} and rebuild the sink of every export that uses it" in told("rebuild", "sink", "lancedb")
            assert table.is_dir(), "others may have records in it"
            shutil.rmtree(table)
        assert run("rebuild", "sink", "lancedb").returncode == 0
    assert_whole(documents)
    assert run("search", "body", "--mode", "text").returncode == 0
    assert embedded == []
