"""Pages and chunks survive the way through Arrow."""

from __future__ import annotations

import time
from dataclasses import replace

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents.arrow import (
    CHUNK_FIELDS,
    DOCUMENT_COLUMNS,
    PAGE_FIELDS,
    chunks_to_table,
    chunks_to_tables,
    pages_from_table,
    pages_to_table,
    pages_to_tables,
)
from pipeline.documents.models import Attachment, Chunk, Page

_ATTACHMENTS = st.lists(st.builds(Attachment, *[st.text(max_size=4)] * 3), max_size=3).map(tuple)
_JSON = st.dictionaries(
    st.text(max_size=3), st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([1.5]), max_size=3
)
_PAGES = st.builds(
    Page,
    st.integers(1, 9999),
    st.text(max_size=20),
    st.none() | st.text(max_size=5),
    st.none() | st.text(max_size=5),
    st.lists(_JSON, max_size=2).map(tuple),
    _ATTACHMENTS,
)
_COUNTS = st.integers(0, 2**31 - 1)
_CHUNKS = st.builds(
    Chunk,
    _COUNTS,
    st.text(),
    st.text(),
    _COUNTS,
    _COUNTS,
    _COUNTS,
    st.none() | _COUNTS,
    st.none() | _COUNTS,
    _ATTACHMENTS,
    st.text(),
)


def chunks_of(table: pa.Table) -> list[Chunk]:
    rows = table.to_pylist()
    return [Chunk(**{**row, "attachments": tuple(Attachment(**found) for found in row["attachments"])}) for row in rows]


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(_CHUNKS, max_size=6), offset=st.integers(0, 6))
def test_chunks_stand_in_a_table_as_they_were_and_in_a_slice_of_one(chunks: list[Chunk], offset: int) -> None:
    table = chunks_to_table(chunks)
    assert table.schema == pa.schema(CHUNK_FIELDS)
    table.validate(full=True)
    assert chunks_of(table) == chunks
    assert chunks_of(table.slice(offset)) == chunks[offset:]


@settings(max_examples=60, deadline=None)
@given(pages=st.lists(_PAGES, max_size=6))
def test_pages_come_back_as_they_were(pages: list[Page]) -> None:
    table = pages_to_table(pages)
    assert table.schema == pa.schema(PAGE_FIELDS)
    table.validate(full=True)
    assert pages_from_table(table) == pages
    assert pages_from_table(pa.concat_tables([table, table])) == pages * 2
    assert pages_from_table(table.select(DOCUMENT_COLUMNS)) == [replace(page, items=()) for page in pages]


@settings(max_examples=60, deadline=None)
@given(files=st.lists(st.lists(_CHUNKS, max_size=3), max_size=4))
def test_the_chunks_of_each_file_stand_in_tables_made_together(files: list[list[Chunk]]) -> None:
    tables = chunks_to_tables(files)
    assert [chunks_of(table) for table in tables] == files
    assert [table.schema for table in tables] == [pa.schema(CHUNK_FIELDS)] * len(files)


@settings(max_examples=60, deadline=None)
@given(files=st.lists(st.lists(_PAGES, max_size=3), max_size=4))
def test_the_pages_of_each_file_come_back_from_tables_made_together(files: list[list[Page]]) -> None:
    tables = pages_to_tables(files)
    assert [pages_from_table(table) for table in tables] == files
    assert [table.schema for table in tables] == [pa.schema(PAGE_FIELDS)] * len(files)


def test_a_wave_of_chunks_converts_in_a_moment() -> None:
    attachment = Attachment("page_1.png", "src", "screenshot")
    chunks = [Chunk(i, "content " * 100, "Guide\n\n", i, i + 800, 200, 1, 2, (attachment,), "0" * 64) for i in range(15_000)]
    started = time.process_time()
    table = chunks_to_table(chunks)
    assert time.process_time() - started < 3
    assert chunks_of(table) == chunks
