"""Sizes nobody plans for, through the whole export into LanceDB, within a bound of processor time."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.detect import detect
from pipeline.stages.fetch import _store, fetch
from pipeline_tests.hostile.cloud import ServedFile, hostile_cloud
from pipeline_tests.hostile.corpus import paged, payload
from pipeline_tests.world import world_over

_MEGABYTE = 1024 * 1024
_SECONDS = 120.0
"""It takes a tenth; what grows with the square of the size would take hours."""


def test_a_page_of_five_megabytes_in_one_line_is_stored(tmp_path: Path) -> None:
    line = " ".join(f"gauge {n % 977} reads {n % 89} metres;" for n in range(5 * _MEGABYTE // 26))
    _export_one(tmp_path, ServedFile("dfl-line", paged(line)), starts=line[:60], ends=line[-60:])


def test_a_file_of_a_hundred_thousand_pages_is_stored_and_cited(tmp_path: Path) -> None:
    pages = [{"page_number": number, "text": f"page {number}"} for number in range(1, 100_001)]
    _export_one(tmp_path, ServedFile("dfl-pages", payload(pages)), starts="page 1\n", ends="page 100000", last_page=100_000)


def test_a_streamed_body_of_two_hundred_megabytes_is_read_whole(tmp_path: Path) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"screenshot": "'
        yield from (b"A" * _MEGABYTE for _ in range(200))
        yield b'", "parse": {"pages": ['
        yield json.dumps({"page_number": 1, "text": "Behind two hundred megabytes."}).encode()
        yield b"]}}"

    _export_one(tmp_path, ServedFile("dfl-large", list(body())), starts="Behind two", ends="megabytes.")


def test_many_payloads_of_structured_items_are_not_held_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of JSON, which takes ten times as much in memory, and a line of text: no more of them than reach the bound."""
    held: list[int] = []

    def counted(*arguments: Any) -> None:
        held.append(len(arguments[2]))
        _store(*arguments)

    items = [{"type": "text", "value": "word", "bbox": [{"x": n + 0.5, "y": 1.25, "w": 3.5, "h": 4.5}]} for n in range(800)]
    body = payload([{"page_number": 1, "text": "A scanned drawing.", "items": items}])
    monkeypatch.setattr("pipeline.stages.fetch._store", counted)
    monkeypatch.setattr("pipeline.stages.fetch._BYTES_AT_ONCE", 16 * len(body))
    with (
        hostile_cloud(*(ServedFile(f"dfl-{n:02}", gzip.compress(body)) for n in range(36))) as cloud,
        world_over(tmp_path, cloud) as world,
    ):
        asyncio.run(detect(world.export, complete=True))
        report = asyncio.run(fetch(world.export, list(world.export.ledger.files()), run_id="r"))
    assert (report.worked, sum(held)) == (36, 36)
    assert max(held) <= 16


def _export_one(root: Path, file: ServedFile, *, starts: str, ends: str, last_page: int = 1) -> None:
    honest = ServedFile("dfl-honest", paged("An honest body."))
    with hostile_cloud(file, honest) as cloud, world_over(root, cloud) as world:
        began = time.process_time()
        world.ingest()
        assert time.process_time() - began < _SECONDS
        held = world.held()
        records = [record for record in held if record.parsed_directory_file_id == file.id]
        assert [record.chunk_index for record in records] == list(range(len(records)))
        assert records[0].content.startswith(starts)
        assert records[-1].content.endswith(ends)
        assert records[-1].page_range_end == last_page
        assert len(held) == len(records) + 1
