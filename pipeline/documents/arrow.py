"""Pages and chunks as Arrow tables.

What belongs here: the columns of the lake's ``parsed_payloads`` and ``chunks`` datasets, the conversion to them and that of
pages back, column by column. What a sink adds to a chunk is the sinks' own business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from operator import attrgetter

import pyarrow as pa

from pipeline.documents.models import Attachment, Chunk, Page

ATTACHMENT_TYPE = pa.struct([("attachment_name", pa.string()), ("source_id", pa.string()), ("type", pa.string())])

CHUNK_FIELDS: tuple[pa.Field, ...] = (
    pa.field("chunk_index", pa.int32(), nullable=False),
    pa.field("content", pa.string(), nullable=False),
    pa.field("context", pa.string(), nullable=False),
    pa.field("chunk_start_char", pa.int64(), nullable=False),
    pa.field("chunk_end_char", pa.int64(), nullable=False),
    pa.field("chunk_token_count", pa.int32(), nullable=False),
    pa.field("page_range_start", pa.int32()),
    pa.field("page_range_end", pa.int32()),
    pa.field("attachments", pa.list_(ATTACHMENT_TYPE), nullable=False),
    pa.field("content_hash", pa.string(), nullable=False),
)
"""The columns of the lake's ``chunks`` dataset; the first columns of a record."""

_CHUNK_SCHEMA = pa.schema(CHUNK_FIELDS)
_CHUNK_VALUES = attrgetter(*_CHUNK_SCHEMA.names)

PAGE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("page_number", pa.int32(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("header", pa.string()),
    pa.field("footer", pa.string()),
    pa.field("items", pa.string(), nullable=False),
    pa.field("attachments", pa.list_(ATTACHMENT_TYPE), nullable=False),
)
"""The columns of the lake's ``parsed_payloads`` dataset, one row a page; ``items`` is a JSON array."""

DOCUMENT_COLUMNS = tuple(field.name for field in PAGE_FIELDS if field.name != "items")
"""Those that a document is built from; items are most of a payload."""


def chunks_to_table(chunks: Sequence[Chunk]) -> pa.Table:
    """Rows of CHUNK_FIELDS, in the order given."""
    columns = zip(*map(_CHUNK_VALUES, chunks), strict=True) if chunks else [()] * len(CHUNK_FIELDS)
    arrays = [
        _attachment_lists(values) if field.name == "attachments" else pa.array(values, field.type)
        for field, values in zip(CHUNK_FIELDS, columns, strict=True)
    ]
    return pa.table(arrays, schema=_CHUNK_SCHEMA)


def chunks_to_tables(files: Sequence[Sequence[Chunk]]) -> list[pa.Table]:
    """``chunks_to_table`` of each file, as slices of one table: making a table takes longer than the rows of a small file."""
    return _slices(chunks_to_table([chunk for chunks in files for chunk in chunks]), map(len, files))


def _slices(table: pa.Table, counts: Iterable[int]) -> list[pa.Table]:
    return [table.slice(start, end - start) for start, end in pairwise(accumulate(counts, initial=0))]


def embedding_texts(chunks: pa.Table) -> list[str]:
    """What is embedded of every row of chunks."""
    return [
        context + content for context, content in zip(chunks["context"].to_pylist(), chunks["content"].to_pylist(), strict=True)
    ]


def pages_to_table(pages: Sequence[Page]) -> pa.Table:
    """Rows of PAGE_FIELDS, in the order given."""
    return pa.table(
        [
            pa.array([page.page_number for page in pages], pa.int32()),
            pa.array([page.text for page in pages], pa.string()),
            pa.array([page.header for page in pages], pa.string()),
            pa.array([page.footer for page in pages], pa.string()),
            pa.array([json.dumps(page.items, ensure_ascii=False, separators=(",", ":")) for page in pages], pa.string()),
            _attachment_lists([page.attachments for page in pages]),
        ],
        schema=pa.schema(PAGE_FIELDS),
    )


def pages_to_tables(files: Sequence[Sequence[Page]]) -> list[pa.Table]:
    """``pages_to_table`` of each file, as slices of one table."""
    return _slices(pages_to_table([page for pages in files for page in pages]), map(len, files))


def pages_from_table(table: pa.Table) -> list[Page]:
    """The reverse of ``pages_to_table``; columns beyond PAGE_FIELDS are ignored. Without ``items`` pages have none."""
    names = ("page_number", "text", "header", "footer")
    values = table["items"].to_pylist() if "items" in table.column_names else ["[]"] * len(table)
    items = (tuple(json.loads(value)) for value in values)
    plain = (table[name].to_pylist() for name in names)
    return [Page(*row) for row in zip(*plain, items, _attachment_tuples(table["attachments"]), strict=True)]


def _attachment_lists(rows: Iterable[Sequence[Attachment]]) -> pa.ListArray:
    lists = list(rows)
    flat = [attachment for row in lists for attachment in row]
    values = pa.StructArray.from_arrays(
        [pa.array([getattr(attachment, field.name) for attachment in flat], field.type) for field in ATTACHMENT_TYPE],
        fields=list(ATTACHMENT_TYPE),
    )
    offsets = pa.array(accumulate((len(row) for row in lists), initial=0), pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


def _attachment_tuples(column: pa.ChunkedArray) -> list[tuple[Attachment, ...]]:
    rows: list[tuple[Attachment, ...]] = []
    for array in column.chunks:
        values = array.flatten()
        flat = [Attachment(*row) for row in zip(*(part.to_pylist() for part in values.flatten()), strict=True)]
        bounds = accumulate(array.value_lengths().to_pylist(), initial=0)
        rows.extend(tuple(flat[start:end]) for start, end in pairwise(bounds))
    return rows
