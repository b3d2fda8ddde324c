"""A disk that is full or read-only: a clear error, nothing corrupted, the old version answers, and room heals it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipeline.errors import IndexportError
from pipeline.local_cloud.environment import local_cloud_environment
from pipeline_tests.command_line import INDEXPORT, invoke, run
from pipeline_tests.local_cloud.harness import metadata, running
from pipeline_tests.soak.kills import only_in_the_soak
from pipeline_tests.world import World, open_world

FILES = 4


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        _write(opened, "first")
        assert opened.sync().ok
        yield opened


def _write(world: World, version: str) -> None:
    for n in range(FILES):
        world.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the {version} version of document {n}.\n")


@contextmanager
def broken_lake(world: World, code: int, *, written: int) -> Iterator[None]:
    """Writes below the lake stop after some bytes, as they do on a disk that is full."""
    whole = Path.write_bytes
    lake = world.root / "home" / "lake"

    def cut(path: Path, data: memoryview) -> int:
        if lake in path.parents:
            whole(path, data[:written])
            raise OSError(code, os.strerror(code))
        return whole(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        yield


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_lake_that_cannot_be_written_is_named_and_costs_nothing(world: World, code: int) -> None:
    before = world.held()
    _write(world, "second")
    with broken_lake(world, code, written=7):
        report = world.sync()
    assert not report.ok
    assert report.errors
    assert all(os.strerror(code) in reason and "check its space and rights" in reason for reason in report.errors[:1])
    assert world.held() == before
    assert not list((world.root / "home" / "lake").rglob("*.tmp"))
    assert world.sync().ok
    world.assert_settled()
    assert all("second version" in record.content for record in world.held())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB where the installation lives."""
    with _small_disk(tmp_path / "home") as home:
        yield home


@pytest.fixture
def small_instance(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB where its Dagster instance lives."""
    with _small_disk(tmp_path / "home" / "dagster") as folder:
        yield folder


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    if not _mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)):
        pytest.skip("only root may mount the small disk this test fills")
    try:
        yield folder
    finally:
        _unmount(folder)


def _mounted(*arguments: str) -> bool:
    mount = shutil.which("mount")
    return mount is not None and subprocess.run([mount, *arguments], capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run([shutil.which("umount") or "umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path, *, left: int = 0) -> Path:
    filler = folder / "filler"
    block = b"\0" * shutil.disk_usage(folder).total
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(block)
    os.truncate(filler, filler.stat().st_size - left)
    return filler


def test_a_disk_that_fills_up_under_ledger_lake_and_sink_heals_with_room(small_disk: Path, tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        _write(world, "first")
        assert world.sync().ok
        before = world.held()
        _write(world, "second")
        world.refresh()
        filler = _fill(small_disk)
        told = _told_by_a_sync(world)
        filler.unlink()
        assert any(word in told for word in ("full", "No space left")), told
        assert world.held() == before
        assert world.sync().ok
        world.assert_settled()


def test_a_read_only_disk_is_named_and_heals_when_it_can_be_written(small_disk: Path, tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        _write(world, "first")
        assert world.sync().ok
        before = world.held()
        _write(world, "second")
        world.refresh()
        lake = small_disk / "lake"
        assert _mounted("--bind", str(lake), str(lake))
        try:
            assert _mounted("-o", "remount,ro,bind", str(lake))
            report = world.sync()
        finally:
            _unmount(lake)
        assert "Read-only file system" in report.errors[0]
        assert world.held() == before
        assert world.sync().ok
        world.assert_settled()


def _told_by_a_sync(world: World) -> str:
    """What a sync of a full disk says."""
    try:
        report = world.sync()
    except IndexportError as error:
        return str(error)
    assert not report.ok
    return " ".join(report.errors)


def test_a_disk_that_fills_up_under_the_local_cloud_fails_its_sync_and_heals_with_room(small_disk: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(200):
        (documents / f"{number}.md").write_bytes(os.urandom(900).hex().encode())
    with running(documents, small_disk, auto_sync_on_start=False) as cloud:
        filler = _fill(small_disk, left=400_000)
        assert metadata(cloud.sync())["status"] == "failed"
        assert any(word in metadata(cloud.index())["error_message"] for word in ("full", "No space left"))
        assert len(cloud.client.indexes.list().items) == 1
        filler.unlink()
        assert metadata(cloud.sync())["status"] == "ready"
        assert len(cloud.output()) == 200


@pytest.fixture
def folder(tmp_path: Path, small_instance: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Documents behind a local cloud, synced once; the home is as a user has it."""
    documents = tmp_path / "documents"
    documents.mkdir()
    _edit(documents, "first")
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(small_instance))
    with local_cloud_environment(str(documents), tmp_path / "cloud"):
        invoke("sync", "--refresh")
        yield documents


def _edit(documents: Path, version: str) -> None:
    for n in range(FILES):
        (documents / f"doc-{n}.md").write_text(f"# Document {n}\n\nThis is the {version} version of document {n}.\n")


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*INDEXPORT, *arguments], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "1000"}
    )


def _assert_told(outcome: subprocess.CompletedProcess[str], instance: Path) -> None:
    """One message that names the place and the remedy."""
    assert outcome.returncode == 1
    assert "Traceback" not in outcome.stderr, outcome.stderr
    told = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1, outcome.stderr
    assert str(instance) in told[0]
    assert "check its space" in told[0]


def _assert_healed(documents: Path, instance: Path) -> None:
    """The next sync does what was not done, and no database is damaged."""
    invoke("sync", "--refresh")
    held = [json.loads(line)["content"] for line in invoke("records", "--json").splitlines()]
    assert len(held) == len(list(documents.iterdir()))
    assert all("second version" in content for content in held)
    databases = [path for path in instance.rglob("*.db") if path.stat().st_size]
    assert databases
    for path in databases:
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    "left", [150_000, *(pytest.param(left, marks=only_in_the_soak) for left in (0, 40_000, 80_000, 400_000))]
)
def test_a_full_disk_under_dagsters_own_database_is_named_and_heals_with_room(
    folder: Path, small_instance: Path, left: int
) -> None:
    _edit(folder, "second")
    filler = _fill(small_instance, left=left)
    _assert_told(_command("sync", "--refresh"), small_instance)
    filler.unlink()
    _assert_healed(folder, small_instance)


def test_a_read_only_disk_under_dagsters_own_database_is_named_by_its_commands(folder: Path, small_instance: Path) -> None:
    _edit(folder, "second")
    assert _mounted("-o", "remount,ro", str(small_instance))
    _assert_told(run("sync"), small_instance)
    _assert_told(_command("dev", "--port", "0", "--cloud-port", "0"), small_instance)
    assert _mounted("-o", "remount,rw", str(small_instance))
    _assert_healed(folder, small_instance)


def test_a_read_only_home_is_named(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "documents").mkdir()
    monkeypatch.setenv("INDEXPORT_HOME", str(small_disk))
    assert _mounted("-o", "remount,ro", str(small_disk))
    _assert_told(run("sync", "--documents", str(tmp_path / "documents")), small_disk)


def test_a_home_that_became_read_only_is_named(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "documents").mkdir()
    _edit(tmp_path / "documents", "first")
    with running(tmp_path / "documents", small_disk / "local_cloud"):
        pass
    monkeypatch.setenv("INDEXPORT_HOME", str(small_disk))
    assert _mounted("-o", "remount,ro", str(small_disk))
    told = run("sync", "--documents", str(tmp_path / "documents"))
    assert told.returncode == 1
    assert f"cannot keep its state in {small_disk}" in told.stderr
