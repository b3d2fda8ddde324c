"""Whether a file still says what Dagster loaded from it."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from pipeline.stages.loaded_file import LoadedFile
from pipeline.stages.settings import exports_in

READ = "pipeline.stages.loaded_file.exports_in"
DOCUMENT = "type: pipeline.components.IndexExport\nattributes: {name: %s, chunking: {max_tokens: %d}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "defs.yaml"
    path.write_text(DOCUMENT % ("handbook", 100))
    return path


def test_it_is_read_only_when_it_was_touched(path: Path) -> None:
    file = LoadedFile(path, "handbook")
    with patch(READ, wraps=exports_in) as reads:
        assert [file.is_edited() for _ in range(3)] == [False] * 3
        assert reads.call_count == 0
        path.write_text(DOCUMENT % ("handbook", 99))
        assert [file.is_edited() for _ in range(3)] == [True] * 3
        assert reads.call_count == 1


def test_comments_order_and_defaults_are_no_edit(path: Path) -> None:
    file = LoadedFile(path, "handbook")
    path.write_text(
        "# of the handbook\nattributes:\n  sinks: {lancedb: {}}\n  chunking:\n    max_tokens: 100\n  name: handbook\n"
        "type: pipeline.components.IndexExport\n"
    )
    assert not file.is_edited()


def test_what_it_says_of_other_exports_is_no_edit_of_this_one(path: Path) -> None:
    path.write_text(DOCUMENT % ("handbook", 100) + "---\n" + DOCUMENT % ("other", 100))
    first, second = LoadedFile(path, "handbook"), LoadedFile(path, "other")
    path.write_text(DOCUMENT % ("handbook", 100) + "---\n" + DOCUMENT % ("other", 99))
    assert (first.is_edited(), second.is_edited()) == (False, True)


@pytest.mark.parametrize("text", [b"attributes: [", b"\xff", DOCUMENT.encode() % (b"renamed", 100), b""])
def test_a_file_that_holds_the_export_no_more_is_edited_until_it_does_again(path: Path, text: bytes) -> None:
    file, before = LoadedFile(path, "handbook"), path.read_bytes()
    path.write_bytes(text)
    assert [file.is_edited() for _ in range(2)] == [True] * 2
    path.write_bytes(before)
    assert not file.is_edited()


def test_a_file_that_is_moved_is_edited_until_it_is_back(path: Path) -> None:
    file = LoadedFile(path, "handbook")
    away = path.rename(path.with_name("elsewhere.yaml"))
    assert [file.is_edited() for _ in range(2)] == [True] * 2
    away.rename(path)
    assert not file.is_edited()


def test_a_file_that_could_not_be_read_once_is_read_again(path: Path) -> None:
    file = LoadedFile(path, "handbook")
    path.touch()
    with patch(READ, side_effect=OSError("the disk is away")):
        assert file.is_edited()
    assert not file.is_edited()
