"""What a process remembers of the tables it wrote never hides what others have written since."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.lake import Lake, recent

TABLE = pa.table({"text": ["one", "two", "three"]})


def rows(lake: Lake, partition: str) -> int | None:
    read = lake.read("chunks", partition)
    return None if read is None else read.num_rows


def test_a_table_just_written_is_not_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path), "default")
    lake.write("chunks", "a", TABLE, {"key": "k"})
    monkeypatch.setattr(Lake, "_bytes", lambda *_: pytest.fail("read from disk"))
    read = lake.read("chunks", "a", ["text"])
    assert read is not None
    assert read.equals(TABLE)
    assert read.schema.metadata == {b"key": b"k"}


def test_a_table_is_handed_out_once_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "default")
    for partition in "abc":
        for _ in range(2):
            lake.write("chunks", partition, TABLE, {})
        assert rows(lake, partition) == 3
    assert not lake._recent._held
    assert lake._recent._bytes == 0
    assert rows(lake, "a") == 3


def test_of_tables_that_nobody_reads_the_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path), "default")
    size = lake.write("chunks", "a", TABLE, {})
    monkeypatch.setattr(recent, "_MOST_BYTES", 3 * (size + recent._BYTES_OF_A_TABLE))
    for partition in "bcdef":
        lake.write("chunks", partition, TABLE, {})
    read: list[str] = []
    monkeypatch.setattr(Lake, "_bytes", lambda _self, _dataset, partition: read.append(partition))
    for partition in "abcdef":
        rows(lake, partition)
    assert read == ["a", "b", "c"]


def test_random_writes_of_two_writers_are_always_seen_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Lake(str(tmp_path), "measured").write("chunks", "a", TABLE, {})
    monkeypatch.setattr(recent, "_MOST_BYTES", 3 * (size + recent._BYTES_OF_A_TABLE))
    writers = [Lake(str(tmp_path), "default"), Lake(str(tmp_path), "default")]
    expected: dict[str, int | None] = {}
    rng = random.Random(7)
    for _ in range(400):
        writer, partition = rng.choice(writers), rng.choice("abcdefgh")
        if rng.random() < 0.2:
            writer.delete(partition)
            expected[partition] = None
        else:
            expected[partition] = rng.randint(0, 3)
            writer.write("chunks", partition, TABLE.slice(0, expected[partition]), {})
        name = rng.choice(list(expected))
        assert [rows(reader, name) for reader in writers] == [expected[name]] * 2


def test_a_file_damaged_after_it_was_written_is_not_answered_from_memory(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), "default")
    lake.write("chunks", "a", TABLE, {})
    [file] = tmp_path.rglob("*.parquet")
    file.write_bytes(b"damaged")
    assert rows(lake, "a") is None
