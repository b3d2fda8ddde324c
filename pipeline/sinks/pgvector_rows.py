"""Records as rows of the PostgreSQL table, and back.

What belongs here: the codec and what PostgreSQL's types have no room for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import RecordRefused
from pipeline.sinks.copies import readable, show_altered
from pipeline.sinks.llama_node import node_metadata
from pipeline.sinks.reading import to_array
from pipeline.sinks.records import FileRecords, canonical_json, matrix, record_schema

Row = tuple[Any, ...]
_NUL: Final = "\0"


def encode(records: pa.Table) -> list[Row]:
    """Rows of ``record_schema`` as rows of ``written_columns``, as COPY into the staging table takes them."""
    columns: dict[str, Iterable[Any]] = {
        name: records[name].to_pylist() for name in records.column_names if name not in ("attachments", "embedding")
    }
    columns["attachments"] = [json.dumps(value, ensure_ascii=False) for value in records["attachments"].to_pylist()]
    columns["embedding"] = matrix(records["embedding"])
    metadata = [canonical_json(row) for row in node_metadata(records)]
    return list(zip(*(columns[name] for name in records.column_names), metadata, strict=True))


def decode(rows: Sequence[Row], dimension: int) -> pa.Table:
    """Rows of ``record_columns`` as rows of ``record_schema``, without ``embedding`` where the rows have no vectors."""
    schema = record_schema(dimension)
    held = pa.schema(list(schema)[: len(rows[0])]) if rows else schema
    columns = list(zip(*rows, strict=True)) or [()] * len(held)
    return pa.table([_array(item, values) for item, values in zip(held, columns, strict=True)], schema=held)


def decode_compared(rows: Sequence[Row], dimension: int) -> pa.Table:
    """Rows of ``written_columns``, ``metadata_`` as text; the records show where that is not what was written with them."""
    records = decode([row[:-1] for row in rows], dimension)
    belongs = node_metadata(readable(records))
    altered = {}
    for number, (row, wanted) in enumerate(zip(rows, belongs, strict=True)):
        held, expected = _parsed(row[-1] or "null"), _parsed(canonical_json(wanted))
        if _spelled(held) != _spelled(expected):
            altered[number] = _differing(held if isinstance(held, dict) else {}, expected)
    return show_altered(records, altered)


def _differing(held: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    one, other = ({key: _spelled(value) for key, value in values.items()} for values in (held, expected))
    return [f"metadata_.{key}" for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


def _number(text: str) -> float:
    """jsonb spells 1e300 as an integer and knows no negative zero."""
    return float(text) + 0.0


_parsed: Final = json.JSONDecoder(parse_int=_number, parse_float=_number).decode
_spelled: Final = json.JSONEncoder(sort_keys=True).encode


def _array(item: pa.Field, values: Sequence[Any]) -> pa.Array:
    """The table's types leave another program nothing to put there but nulls, and JSON that is no list of attachments."""
    if item.name == "attachments":
        return to_array(values, item)
    if item.name != "embedding":
        return pa.array(values, item.type)
    absent = np.full(item.type.list_size, np.nan, np.float32)
    vectors = [absent if value is None else value.to_numpy() for value in values]
    flat = np.concatenate(vectors) if vectors else np.empty(0, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), item.type.list_size)


def check_texts(file: FileRecords) -> None:
    """Raises RecordRefused, naming the field, for U+0000: neither PostgreSQL's text nor its jsonb can hold it."""
    for name, texts in _texts(file):
        if any(_NUL in text for text in texts):
            raise RecordRefused(file.file_id, f"{name} holds the character U+0000, which PostgreSQL cannot store; remove it")


def _texts(file: FileRecords) -> Iterator[tuple[str, list[str]]]:
    for item in file.table.schema:
        column = file.table[item.name]
        if pa.types.is_string(item.type):
            yield item.name, column.drop_null().to_pylist()
        elif item.name == "attachments":
            parts = column.combine_chunks().flatten().flatten()
            yield item.name, [text for part in parts for text in part.drop_null().to_pylist()]
    yield "metadata", list(_strings(file.provenance.metadata))


def _strings(value: object) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
