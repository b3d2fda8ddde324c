"""A disk that is full or read-only: a clear error, nothing corrupted, the old version answers, and room heals it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import IndexportError
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
    home = tmp_path / "home"
    home.mkdir()
    if not _mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(home)):
        pytest.skip("only root may mount the small disk this test fills")
    try:
        yield home
    finally:
        _unmount(home)


def _mounted(*arguments: str) -> bool:
    mount = shutil.which("mount")
    return mount is not None and subprocess.run([mount, *arguments], capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run([shutil.which("umount") or "umount", "--lazy", str(folder)], check=True)


def _fill(home: Path) -> Path:
    filler = home / "filler"
    block = b"\0" * shutil.disk_usage(home).total
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(block)
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
